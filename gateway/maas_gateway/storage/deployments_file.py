"""The last known deployments in a file, so that a restarted gateway serves without asking anybody."""

import json
import logging
import os
from pathlib import Path

from maas_gateway.domain.deployments import KnownDeployments

logger = logging.getLogger(__name__)

_FORMAT = 1


class DeploymentsFile:
    """One file, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> KnownDeployments:
        """Return what was stored last. Nothing, or something unreadable, is a start from nothing."""
        try:
            stored = json.loads(self._path.read_text("utf-8"))
            if stored["format"] != _FORMAT:
                raise ValueError(f"format {stored['format']!r} is not known")
            return KnownDeployments(frozenset(map(str, stored["deployments"])), str(stored["resume_token"]))
        except FileNotFoundError:
            return KnownDeployments()
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Rollout will send a snapshot, which is all that this file ever holds.
            logger.warning("stored deployments cannot be read", extra={"path": self._path, "detail": repr(error)})
            return KnownDeployments()

    def save(self, known: KnownDeployments) -> None:
        """Replace what is stored. A full disk is an error in the log: serving goes on without the file."""
        stored = {"format": _FORMAT, "resume_token": known.resume_token, "deployments": sorted(known.ids)}
        scratch = self._path.with_suffix(".new")
        try:
            scratch.write_text(json.dumps(stored), "utf-8")
            os.replace(scratch, self._path)
        except OSError as error:
            logger.error("deployments cannot be stored", extra={"path": self._path, "detail": repr(error)})

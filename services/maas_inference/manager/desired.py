"""What rollout wants to be served, and what was last agreed to answer; both outlive the manager on disk."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from maas.names import DeploymentName, VersionName

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class WeightedVersion:
    """A version and its share of the requests."""

    version: VersionName
    weight: int


Targets = tuple[WeightedVersion, ...]


@dataclass(frozen=True, slots=True)
class Desired:
    """Deployments with the versions that are wanted, and the token with which a watch goes on from here."""

    deployments: Mapping[DeploymentName, Targets] = field(default_factory=dict)
    resume_token: str = ""

    def changed(
        self,
        *,
        is_snapshot: bool,
        deployments: Mapping[DeploymentName, Targets],
        deleted: Iterable[DeploymentName],
        resume_token: str,
    ) -> "Desired":
        """Return what is wanted after a message of the watch."""
        gone = set(deleted)
        kept = {} if is_snapshot else {name: old for name, old in self.deployments.items() if name not in gone}
        return replace(self, deployments={**kept, **deployments}, resume_token=resume_token)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the manager takes up again after a restart: the wish, and who answered."""

    desired: Desired
    answering: Mapping[DeploymentName, Targets]


class DesiredFile:
    """Keeps the memory in one file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Remembered:
        """Return what was saved; nothing wanted when there is no file or it is of another format."""
        try:
            stored = msgspec.json.decode(self._path.read_bytes(), type=_Stored)
        except (FileNotFoundError, msgspec.DecodeError):
            return Remembered(Desired(), {})
        if stored.format_version != _FORMAT:
            return Remembered(Desired(), {})
        return Remembered(
            Desired(_targets_from(stored.deployments), stored.resume_token), _targets_from(stored.answering)
        )

    def save(self, desired: Desired, answering: Mapping[DeploymentName, Targets]) -> None:
        """Replace the file."""
        stored = _Stored(_FORMAT, desired.resume_token, _targets_to(desired.deployments), _targets_to(answering))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(stored))
        os.replace(partial, self._path)


class _Stored(msgspec.Struct):
    format_version: int
    resume_token: str
    deployments: dict[str, list[tuple[str, int]]]
    answering: dict[str, list[tuple[str, int]]]


def _targets_to(deployments: Mapping[DeploymentName, Targets]) -> dict[str, list[tuple[str, int]]]:
    return {
        str(name): [(str(target.version), target.weight) for target in targets] for name, targets in deployments.items()
    }


def _targets_from(stored: Mapping[str, list[tuple[str, int]]]) -> dict[DeploymentName, Targets]:
    return {
        DeploymentName.parse(name): tuple(
            WeightedVersion(VersionName.parse(version), weight) for version, weight in targets
        )
        for name, targets in stored.items()
    }

"""The deployments there are, as the watch of rollout tells them."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownDeployments:
    """Ids of all deployments, and what to send to hear only of later changes."""

    ids: frozenset[str] = frozenset()
    resume_token: str = ""

    def after(
        self, *, snapshot: bool, present: Iterable[str], deleted: Iterable[str], resume_token: str
    ) -> "KnownDeployments":
        """Return what is known after a message of the watch; a snapshot replaces all that was known."""
        before = frozenset() if snapshot else self.ids
        return KnownDeployments((before | frozenset(present)) - frozenset(deleted), resume_token)

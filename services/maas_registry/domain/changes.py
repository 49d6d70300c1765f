"""The registry's log: who changed what, when and why. Every change of a record is an entry, written with it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Protocol, TypeAlias

from maas.names import AliasName, DatasetName, DatasetVersionName, ModelName, NameInvalid, VersionName
from maas_registry.domain.details import ModelDetails, VersionDetails
from maas_runtime.failures import FieldViolation, InvalidInput

Clock: TypeAlias = Callable[[], datetime]
ResourceName: TypeAlias = ModelName | VersionName | AliasName | DatasetName | DatasetVersionName
ChangedState: TypeAlias = ModelDetails | VersionDetails | VersionName | None
"""What may change of a model or version, or where an alias points; None when there is nothing (any more)."""

_PAGE = 200


class ReadTimeInFuture(InvalidInput):
    """Nobody knows yet what will be."""

    reason = "READ_TIME_IN_FUTURE"


class ResumeTokenInvalid(InvalidInput):
    """A token of a watch is not one that this registry gave."""

    reason = "RESUME_TOKEN_INVALID"


@dataclass(frozen=True, slots=True)
class Author:
    """Who asks for a change, as the call says, and why."""

    actor: str
    reason: str = ""


class ChangeKind(Enum):
    """What happened to a resource."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"
    UNDELETED = "undeleted"
    PURGED = "purged"


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the log: the resource as the change left it, and as it was before."""

    sequence: int
    time: datetime
    author: Author
    resource: ResourceName
    kind: ChangeKind
    state: ChangedState
    previous: ChangedState


class ChangeLog(Protocol):
    """Where the log is read. Sequences go up by 1 in the order in which changes took effect; times never go back."""

    async def newest_sequence(self) -> int:
        """Return the number of the last change; 0 when there is none."""
        ...

    async def list_changes(
        self, resource: ResourceName | None, before: int | None, limit: int, at: datetime | None
    ) -> Sequence[Change]:
        """Return the newest changes with a number below `before`, up to a time, newest first.

        Those of one resource, which for a model or dataset are those of all that is in it; of everything when None.
        """
        ...

    async def changes_after(self, sequence: int, limit: int) -> Sequence[Change]:
        """Return the first changes with a higher number, oldest first."""
        ...


@dataclass(frozen=True, slots=True)
class News:
    """What a watcher is told next, and up to which number it knows everything then."""

    changes: tuple[Change, ...]
    sequence: int


class Feed:
    """Reads the log for whoever lists or watches it.

    Each watcher reads on from its own point, a page at a time and when it is ready to, so a slow one misses nothing and
    holds one page at most. It looks when this process has written and every `look_again_seconds` for what others wrote.
    """

    def __init__(
        self, log: ChangeLog, clock: Clock, look_again_seconds: float = 1.0, heartbeat_seconds: float = 10.0
    ) -> None:
        self._log = log
        self._clock = clock
        self._look_again_seconds = look_again_seconds
        self._looks_between_heartbeats = max(1, round(heartbeat_seconds / look_again_seconds))
        self._wake = asyncio.Event()
        self._closed = False

    def wake(self) -> None:
        """Let all watchers look for changes."""
        woken, self._wake = self._wake, asyncio.Event()
        woken.set()

    def close(self) -> None:
        """Let all watches end after what they still have to say."""
        self._closed = True
        self.wake()

    async def list(
        self, resource: ResourceName | None, before: int | None, limit: int, at: datetime | None
    ) -> Sequence[Change]:
        """Return the newest changes with a number below `before`, newest first. Raises ReadTimeInFuture."""
        check_read_time(at, self._clock)
        return await self._log.list_changes(resource, before, limit, at)

    async def watch(self, resource: ResourceName | None, after: int | None) -> AsyncGenerator[News, None]:
        """Yield the changes behind number `after` (None: those from now on), then each new one.

        The first News comes at once; later ones without changes say that nothing happened for a while. Raises
        ResumeTokenInvalid.
        """
        newest = await self._log.newest_sequence()
        sequence = newest if after is None else after
        if sequence > newest:
            raise resume_token_invalid()
        told = -1
        silent_looks = 0
        while True:
            wake, ends = self._wake, self._closed
            page = await self._log.changes_after(sequence, _PAGE)
            sequence = page[-1].sequence if page else sequence
            wanted = tuple(change for change in page if is_within(change.resource, resource))
            silent_looks += 1
            if wanted or told < 0 or silent_looks >= self._looks_between_heartbeats:
                yield News(wanted, sequence)
                told, silent_looks = sequence, 0
            if len(page) == _PAGE:
                continue
            if ends:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_again_seconds):
                    await wake.wait()


def is_within(changed: ResourceName, resource: ResourceName | None) -> bool:
    """Whether a change is one of those that somebody wants who names a resource; None is everything."""
    return resource is None or changed == resource or root_of(changed) == resource


def root_of(resource: ResourceName) -> ModelName | DatasetName:
    """Return the model or dataset that a resource is in."""
    match resource:
        case VersionName() | AliasName():
            return resource.model
        case DatasetVersionName():
            return resource.dataset
        case _:
            return resource


def resume_token_invalid() -> ResumeTokenInvalid:
    """Return the failure."""
    return ResumeTokenInvalid("the resume token is not from this registry: begin again without one")


def parse_resource(text: str) -> ResourceName:
    """Return the name of a model, version, alias, dataset or version of a dataset. Raises NameInvalid."""
    kinds: tuple[Callable[[str], ResourceName], ...] = (
        ModelName.parse,
        VersionName.parse,
        AliasName.parse,
        DatasetName.parse,
    )
    for parse in kinds:
        try:
            return parse(text)
        except NameInvalid:
            continue
    return DatasetVersionName.parse(text)


def check_read_time(at: datetime | None, clock: Clock) -> None:
    """Raise ReadTimeInFuture."""
    if at is not None and at > clock():
        text = "is in the future: name a time that has passed"
        raise ReadTimeInFuture(f"read_time {text}", violations=(FieldViolation("read_time", text),))


def utc_now() -> datetime:
    """Return the time, as changes are dated."""
    return datetime.now(UTC)

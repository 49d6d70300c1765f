"""Blobs that no record needs are removed, and nobody who is about to use one loses it.

    no row -> UNUSED -> REMOVING -> REMOVED -> no row

A row is only there for a blob that no record needed when somebody looked. Nothing else decides, so that it holds with
several registries on one database and one bucket:

1. A collection lists the blobs, then reads all records. What is not needed becomes UNUSED, from now on.
2. What was UNUSED for the whole grace period becomes REMOVING, in a transaction. From then on no version can be stored
   with it: whoever stores one looks at the rows in the same transaction.
3. All records are read again. What one of them needs, stored before that transaction, loses its row. The bytes of the
   others are removed, then they are REMOVED.
4. An upload of a blob whose bytes are there takes its UNUSED row away, so that the grace period begins again. One of a
   blob that is REMOVING waits; one of a blob that is REMOVED stores the bytes, then takes the row away.
5. Whoever removes has REMOVAL_LEASE for it. If it dies, anybody may take over after that. REMOVED rows are kept for a
   day: longer than anybody takes from finding the bytes to storing a version.

A reader who has found a blob has the grace period to read it: it was needed when that began, or it was just uploaded.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence, Set
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol, TypeAlias

from prometheus_client import CollectorRegistry, Counter

from maas.names import BlobName, VersionName
from maas_registry.domain.blobs import Blob
from maas_registry.domain.changes import Author, Clock
from maas_runtime.failures import Conflict, Failure

logger = logging.getLogger(__name__)

REMOVAL_LEASE = timedelta(minutes=10)
REMOVED_KEPT = timedelta(days=1)
_REMOVED_AT_ONCE = 500


PurgeExpired: TypeAlias = Callable[[Author], Awaitable[Sequence[VersionName]]]
"""Gives up the files of versions that were deleted long enough ago."""

_AUTHOR = Author("maas-registry", "the time to restore it is over")


class BlobBeingRemoved(Conflict):
    """Nobody used the blob for long, and it is being removed at this moment."""

    reason = "BLOB_BEING_REMOVED"


class RemovalState(Enum):
    """See above."""

    UNUSED = "unused"
    REMOVING = "removing"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Removal:
    """A row: since when a blob is in its state."""

    name: BlobName
    state: RemovalState
    since: datetime

    def is_under_way(self, now: datetime) -> bool:
        """Whether somebody may be removing its bytes right now."""
        return self.state is RemovalState.REMOVING and now < self.since + REMOVAL_LEASE


class GarbageStore(Protocol):
    """What records say of blobs, and the rows. Each method is one transaction."""

    async def needed(self) -> set[BlobName]:
        """Return the blobs that any record needs. Raises RecordUnreadable."""
        ...

    async def removals(self) -> list[Removal]:
        """Return all rows."""
        ...

    async def note_unused(self, names: Collection[BlobName], now: datetime) -> None:
        """Let those that have no row, or are REMOVED and yet there, be UNUSED from now on."""
        ...

    async def forget(self, names: Collection[BlobName], removed_before: datetime) -> None:
        """Take away the UNUSED rows of these, and all REMOVED ones that are older."""
        ...

    async def begin_removing(
        self, names: Collection[BlobName], unused_before: datetime, now: datetime
    ) -> set[BlobName]:
        """Let those be REMOVING that were UNUSED before that time, or whose lease is over, and return them."""
        ...

    async def end_removing(
        self, removed: Collection[BlobName], needed: Collection[BlobName], began: datetime, now: datetime
    ) -> None:
        """Let what became REMOVING at `began` be REMOVED, or have no row because it is needed."""
        ...


class GarbageBlobs(Protocol):
    """The bytes."""

    def list(self) -> AsyncIterator[Blob]:
        """Yield all blobs that are committed or damaged, in any order."""
        ...

    async def remove(self, name: BlobName) -> None:
        """Remove a blob's bytes, if they are there."""
        ...

    async def drop_abandoned(self) -> int:
        """Remove unfinished uploads that nobody went on with for a week, and return how many there were."""
        ...


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection found and did."""

    blobs: int
    blob_bytes: int
    unused: int
    """How many of them no record needs."""
    unused_bytes: int
    removed: int
    """How many of these were unused for the whole grace period, and went; or would have, in a dry run."""
    removed_bytes: int
    purged_versions: int
    """How many versions were deleted long enough ago to give up their files."""
    dropped_uploads: int
    """How many unfinished uploads were given up."""
    dry_run: bool


class GarbageMetrics:
    """What was removed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.removed = Counter("maas_registry_removed_bytes", "Bytes of blobs that nobody needed.", registry=registry)
        self.failed = Counter("maas_registry_failed_collections", "Collections that did not end.", registry=registry)


class Garbage:
    """The rules of removal."""

    def __init__(
        self, store: GarbageStore, blobs: GarbageBlobs, purge_expired: PurgeExpired, clock: Clock, grace: timedelta
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._purge_expired = purge_expired
        self._clock = clock
        self._grace = grace

    async def collect(self, *, dry_run: bool) -> Collected:
        """Remove what nobody needed for the grace period. A dry run changes nothing and says what would go."""
        dropped = 0 if dry_run else await self._blobs.drop_abandoned()
        purged = [] if dry_run else await self._purge_expired(_AUTHOR)
        # First the blobs, then the records: what is stored and then recorded in between is needed.
        sizes = {blob.name: blob.stored_bytes async for blob in self._blobs.list()}
        needed = await self._store.needed()
        now = self._clock()
        rows = {row.name: row for row in await self._store.removals()}
        unused = sizes.keys() - needed
        due = {row.name for row in rows.values() if self._is_due(row, unused, now)}
        removed = due
        if not dry_run:
            await self._store.note_unused(unused - due, now)
            await self._store.forget(rows.keys() - unused, now - REMOVED_KEPT)
            removed = await self._remove(sorted(due, key=str), now - self._grace)
        return Collected(
            blobs=len(sizes),
            blob_bytes=sum(sizes.values()),
            unused=len(unused),
            unused_bytes=sum(sizes[name] for name in unused),
            removed=len(removed & sizes.keys()),
            removed_bytes=sum(sizes.get(name, 0) for name in removed),
            purged_versions=len(purged),
            dropped_uploads=dropped,
            dry_run=dry_run,
        )

    async def collect_regularly(self, every_seconds: float, metrics: GarbageMetrics) -> None:
        """Collect again and again. What fails is tried again the next time."""
        while True:
            await asyncio.sleep(every_seconds)
            try:
                collected = await self.collect(dry_run=False)
            except Failure as failure:
                metrics.failed.inc()
                logger.warning("cannot collect", extra={"reason": failure.reason, "detail": failure.message})
            else:
                metrics.removed.inc(collected.removed_bytes)
                logger.info("collected", extra=asdict(collected))

    def _is_due(self, row: Removal, unused: Set[BlobName], now: datetime) -> bool:
        match row.state:
            case RemovalState.UNUSED:
                return row.name in unused and row.since <= now - self._grace
            case RemovalState.REMOVING:
                return not row.is_under_way(now)
            case RemovalState.REMOVED:
                return False

    async def _remove(self, due: Sequence[BlobName], unused_before: datetime) -> set[BlobName]:
        removed: set[BlobName] = set()
        for start in range(0, len(due), _REMOVED_AT_ONCE):
            began, begun_at = self._clock(), time.monotonic()
            mine = await self._store.begin_removing(due[start : start + _REMOVED_AT_ONCE], unused_before, began)
            needed = mine & await self._store.needed()
            gone: set[BlobName] = set()
            try:
                for name in mine - needed:
                    if time.monotonic() - begun_at > REMOVAL_LEASE.total_seconds() / 2:
                        break  # the next collection goes on
                    await self._blobs.remove(name)
                    gone.add(name)
            finally:
                await self._store.end_removing(gone, needed, began, self._clock())
            removed |= gone
        return removed

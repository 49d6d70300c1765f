"""The rules of versions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from maas.names import AliasName, ModelName, VersionName
from maas_registry.domain.blobs import Blobs
from maas_registry.domain.changes import Author, ChangeKind, Clock, check_read_time
from maas_registry.domain.details import LEGAL_TRANSITIONS, Evaluation, Measurement, VersionDetails, VersionState
from maas_registry.domain.filters import required_texts
from maas_registry.domain.listing import Place, Query, Slice, keeps, place_in, slice_as_stored, slice_in_order
from maas_registry.domain.model_rules import living_model, model_not_found
from maas_registry.domain.models import (
    MAX_FINDINGS,
    AliasNotFound,
    StateTransitionIllegal,
    TooManyFindings,
    VersionDeleted,
    VersionInUse,
    VersionNotFound,
    VersionOfOtherModel,
    check_can_come_back,
    deletion_at,
    record_changed,
)
from maas_registry.domain.package_check import check_package
from maas_registry.domain.store import ModelStore, ModelWriter
from maas_registry.domain.versions import Version, VersionContent, VersionDraft

STORED_ORDER = ("number", "create_time")


class Versions:
    """Makes, changes, deletes and finds versions."""

    def __init__(self, store: ModelStore, blobs: Blobs, clock: Clock) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock

    async def create(self, model: ModelName, draft: VersionDraft, request_id: str, author: Author) -> Version:
        """Check the package and store it with the next number; a request id that was seen returns its version.

        Raises ModelNotFound, ModelDeleted, VersionNotFound, VersionDeleted, VersionOfOtherModel, BlobNotFound, or what
        is wrong with the package.
        """
        if await self._store.get_model(model) is None:
            raise model_not_found(model)
        if request_id and (made := await self._store.get_version_of_request(model, request_id)):
            return made
        parent = draft.provenance.parent_version
        if parent is not None:
            check_same_model("version.parent_version", parent, model)
            await self.get(parent)
        files, signature = await check_package(draft, self._blobs)
        content = VersionContent(files, draft.provenance, signature)

        async def create(writer: ModelWriter) -> Version:
            if request_id and (made := await writer.get_version_of_request(model, request_id)):
                return made
            await living_model(writer, model)
            if parent is not None:
                await living_version(writer, parent)
            return await writer.add_version(model, content, draft.details, request_id)

        return await self._store.write(author, create)

    async def get(self, name: VersionName | AliasName, at: datetime | None = None) -> Version:
        """Return the version, also a deleted one, or the one an alias points to.

        Raises ModelNotFound, VersionNotFound, AliasNotFound or ReadTimeInFuture.
        """
        check_read_time(at, self._clock)
        version = await self._store.get_version(name, at)
        if version is not None:
            return version
        model = await self._store.get_model(name.model, at)
        if model is None:
            raise model_not_found(name.model, at)
        then = "" if at is None else f" at {at.isoformat()}"
        match name:
            case VersionName():
                newest = model.latest_version or "none yet"
                raise VersionNotFound(f"there is no {name}{then}; the newest is {newest}", name=str(name))
            case AliasName():
                raise AliasNotFound(f"there is no {name}{then}: `maas models alias` sets one", name=str(name))

    async def list(
        self, model: ModelName, query: Query, after: VersionName | Place | None, limit: int
    ) -> Slice[Version]:
        """Return versions behind `after`, a Place unless the order is that of numbers.

        Raises ModelNotFound, ReadTimeInFuture or TooManyToOrder.
        """
        check_read_time(query.at, self._clock)
        if await self._store.get_model(model, query.at) is None:
            raise model_not_found(model, query.at)
        order, begin = query.order, after if isinstance(after, VersionName) else None
        as_stored = order.field in STORED_ORDER
        wanted = required_texts(query.filter)

        async def fetch(last: Version | None, size: int) -> Sequence[Version]:
            return await self._store.list_versions(
                model,
                begin if last is None else last.name,
                size,
                descending=order.descending or not as_stored,
                wanted=wanted,
                at=query.at,
            )

        if as_stored:
            return await slice_as_stored(fetch, keeps(query), limit)
        place = after if isinstance(after, Place) else None
        return await slice_in_order(fetch, keeps(query), limit, place_in(order), place)

    async def update(
        self, name: VersionName, etag: str, author: Author, change: Callable[[VersionDetails], VersionDetails]
    ) -> Version:
        """Change description, tags or state. What it has already leaves no trace.

        Raises ModelNotFound, VersionNotFound, ModelDeleted, VersionDeleted, RecordChanged, StateTransitionIllegal, or
        VersionInUse when one that is deployed would not be ready any more.
        """

        async def update(writer: ModelWriter) -> Version:
            await living_model(writer, name.model)
            present = await living_version(writer, name)
            _check_etag(present, etag)
            wanted = change(present.details)
            if wanted == present.details:
                return present
            _check_transition(present, wanted.state)
            return await writer.put_version(name, wanted, ChangeKind.UPDATED)

        return await self._store.write(author, update)

    async def add_evaluation(self, name: VersionName, evaluation: Evaluation, author: Author) -> Version:
        """Add an evaluation, in place of one of the same metric and rows.

        Raises ModelNotFound, VersionNotFound, ModelDeleted, VersionDeleted or TooManyFindings.
        """

        def of(one: Evaluation) -> tuple[object, ...]:
            return one.metric, one.dataset_version, one.split

        def add(details: VersionDetails, now: datetime) -> VersionDetails:
            others = tuple(one for one in details.evaluations if of(one) != of(evaluation))
            return replace(details, evaluations=(*others, replace(evaluation, create_time=now)))

        return await self._add(name, author, add)

    async def add_measurement(self, name: VersionName, measurement: Measurement, author: Author) -> Version:
        """Add a measurement, in place of one on the same engine and hardware.

        Raises ModelNotFound, VersionNotFound, ModelDeleted, VersionDeleted or TooManyFindings.
        """

        def of(one: Measurement) -> tuple[object, ...]:
            return one.engine, one.hardware

        def add(details: VersionDetails, now: datetime) -> VersionDetails:
            others = tuple(one for one in details.measurements if of(one) != of(measurement))
            return replace(details, measurements=(*others, replace(measurement, create_time=now)))

        return await self._add(name, author, add)

    async def delete(self, name: VersionName, etag: str, author: Author) -> None:
        """Delete the version.

        Raises ModelNotFound, VersionNotFound, also when it is deleted already, ModelDeleted, RecordChanged or
        VersionInUse.
        """

        async def delete(writer: ModelWriter) -> None:
            await living_model(writer, name.model)
            present = await writer.get_version(name)
            if present is None or present.details.deletion is not None:
                raise version_not_found(name)
            _check_etag(present, etag)
            await _check_unused(writer, present)
            wanted = replace(present.details, deletion=deletion_at(writer.now))
            await writer.put_version(name, wanted, ChangeKind.DELETED)

        await self._store.write(author, delete)

    async def undelete(self, name: VersionName, author: Author) -> Version:
        """Bring a deleted version back.

        Raises ModelNotFound, VersionNotFound, ModelDeleted, VersionDeleted of its parent, NotDeleted or
        DeletionExpired.
        """

        async def undelete(writer: ModelWriter) -> Version:
            await living_model(writer, name.model)
            present = await writer.get_version(name)
            if present is None:
                raise version_not_found(name)
            check_can_come_back(name, present.details.deletion, writer.now)
            if (parent := present.content.provenance.parent_version) is not None:
                await living_version(writer, parent)
            return await writer.put_version(name, replace(present.details, deletion=None), ChangeKind.UNDELETED)

        return await self._store.write(author, undelete)

    async def purge_expired(self, author: Author) -> Sequence[VersionName]:
        """Give up the files of all versions that were deleted long enough ago, and return their names.

        Their records stay. What nobody else has of their blobs may be removed from then on.
        """

        async def purge(writer: ModelWriter) -> list[VersionName]:
            purged = []
            for version in await writer.expired_versions():
                deletion = version.details.deletion or deletion_at(writer.now)
                gone = replace(version.details, deletion=replace(deletion, purge_time=writer.now))
                await writer.put_version(version.name, gone, ChangeKind.PURGED)
                purged.append(version.name)
            return purged

        return await self._store.write(author, purge)

    async def _add(
        self, name: VersionName, author: Author, add: Callable[[VersionDetails, datetime], VersionDetails]
    ) -> Version:
        async def change(writer: ModelWriter) -> Version:
            await living_model(writer, name.model)
            wanted = add((await living_version(writer, name)).details, writer.now)
            if max(len(wanted.evaluations), len(wanted.measurements)) > MAX_FINDINGS:
                raise TooManyFindings(f"{name} has {MAX_FINDINGS} of these: it takes no more", name=str(name))
            return await writer.put_version(name, wanted, ChangeKind.UPDATED)

        return await self._store.write(author, change)


async def living_version(writer: ModelWriter, name: VersionName) -> Version:
    """Return a version that is not deleted. Raises VersionNotFound or VersionDeleted."""
    version = await writer.get_version(name)
    if version is None:
        raise version_not_found(name)
    if version.details.deletion is not None:
        raise VersionDeleted(f"{name} is deleted: `maas models restore` brings it back", name=str(name))
    return version


def version_not_found(name: VersionName) -> VersionNotFound:
    """Return the failure."""
    return VersionNotFound(f"there is no {name}", name=str(name))


def check_same_model(field_name: str, version: VersionName, model: ModelName) -> None:
    """Raise VersionOfOtherModel."""
    if version.model != model:
        raise VersionOfOtherModel(f"{field_name}: {version} is not a version of {model}")


def _check_etag(version: Version, etag: str) -> None:
    if etag and etag != version.etag:
        raise record_changed(str(version.name))


def _check_transition(version: Version, wanted: VersionState) -> None:
    present = version.details.state
    if wanted is present:
        return
    if (present, wanted) not in LEGAL_TRANSITIONS:
        raise StateTransitionIllegal(
            f"{version.name} is {present.value} and cannot become {wanted.value}", name=str(version.name)
        )
    if version.details.held_by:
        raise _deployed(version)


async def _check_unused(writer: ModelWriter, version: Version) -> None:
    name = version.name
    if version.details.held_by:
        raise _deployed(version)
    if (alias := await writer.alias_of(name)) is not None:
        raise VersionInUse(f"{name} has the alias {alias.alias_id}: move or remove it first", name=str(name))
    if (child := await writer.child_of(name)) is not None:
        raise VersionInUse(f"{name} is the parent of {child}: delete that first", name=str(name))


def _deployed(version: Version) -> VersionInUse:
    holders = ", ".join(map(str, version.details.held_by))
    return VersionInUse(f"{version.name} is deployed by {holders}: end that first", name=str(version.name))

"""The rules of models."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from maas.names import ModelName
from maas_registry.domain.changes import Author, ChangeKind, Clock, check_read_time
from maas_registry.domain.details import ModelDetails
from maas_registry.domain.listing import (
    Place,
    Query,
    Slice,
    keeps,
    place_in,
    slice_as_stored,
    slice_in_order,
)
from maas_registry.domain.models import (
    Model,
    ModelDeleted,
    ModelExists,
    ModelNotFound,
    VersionInUse,
    check_can_come_back,
    check_etag,
    deletion_at,
)
from maas_registry.domain.store import ModelStore, ModelWriter


class Models:
    """Makes, changes, deletes and finds models."""

    def __init__(self, store: ModelStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def create(self, name: ModelName, details: ModelDetails, author: Author) -> Model:
        """Store a model without versions. Raises ModelExists."""

        async def create(writer: ModelWriter) -> Model:
            if await writer.get_model(name) is not None:
                raise ModelExists(f"{name} is there already, or was: names are given once", name=str(name))
            return await writer.put_model(name, details, ChangeKind.CREATED)

        return await self._store.write(author, create)

    async def get(self, name: ModelName, at: datetime | None = None) -> Model:
        """Return the model, also a deleted one. Raises ModelNotFound or ReadTimeInFuture."""
        check_read_time(at, self._clock)
        model = await self._store.get_model(name, at)
        if model is None:
            raise model_not_found(name, at)
        return model

    async def list(self, query: Query, after: ModelName | Place | None, limit: int) -> Slice[Model]:
        """Return models behind `after`, a Place unless the order is that of names.

        Raises ReadTimeInFuture or TooManyToOrder.
        """
        check_read_time(query.at, self._clock)
        order, begin = query.order, after if isinstance(after, ModelName) else None
        by_name = order.field == "name"

        async def fetch(last: Model | None, size: int) -> Sequence[Model]:
            return await self._store.list_models(
                begin if last is None else last.name, size, descending=by_name and order.descending, at=query.at
            )

        if by_name:
            return await slice_as_stored(fetch, keeps(query), limit)
        place = after if isinstance(after, Place) else None
        return await slice_in_order(fetch, keeps(query), limit, place_in(order), place)

    async def update(
        self, name: ModelName, etag: str, author: Author, change: Callable[[ModelDetails], ModelDetails]
    ) -> Model:
        """Change description or tags. What it has already leaves no trace.

        Raises ModelNotFound, ModelDeleted or RecordChanged.
        """

        async def update(writer: ModelWriter) -> Model:
            present = await living_model(writer, name)
            check_etag(present, etag)
            wanted = change(present.details)
            if wanted == present.details:
                return present
            return await writer.put_model(name, wanted, ChangeKind.UPDATED)

        return await self._store.write(author, update)

    async def delete(self, name: ModelName, etag: str, author: Author) -> None:
        """Delete the model. Raises ModelNotFound, also when it is deleted already, RecordChanged or VersionInUse."""

        async def delete(writer: ModelWriter) -> None:
            present = await writer.get_model(name)
            if present is None or present.details.deletion is not None:
                raise model_not_found(name)
            check_etag(present, etag)
            if (alias := await writer.alias_of(name)) is not None:
                raise VersionInUse(f"{name} has the alias {alias}: remove its aliases first", name=str(name))
            if (hold := await writer.hold_of(name)) is not None:
                raise VersionInUse(f"{hold.version} is deployed by {hold.holder}: end that first", name=str(name))
            wanted = replace(present.details, deletion=deletion_at(writer.now))
            await writer.put_model(name, wanted, ChangeKind.DELETED)

        await self._store.write(author, delete)

    async def undelete(self, name: ModelName, author: Author) -> Model:
        """Bring a deleted model back. Raises ModelNotFound, NotDeleted or DeletionExpired."""

        async def undelete(writer: ModelWriter) -> Model:
            present = await writer.get_model(name)
            if present is None:
                raise model_not_found(name)
            check_can_come_back(name, present.details.deletion, writer.now)
            return await writer.put_model(name, replace(present.details, deletion=None), ChangeKind.UNDELETED)

        return await self._store.write(author, undelete)


async def living_model(writer: ModelWriter, name: ModelName) -> Model:
    """Return a model that may be changed. Raises ModelNotFound or ModelDeleted."""
    model = await writer.get_model(name)
    if model is None:
        raise model_not_found(name)
    if model.details.deletion is not None:
        raise ModelDeleted(f"{name} is deleted: `maas models restore` brings it back", name=str(name))
    return model


def model_not_found(name: ModelName, at: datetime | None = None) -> ModelNotFound:
    """Return the failure."""
    then = "" if at is None else f" at {at.isoformat()}"
    return ModelNotFound(f"there is no {name}{then}: `maas models ls` shows those there are", name=str(name))

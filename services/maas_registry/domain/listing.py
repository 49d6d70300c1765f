"""Pages of models and versions: which ones, in what order, and where the next page begins.

In the order in which they are stored, a page reads on from where the last one ended. In another order all of them are
looked through for each page, so their number is bounded.
"""

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from maas.names import VersionName
from maas_registry.domain.filters import EVERYTHING, Fields, Filter, Kind, Order, Value, matches
from maas_registry.domain.models import Model
from maas_registry.domain.versions import Version
from maas_runtime.failures import NotAllowedNow

_BATCH = 250
_MAX_SCANNED = 1_000
MAX_ORDERED = 10_000

MODEL_FIELDS: Fields = {
    "name": Kind.TEXT,
    "description": Kind.TEXT,
    "tags": Kind.TEXTS_BY_KEY,
    "version_count": Kind.NUMBER,
    "create_time": Kind.TIME,
    "update_time": Kind.TIME,
}
MODEL_ORDERS: Fields = {
    "name": Kind.TEXT,
    "version_count": Kind.NUMBER,
    "create_time": Kind.TIME,
    "update_time": Kind.TIME,
}
BY_NAME = Order("name")

VERSION_FIELDS: Fields = {
    "number": Kind.NUMBER,
    "state": Kind.TEXT,
    "description": Kind.TEXT,
    "tags": Kind.TEXTS_BY_KEY,
    "parent_version": Kind.TEXT,
    "source_job": Kind.TEXT,
    "dataset_version": Kind.TEXT,
    "code_revision": Kind.TEXT,
    "recipe": Kind.TEXT,
    "task": Kind.TEXT,
    "architecture": Kind.TEXT,
    "size_bytes": Kind.NUMBER,
    "held_by": Kind.TEXT,
    "create_time": Kind.TIME,
    "update_time": Kind.TIME,
    "metrics": Kind.NUMBERS_BY_KEY,
}
VERSION_ORDERS: Fields = {
    "number": Kind.NUMBER,
    "size_bytes": Kind.NUMBER,
    "create_time": Kind.TIME,
    "update_time": Kind.TIME,
    "metrics": Kind.NUMBERS_BY_KEY,
}
NEWEST_FIRST = Order("number", descending=True)


class TooManyToOrder(NotAllowedNow):
    """There are more than can be put into this order."""

    reason = "TOO_MANY_TO_ORDER"


@dataclass(frozen=True, slots=True)
class Query:
    """Which ones somebody wants to see, in what order, and as at what time (None: now)."""

    order: Order
    filter: Filter = EVERYTHING
    show_deleted: bool = False
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item stands in an order: what it is ordered by, if it has that, then its name."""

    missing: bool
    value: float
    name: str

    def __str__(self) -> str:
        return json.dumps([self.missing, self.value, self.name])

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Raises ValueError."""
        try:
            missing, value, name = json.loads(text)
            return cls(bool(missing), float(value), str(name))
        except (TypeError, RecursionError, OverflowError) as error:
            raise ValueError(f"{text[:100]!r} is no place") from error

    @property
    def rank(self) -> tuple[bool, float, str]:
        """What places are compared by."""
        return self.missing, self.value, self.name


ItemT = TypeVar("ItemT", Model, Version)


@dataclass(frozen=True, slots=True)
class Slice(Generic[ItemT]):
    """A part of a list, and the key behind which the next part begins; empty on the last."""

    items: Sequence[ItemT]
    next_key: str


async def slice_as_stored(
    fetch: Callable[[ItemT | None, int], Awaitable[Sequence[ItemT]]], keep: Callable[[ItemT], bool], limit: int
) -> Slice[ItemT]:
    """Return the next items that are to be kept, in the order in which `fetch` gives them.

    `fetch` returns the items behind the last one that it returned; None at first. It looks at a bounded number of
    items, so a slice may be short, or empty, and not be the last.
    """
    kept: list[ItemT] = []
    last: ItemT | None = None
    scanned, size = 0, limit + 1
    while True:
        batch = await fetch(last, size)
        for item in batch:
            if keep(item):
                kept.append(item)
            if len(kept) > limit:
                return Slice(kept[:limit], str(kept[limit - 1].name))
        scanned += len(batch)
        if len(batch) < size:
            return Slice(kept, "")
        last, size = batch[-1], _BATCH
        if scanned >= _MAX_SCANNED:
            return Slice(kept, str(last.name))


async def slice_in_order(
    fetch: Callable[[ItemT | None, int], Awaitable[Sequence[ItemT]]],
    keep: Callable[[ItemT], bool],
    limit: int,
    place: Callable[[ItemT], Place],
    after: Place | None,
) -> Slice[ItemT]:
    """Return the items behind a place in another order. Raises TooManyToOrder."""
    kept: list[ItemT] = []
    last: ItemT | None = None
    scanned = 0
    while batch := await fetch(last, _BATCH):
        scanned += len(batch)
        if scanned > MAX_ORDERED:
            raise TooManyToOrder(
                f"there are more than {MAX_ORDERED} to put into this order: filter by state or parent_version, or take "
                "them in the order in which they are stored",
                name="order_by",
            )
        kept += [item for item in batch if keep(item)]
        last = batch[-1]
        if len(batch) < _BATCH:
            break
    ordered = sorted(kept, key=lambda item: place(item).rank)
    behind = [item for item in ordered if after is None or place(item).rank > after.rank]
    page = behind[:limit]
    return Slice(page, str(place(page[-1])) if len(behind) > limit else "")


def keeps(query: Query) -> Callable[[Model | Version], bool]:
    """Return what says whether an item is wanted."""

    def keep(item: Model | Version) -> bool:
        if item.details.deletion is not None and not query.show_deleted:
            return False
        return query.filter is EVERYTHING or matches(query.filter, lambda field, key: value_of(item, field, key))

    return keep


def place_in(order: Order) -> Callable[[Model | Version], Place]:
    """Return what says where an item stands in the order."""

    def place(item: Model | Version) -> Place:
        found = value_of(item, order.field, order.key)
        number = found.timestamp() if isinstance(found, datetime) else found
        name = item.name
        text = f"{name.number:018d}" if isinstance(name, VersionName) else name.model_id
        if not isinstance(number, float) or math.isnan(number):
            return Place(True, 0.0, text)
        return Place(False, -number if order.descending else number, text)

    return place


def value_of(item: Model | Version, field: str, key: str) -> Value | None:
    """Return what a model or version has in a field of MODEL_FIELDS or VERSION_FIELDS."""
    match field:
        case "description":
            return item.details.description
        case "tags":
            return item.details.tags.get(key)
        case "create_time":
            return item.create_time
        case "update_time":
            return item.update_time
    return _value_of_model(item, field) if isinstance(item, Model) else _value_of_version(item, field, key)


def _value_of_model(model: Model, field: str) -> Value | None:
    return float(model.version_count) if field == "version_count" else str(model.name)


def _value_of_version(version: Version, field: str, key: str) -> Value | None:
    provenance, signature = version.content.provenance, version.content.signature
    match field:
        case "number":
            return float(version.name.number)
        case "size_bytes":
            return float(version.size_bytes)
        case "metrics":
            return version.metric(key)
        case "state":
            return version.details.state.value
        case "held_by":
            return " ".join(map(str, version.details.held_by)) or None
        case "parent_version":
            return _text(provenance.parent_version)
        case "source_job":
            return _text(provenance.source_job)
        case "dataset_version":
            return _text(provenance.dataset_version)
        case "code_revision":
            return provenance.code_revision or None
        case "recipe":
            return " ".join(provenance.recipe) or None
        case "task":
            return signature.task
        case _:
            return signature.architecture or None


def _text(name: object | None) -> str | None:
    return None if name is None else str(name)

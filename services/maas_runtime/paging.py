"""Page tokens: where a page ended, bound to the query that it is a page of."""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from maas.names import NameInvalid
from maas_runtime.failures import FieldViolation, InvalidInput

DEFAULT_PAGE_SIZE = 100

KeyT = TypeVar("KeyT")
ItemT = TypeVar("ItemT")


class PageTokenInvalid(InvalidInput):
    """A page token is not one that this query returned."""

    reason = "PAGE_TOKEN_INVALID"


@dataclass(frozen=True, slots=True)
class Page(Generic[ItemT]):
    """A part of a list, and the token that asks for the next part; empty on the last."""

    items: Sequence[ItemT]
    next_page_token: str


def page_token(query: str, last: object) -> str:
    """Return the token of the page behind `last`, the key of a page's last item.

    `query` holds everything that the next page has to have in common with this one, but the page size.
    """
    return base64.urlsafe_b64encode(f"{query}\n{last}".encode()).decode().rstrip("=")


def read_page_token(query: str, token: str, parse: Callable[[str], KeyT]) -> KeyT | None:
    """Return the key behind which the page begins; None for the first page, whose token is empty.

    `parse` makes the key of its text, and raises ValueError (NameInvalid is one). Raises PageTokenInvalid.
    """
    if not token:
        return None
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
        of_query, _, last = text.partition("\n")
        if of_query == query:
            return parse(last)
    except (binascii.Error, NameInvalid, ValueError) as error:
        raise _invalid() from error
    raise _invalid()


def page_size_or_default(page_size: int) -> int:
    """Return how many items a page may have; a request that does not say gets 100."""
    return page_size or DEFAULT_PAGE_SIZE


def cut_page(query: str, items: Sequence[ItemT], page_size: int, key: Callable[[ItemT], object]) -> Page[ItemT]:
    """Return the first `page_size` items, with a token when there are more: ask the store for one more than that."""
    page = items[:page_size]
    return Page(page, page_token(query, key(page[-1])) if len(items) > page_size else "")


def _invalid() -> PageTokenInvalid:
    return PageTokenInvalid(
        "the page token is not from this query: begin again without one",
        violations=(FieldViolation("page_token", "is not from this query"),),
    )

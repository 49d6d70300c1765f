"""How work on a whole registry says how far it is, and does several things at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeAlias, TypeVar

Tell: TypeAlias = Callable[[str, int, int], None]
"""Told of what is done, how much of it is done, and how much there is."""

ItemT = TypeVar("ItemT")


def tell_nobody(what: str, done: int, total: int) -> None:
    """Be told of progress that nobody looks at."""


async def for_each(items: Iterable[ItemT], work: Callable[[ItemT], Awaitable[None]], at_once: int) -> None:
    """Do the work on every item, on some at once. The first failure ends it."""

    async def do(rest: Iterator[ItemT]) -> None:
        for item in rest:
            await work(item)

    rest = iter(items)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(do(rest))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None

"""Work that has to come to its end, whoever stops waiting for it."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

ResultT = TypeVar("ResultT")


async def to_its_end(work: Awaitable[ResultT]) -> ResultT:
    """Return what `work` returns. A caller who is cancelled stays until it has ended, and is cancelled then.

    For short work that cannot be stopped in the middle without harm: what comes next finds nobody still at it.
    """
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()  # seen: nobody is left to be told
        raise

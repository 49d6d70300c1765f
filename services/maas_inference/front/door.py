"""Lets Envoy itself refuse a share of the requests, so that those that are answered find time.

A request that Python refuses has come through Envoy and two threads, and goes back the same way. Under a load of
several times what can be computed the refusals then take the time of the answers. A filter of Envoy's in front of this
one refuses a percentage at the headers; which percentage, this module says, up to twenty times a second.
"""

import asyncio
import contextlib
import logging

from maas_inference.front.envoy_filter import REFUSED_PERCENT_KEY
from maas_inference.front.serving import Serving

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.05
_CALL_SECONDS = 1.0
_LET_IN = 1.15
"""So many times what was accepted is let in: some must be refused here, or nobody would notice that the load went."""
_OPENING = 1.3
"""So much more is let in when nothing had to be refused here."""
_LEAST = 0.05


def share_to_let_in(share: float, came: int, refused: int) -> float:
    """Return what share of the requests Envoy should let in, from what came through the present one.

    `refused` is how many of those that came were refused here all the same.
    """
    if refused:
        # Half way, because the counts of a twentieth of a second are few.
        share *= (1 + _LET_IN * (came - refused) / came) / 2
    else:
        share *= _OPENING
    return min(1.0, max(_LEAST, share))


class Door:
    """Tells Envoy which share to refuse."""

    def __init__(self, serving: Serving, admin_socket: str) -> None:
        self._serving = serving
        self._admin_socket = admin_socket
        self._let_in = 1.0
        self._told = 0

    async def keep(self) -> None:
        """Follow the load, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._let_in = share_to_let_in(self._let_in, *self._serving.take_turned_away())
            percent = round(100 * (1 - self._let_in))
            if percent != self._told and await self._tell(percent):
                self._told = percent

    async def _tell(self, percent: int) -> bool:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CALL_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._admin_socket)
                try:
                    path = f"/runtime_modify?{REFUSED_PERCENT_KEY}={percent}"
                    writer.write(f"POST {path} HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\n\r\n".encode())
                    return b" 200 " in await reader.readline()
                finally:
                    writer.close()
        logger.debug("Envoy was not told", extra={"percent": percent})
        return False

"""A standalone front whose batching can be switched while it runs: only for bench/self_tuning.py.

    POST /bench/batching {"lanes": 1, "slots": 2, "hold_ms": 2.0}      a fixed setting
    POST /bench/batching {}                                            the front's own

A fixed setting sends at most `slots` batches to the worker at once, to so many lanes of it, and holds a batch that is
not full until its oldest request is `hold_ms` old. One process for all, so that nothing but the decision differs.
"""

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from maas_inference.front import serving
from maas_inference.front.batching import Release, rules_for
from maas_inference.front.tuning import Tuner
from maas_inference.front.version_queue import VersionQueue

PATH = "/bench/batching"


@dataclass(slots=True)
class Batching:
    """The setting of the moment; without slots it is the front's own."""

    lanes: int = 0
    slots: int = 0
    hold_seconds: float = 0.0


_batching = Batching()


class SwitchableQueue(VersionQueue):
    """A queue that the fixed setting rules, if there is one."""

    _timer: asyncio.TimerHandle | None = None
    _own_tuner: Tuner | None = None

    def _pump(self) -> None:
        if self._own_tuner is None:
            self._own_tuner = self._tuner
            self._idle_tuner = Tuner(rules_for(1)[:1])  # with nothing to try it learns nothing
        if not _batching.slots:
            self._tuner = self._own_tuner
            super()._pump()
            return
        self._tuner = self._idle_tuner
        self._pump_scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._link is not None and self._waiting.rows and len(self._in_flight) < _batching.slots:
            now = time.monotonic()
            if self._waiting.rows < self._max_rows:
                left = self._waiting.oldest_arrival() + _batching.hold_seconds - now
                if left > 0:
                    self._timer = self._loop.call_later(left, self._schedule_pump)
                    return
            lane = min(range(_batching.lanes), key=lambda index: self._lanes[index].batches)
            self._send(self._link, Release(lane, "fixed"), now)


serving.VersionQueue = SwitchableQueue  # type: ignore[misc]

from maas_inference.front import application  # noqa: E402


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Be the front, and switch."""
    if scope["type"] != "http" or scope["path"] != PATH:
        await application.app(scope, receive, send)
        return
    wanted = json.loads((await receive())["body"])
    _batching.lanes = wanted.get("lanes", 0)
    _batching.slots = wanted.get("slots", 0)
    _batching.hold_seconds = wanted.get("hold_ms", 0.0) / 1000
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def main() -> None:
    """Become Envoy, as maas_inference.front does, with this application."""
    from maas_inference.front.__main__ import FrontSettings, bootstrap
    from maas_inference.front.envoy_filter import APPLICATION, envoy_environment
    from maas_runtime.envoy import envoy_binary
    from maas_runtime.settings import Environment

    settings = FrontSettings.read(Environment(os.environ))
    config = json.dumps(bootstrap(settings)).replace(APPLICATION, "switchable_front:app")
    binary, environment = envoy_binary(), envoy_environment(os.environ, settings.admin_socket)
    os.chdir(settings.run_dir)
    arguments = ["--config-yaml", config, "--concurrency", str(settings.concurrency), "--log-level", "warn"]
    os.execve(binary, [str(binary), *arguments, "--use-dynamic-base-id"], environment)


if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.abspath(__file__))
    main()

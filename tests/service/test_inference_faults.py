"""Faults of workers as callers meet them: manager, Envoy with the front, and workers as processes."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
import pytest_asyncio
from test_inference_serving import Rig, logits_of, make_package, some_tokens, started_rig, tokens_request, until

from maas.errors import from_rpc_error
from maas.rollout.v1 import deployment_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

VERSION = "models/tiny/versions/1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    folder = tmp_path_factory.mktemp("packages") / "1"
    make_package(folder, 1)
    async with started_rig({VERSION: folder}) as rig:
        yield rig


async def deploy(rig: Rig, name: str, **serving: Any) -> None:
    await rig.rollout.want(name, (VERSION, 1), serving=deployment_pb2.ServingSettings(**serving))
    await until(lambda: rig.rollout.state(name, VERSION) == deployment_pb2.TARGET_STATE_READY)
    await until(lambda: rig.is_serving(f"/v2/models/{name}/ready"))


async def worker(rig: Rig, name: str) -> Any:
    versions = (await rig.replica()).loaded_versions
    return next(version for version in versions if version.deployment == f"deployments/{name}")


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def asks(rig: Rig, name: str, stop: asyncio.Event, answered: list[int]) -> None:
    while not stop.is_set():
        assert logits_of(await rig.infer(tokens_request(some_tokens(1), name))).shape == (1, 2)
        answered[0] += 1


async def test_a_worker_that_hangs_is_ended_and_its_callers_are_answered_by_the_next(rig: Rig) -> None:
    timeout = deployment_pb2.ServingSettings()
    timeout.compute_timeout.FromMilliseconds(400)
    await deploy(rig, "hangs", compute_timeout=timeout.compute_timeout)
    await deploy(rig, "bystander")
    stop, answered = asyncio.Event(), [0]
    bystander = asyncio.ensure_future(asks(rig, "bystander", stop, answered))
    hung = (await worker(rig, "hangs")).pid
    os.kill(hung, signal.SIGSTOP)
    callers = [rig.infer(tokens_request(some_tokens(number), "hangs")) for number in range(8)]
    for answer in await asyncio.gather(*callers):
        assert logits_of(answer).shape == (1, 2)
    now = await worker(rig, "hangs")
    assert now.pid != hung
    assert now.restart_count == 1
    assert answered[0] > 10
    stop.set()
    await bystander


async def test_a_request_beyond_the_memory_limit_fails_alone(rig: Rig) -> None:
    await deploy(rig, "limited", worker_memory_bytes=200 << 20)
    stop, answered = asyncio.Event(), [0]
    others = asyncio.ensure_future(asks(rig, "limited", stop, answered))
    await until(lambda: answered[0] > 10)
    huge = tokens_request(np.ones((1024, 4000), np.int64), "limited")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.infer(huge, timeout=60)
    assert from_rpc_error(caught.value).code == "UNAVAILABLE"
    seen = answered[0]
    await until(lambda: answered[0] > seen + 10)
    stop.set()
    await others
    await rig.rollout.want("limited")


async def test_settings_of_a_deployment_reach_its_worker_without_a_failed_request(rig: Rig) -> None:
    await deploy(rig, "changed")
    stop, answered = asyncio.Event(), [0]
    callers = [asyncio.ensure_future(asks(rig, "changed", stop, answered)) for _ in range(4)]
    await until(lambda: answered[0] > 20)
    before = await worker(rig, "changed")
    assert [cost.rows for cost in before.cost_curve] == [1, 2, 4, 8, 16, 32]
    await rig.rollout.want("changed", (VERSION, 1), serving=deployment_pb2.ServingSettings(max_batch_rows=4))

    async def has_other_settings() -> bool:
        now = await worker(rig, "changed")
        return now.state == "ready" and [cost.rows for cost in now.cost_curve] == [1, 2, 4]

    await until(has_other_settings)
    seen = answered[0]
    await until(lambda: answered[0] > seen + 20)
    stop.set()
    await asyncio.gather(*callers)
    await until(lambda: not is_there(before.pid))
    await rig.rollout.want("changed")


async def test_memory_comes_back_when_a_deployment_ends(rig: Rig) -> None:
    await deploy(rig, "ends")
    ends = await worker(rig, "ends")
    assert ends.memory_bytes > 10 << 20
    await rig.rollout.want("ends")
    await until(lambda: not is_there(ends.pid))


async def test_under_overload_envoy_refuses_what_the_front_could_not_and_stops_when_the_load_ends(
    tmp_path: Path,
) -> None:
    make_package(tmp_path / "1", 1)
    async with started_rig({VERSION: tmp_path / "1"}) as rig:
        await deploy(rig, "busy", max_batch_rows=8)
        question = tokens_request(some_tokens(1, rows=8, length=500), "busy")
        reasons: Counter[str] = Counter()
        stop = asyncio.Event()

        async def insists() -> None:
            while not stop.is_set():
                try:
                    await rig.infer(question, timeout=0.05)
                    reasons["answered"] += 1
                except grpc.aio.AioRpcError as error:
                    failure = from_rpc_error(error)
                    reasons[failure.reason or failure.code] += 1

        callers = [asyncio.ensure_future(insists()) for _ in range(60)]

        async def most_are_refused_by_envoy() -> bool:
            return await refused_by_envoy(rig) > 500 and await refused_percent(rig) > 0

        await until(most_are_refused_by_envoy)
        stop.set()
        await asyncio.gather(*callers)
        assert set(reasons) <= {"answered", "QUEUE_TOO_LONG", "DEADLINE_EXCEEDED"}
        assert reasons["QUEUE_TOO_LONG"] > 500

        async def nothing_is_refused_any_more() -> bool:
            return await refused_percent(rig) == 0

        await until(nothing_is_refused_any_more)
        assert logits_of(await rig.infer(question)).shape == (8, 2)


async def admin(rig: Rig, path: str) -> str:
    """Return a page of Envoy's admin interface."""
    connector = aiohttp.UnixConnector(str(next((rig.folder / "run").glob("front-*-admin.sock"))))
    async with aiohttp.ClientSession(connector=connector) as session, session.get(f"http://envoy{path}") as response:
        return await response.text()


async def refused_by_envoy(rig: Rig) -> int:
    return int((await admin(rig, "/stats?filter=aborts_injected")).rpartition(": ")[2] or 0)


async def refused_percent(rig: Rig) -> int:
    values = json.loads(await admin(rig, "/runtime"))["entries"]
    return int(values.get("maas.front.refused_percent", {"final_value": "0"})["final_value"])

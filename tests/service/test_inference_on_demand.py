"""Many versions in bounded memory, as processes: loaded when asked for, let go for others, never in mid-answer."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import grpc
import numpy as np
import pytest
import pytest_asyncio
from test_inference_serving import Rig, direct, logits_of, make_package, some_tokens, started_rig, tokens_request, until

from maas.errors import from_rpc_error
from maas.rollout.v1 import deployment_pb2
from maas_inference.manager.memory import proportional_bytes

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUDGET_BYTES = 155_000_000
"""Three workers and no fourth: one takes 35 to 42 MB."""
ON_DEMAND = deployment_pb2.ServingSettings(load_policy=deployment_pb2.LOAD_POLICY_ON_DEMAND)
MODELS = 8


def version_of(number: int) -> str:
    return f"models/tiny/versions/{number}"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    for seed in range(1, MODELS + 1):
        make_package(folder / str(seed), seed)
    return {version_of(seed): folder / str(seed) for seed in range(1, MODELS + 1)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(packages: dict[str, Path]) -> AsyncIterator[Rig]:
    async with started_rig(packages, MAAS_INFERENCE_MEMORY_BYTES=str(BUDGET_BYTES)) as rig:
        for number in range(1, MODELS + 1):
            await rig.rollout.want(f"m{number}", (version_of(number), 1), serving=ON_DEMAND)
        await until(lambda: all(is_deployed(rig, number) for number in range(1, MODELS + 1)))
        await until(rig.is_serving)
        yield rig


def is_deployed(rig: Rig, number: int) -> bool:
    states = (deployment_pb2.TARGET_STATE_READY, deployment_pb2.TARGET_STATE_UNLOADED)
    return rig.rollout.state(f"m{number}", version_of(number)) in states


async def loaded(rig: Rig) -> dict[str, int]:
    """Process ids by deployment."""
    return {
        one.deployment.removeprefix("deployments/"): one.pid for one in (await rig.replica()).loaded_versions if one.pid
    }


async def ask(rig: Rig, number: int, packages: dict[str, Path]) -> None:
    """Ask a model, again where it says that it may be asked again, and compare with a direct call."""
    tokens = some_tokens(number, rows=2)
    async with asyncio.timeout(30):
        while True:
            try:
                answer = await rig.infer(tokens_request(tokens, f"m{number}"))
                break
            except grpc.aio.AioRpcError as error:
                assert from_rpc_error(error).reason == "NO_ROOM_TO_LOAD", error.details()
                await asyncio.sleep(0.05)
    np.testing.assert_allclose(logits_of(answer), direct(packages[version_of(number)], tokens), rtol=1e-4, atol=1e-6)


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_nothing_is_loaded_before_it_is_asked_for_and_yet_all_is_known_of_it(rig: Rig) -> None:
    assert await loaded(rig) == {}
    async with rig.http.get(rig.url + "/v2/models/m1") as response:
        assert [tensor["name"] for tensor in (await response.json())["inputs"]] == ["tokens", "text"]


async def test_the_first_requests_wait_for_the_load_and_are_answered(rig: Rig, packages: dict[str, Path]) -> None:
    await asyncio.gather(*(ask(rig, 1, packages) for _ in range(10)))
    assert set(await loaded(rig)) == {"m1"}


async def test_the_least_recently_used_makes_room_and_its_memory_comes_back(
    rig: Rig, packages: dict[str, Path]
) -> None:
    await ask(rig, 1, packages)
    first = (await loaded(rig))["m1"]
    for number in range(2, MODELS + 1):
        await ask(rig, number, packages)
    assert not is_there(first), "the whole process has ended, so all of its memory is back"
    await ask(rig, 1, packages)


async def test_the_budget_is_kept_while_callers_ask_for_all_models_at_once(rig: Rig, packages: dict[str, Path]) -> None:
    numbers = random.Random(1).choices(range(1, MODELS + 1), k=16)
    used: list[int] = []
    done = False

    async def caller(mine: list[int]) -> None:
        for number in mine:
            await ask(rig, number, packages)

    async def sample() -> None:
        while not done:
            used.append(sum(map(proportional_bytes, (await loaded(rig)).values())))
            await asyncio.sleep(0.02)

    sampling = asyncio.ensure_future(sample())
    await asyncio.gather(*(caller(numbers[first::3]) for first in range(3)))
    done = True
    await sampling
    # What grows is noticed when it is measured, every two seconds.
    assert max(used) <= BUDGET_BYTES * 1.05
    assert sum(one > BUDGET_BYTES for one in used) <= len(used) / 4
    assert max(used) > BUDGET_BYTES / 4


async def test_what_is_in_use_is_not_let_go_and_the_others_hear_at_once_that_there_is_no_room(
    rig: Rig, packages: dict[str, Path]
) -> None:
    held: list[int] = []
    asked: list[asyncio.Future[object]] = []
    try:
        for number in (1, 2, 3):
            await ask(rig, number, packages)
            held.append((await loaded(rig))[f"m{number}"])
            os.kill(held[-1], signal.SIGSTOP)
            asked.append(asyncio.ensure_future(rig.infer(tokens_request(some_tokens(number), f"m{number}"), 60)))
        await until(lambda: reports_use(rig, 3))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.infer(tokens_request(some_tokens(4), "m4"), timeout=10)
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == ("UNAVAILABLE", "NO_ROOM_TO_LOAD")
        assert "MiB" in error.message
    finally:
        for pid in held:
            os.kill(pid, signal.SIGCONT)
    for answer in asked:
        assert await answer
    await ask(rig, 4, packages)


async def reports_use(rig: Rig, busy: int) -> bool:
    """Whether the manager has heard from the front that so many versions are in use."""
    connector = aiohttp.UnixConnector(path=str(rig.folder / "metrics.sock"))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://maas/metrics") as response:
        lines = (await response.text()).splitlines()
    counts = [line for line in lines if line.startswith("maas_inference_version_in_use{") and line.endswith(" 1.0")]
    return len(counts) == busy


async def test_a_deployment_that_is_always_loaded_takes_its_memory_from_the_others(
    rig: Rig, packages: dict[str, Path]
) -> None:
    for number in range(1, 5):
        await ask(rig, number, packages)
    await rig.deploy("always", (version_of(5), 1))
    for number in range(1, 4):
        await ask(rig, number, packages)
    assert "always" in await loaded(rig)
    await rig.rollout.want("always")
    await until(lambda: is_gone(rig, "always"))


async def is_gone(rig: Rig, deployment: str) -> bool:
    return deployment not in await loaded(rig)


async def test_a_new_version_is_loaded_before_the_loaded_one_goes(rig: Rig, packages: dict[str, Path]) -> None:
    await ask(rig, 1, packages)
    stop = False
    versions = set()

    async def caller() -> None:
        while not stop:
            versions.add((await rig.infer(tokens_request(some_tokens(1), "m1"))).model_version)

    async with asyncio.TaskGroup() as callers:
        for _ in range(4):
            callers.create_task(caller())
        await until(lambda: versions == {"1"})
        await rig.rollout.want("m1", (version_of(2), 1), serving=ON_DEMAND)
        await until(lambda: versions == {"1", "2"})
        stop = True
    await rig.rollout.want("m1", (version_of(1), 1), serving=ON_DEMAND)
    await until(lambda: is_deployed(rig, 1))


async def test_a_version_that_cannot_be_loaded_says_why_to_its_caller_and_to_rollout(
    rig: Rig, packages: dict[str, Path], tmp_path: Path
) -> None:
    engine = deployment_pb2.ServingSettings(load_policy=deployment_pb2.LOAD_POLICY_ON_DEMAND, engine="nothing:fp8")
    await rig.rollout.want("broken", (version_of(6), 1), serving=engine)
    await until(lambda: rig.rollout.state("broken", version_of(6)) == deployment_pb2.TARGET_STATE_UNLOADED)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.infer(tokens_request(some_tokens(1), "broken"), timeout=20)
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == ("UNAVAILABLE", "VERSION_NOT_READY")
    assert "nothing:fp8" in error.message
    await until(lambda: rig.rollout.state("broken", version_of(6)) == deployment_pb2.TARGET_STATE_FAILED)
    await rig.rollout.want("broken", (version_of(6), 1), serving=ON_DEMAND)
    await until(lambda: rig.rollout.state("broken", version_of(6)) != deployment_pb2.TARGET_STATE_FAILED)
    assert logits_of(await rig.infer(tokens_request(some_tokens(6), "broken"))).shape == (1, 2)
    await rig.rollout.want("broken")


async def test_a_killed_manager_comes_back_with_nothing_loaded_and_loads_what_is_asked_for(
    rig: Rig, packages: dict[str, Path]
) -> None:
    await ask(rig, 1, packages)
    rig.processes["manager"].kill()
    rig.processes["manager"].wait()
    rig.start("manager", "maas_inference")
    await ask(rig, 2, packages)
    assert set(await loaded(rig)) <= {"m1", "m2"}

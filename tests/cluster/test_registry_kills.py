"""The registry, killed at random points of uploads, registrations and alias moves. `make test-kill` kills 200 times."""

import os

import pytest
from registry_kills import KilledRegistry
from registry_processes import registry_process

pytestmark = pytest.mark.cluster

KILLS = int(os.environ.get("MAAS_TEST_KILLS", "6"))
SEED = int(os.environ.get("MAAS_TEST_SEED", "5"))


async def test_what_was_acknowledged_is_there_after_every_kill_and_nothing_is_there_by_half() -> None:
    with registry_process() as process:
        process.kill()
        found = await KilledRegistry(process, SEED, progress=print).run(KILLS)
    print(found)
    assert not found.faults
    assert set(found.acknowledged) == {"uploads", "registrations", "alias moves"}

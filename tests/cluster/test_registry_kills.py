"""The registry, killed at random points of uploads, registrations and alias moves. `make test-kill`: 200 times."""

import os

import pytest
from postgresql_server import PostgresqlServer
from registry_kills import KilledRegistry
from registry_processes import RegistryProcess, registry_process
from s3_server import S3Server

pytestmark = pytest.mark.cluster

KILLS = int(os.environ.get("MAAS_TEST_KILLS", "5"))
SEED = int(os.environ.get("MAAS_TEST_SEED", "5"))


async def test_every_kill_leaves_what_was_acknowledged_and_nothing_by_half_in_the_default_stores() -> None:
    with registry_process() as process:
        await kill_again_and_again(process)


async def test_every_kill_leaves_what_was_acknowledged_and_nothing_by_half_in_postgresql_and_s3(
    postgresql: PostgresqlServer, s3: S3Server
) -> None:
    variables = {
        "MAAS_REGISTRY_DATABASE_URL": postgresql.new_database(),
        "MAAS_REGISTRY_BLOBS_URL": s3.new_bucket(),
    }
    with registry_process(variables) as process:
        await kill_again_and_again(process)


async def kill_again_and_again(process: RegistryProcess) -> None:
    process.kill()
    found = await KilledRegistry(process, SEED, progress=print).run(KILLS)
    print(found)
    assert not found.faults
    assert {"uploads", "registrations", "alias moves"} <= set(found.acknowledged)

"""`python -m maas_registry.upkeep verify | migrate | gc`: the program behind `maas registry`.

Works on the stores that the settings name, and needs no running registry. Writes a JSON object a line to stdout: how
far it is (`progress`), and at the end what it found (`result`), or `failure` and `reason`.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from maas_registry.domain.blobs import Blobs
from maas_registry.domain.changes import utc_now
from maas_registry.domain.garbage import Collected, Garbage
from maas_registry.domain.version_rules import Versions
from maas_registry.settings import StoreSettings
from maas_registry.storage.sql_garbage import SqlGarbageStore
from maas_registry.storage.sql_models import SqlModelStore
from maas_registry.storage.stores import open_stores
from maas_registry.upkeep.move import move
from maas_registry.upkeep.verification import Verification, verify
from maas_runtime.database.sqlite import SqliteFile
from maas_runtime.failures import Failure, NotFound

_TELL_SECONDS = 0.1


class RegistryNotFound(NotFound):
    """Nothing was ever stored where the settings say."""

    reason = "REGISTRY_NOT_FOUND"


def main() -> int:
    """Be the program."""
    parser = argparse.ArgumentParser(prog="python -m maas_registry.upkeep")
    commands = parser.add_subparsers(dest="command", required=True)
    verifying = commands.add_parser("verify")
    verifying.add_argument("--hash", action="store_true")
    moving = commands.add_parser("migrate")
    moving.add_argument("--to-database", required=True)
    moving.add_argument("--to-blobs", required=True)
    collecting = commands.add_parser("gc")
    collecting.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    found: Verification | Collected
    try:
        match options.command:
            case "verify":
                found = asyncio.run(_verify(options.hash))
            case "migrate":
                found = asyncio.run(_move(options))
            case _:
                found = asyncio.run(_collect(options.dry_run))
    except Failure as failure:
        _write({"failure": failure.message, "reason": failure.reason})
        return 1
    _write({"result": asdict(found)})
    return 0


async def _verify(hashing: bool) -> Verification:
    async with open_stores(_existing(StoreSettings.from_env(os.environ))) as stores:
        return await verify(stores.database, stores.blobs, _Teller().tell, hashing=hashing)


async def _move(options: argparse.Namespace) -> Verification:
    settings = _existing(StoreSettings.from_env(os.environ))
    async with (
        open_stores(settings) as source,
        open_stores(settings.moved(options.to_database, options.to_blobs)) as target,
    ):
        return await move(source, target, _Teller().tell)


async def _collect(dry_run: bool) -> Collected:
    settings = _existing(StoreSettings.from_env(os.environ))
    async with open_stores(settings) as stores:
        store = SqlGarbageStore(stores.database, utc_now)
        versions = Versions(SqlModelStore(stores.database), Blobs(stores.blobs, max_bytes=0), utc_now)
        grace = timedelta(seconds=settings.gc_grace_seconds)
        garbage = Garbage(store, stores.blobs, versions.purge_expired, utc_now, grace)
        return await garbage.collect(dry_run=dry_run)


def _existing(settings: StoreSettings) -> StoreSettings:
    """Return the settings, unless opening them would make a registry where there is none."""
    match settings.database:
        case SqliteFile(path) if not path.exists():
            raise RegistryNotFound(f"there is no registry at {path}: is MAAS_HOME or --home right?", name=str(path))
    return settings


class _Teller:
    """Writes how far the work is, some times a second."""

    def __init__(self) -> None:
        self._next = 0.0

    def tell(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next or done == total:
            self._next = now + _TELL_SECONDS
            _write({"progress": {"what": what, "done": done, "total": total}})


def _write(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    sys.exit(main())

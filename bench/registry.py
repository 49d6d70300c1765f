"""make bench-registry: the registry as a process, on SQLite and a folder and on PostgreSQL and S3; five tables.

    python bench/registry.py                          # all, without keeping the results
    python bench/registry.py --only transfers,reads
    python bench/registry.py --only kills --kills 20 --seed 6

  transfers     one large artifact there and back by the client library, beside `sha256sum` of the same file
  reads         Get, alias resolve and List with 100,000 versions stored
  writers       50 clients that register at once
  refused       hostile packages and uploads
  kills         `kill -9` at random points of uploads, registrations and alias moves

PostgreSQL is the real server, S3 is moto's over HTTP; both on this machine, as the clients are.
"""

import argparse
import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "tests" / "service"))  # servers and packages of the tests

from postgresql_server import PostgresqlServer, started_postgresql
from registry_hostile import Answer, Memory, attack, watched
from registry_kills import Found, KilledRegistry
from registry_processes import registry_process
from registry_reads import describe_reads, fill, measure_reads
from registry_transfers import describe_transfers, measure_transfers
from registry_writers import describe_writers, measure_writers
from report import add_arguments, machine, publish, say, table, today
from s3_server import started_s3

PARTS = ("transfers", "reads", "writers", "refused", "kills")
CLIENTS = 50
VERSIONS = 200


@dataclass(frozen=True, slots=True)
class Stores:
    """Where a registry keeps its records and its blobs."""

    name: str
    variables: Mapping[str, str]


def main() -> None:
    """Measure; print and with --write keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=PARTS, type=lambda text: text.split(","), help=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="of the transfers")
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the artifact")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured time of one kind of read")
    parser.add_argument("--kills", type=int, default=200, help="on each pair of stores")
    parser.add_argument("--seed", type=int, default=5, help="of the kills")
    add_arguments(parser)
    arguments = parser.parse_args()
    numbers: dict[str, list[Any]] = {part: [] for part in arguments.only}
    with started_postgresql(durable=True) as postgresql:
        for kind in (sqlite_and_folder, postgresql_and_s3):
            for part in arguments.only:
                with kind(postgresql) as stores:
                    numbers[part] += measure(part, stores, arguments)
    for part, rows in numbers.items():
        about = f"{today()}; {machine()}; registry, clients and stores share the cores."
        text = f"{about}\n\n{DESCRIBE[part](rows)}"
        publish(f"registry-{part}", text, [asdict(row) for row in rows], arguments)


@contextlib.contextmanager
def sqlite_and_folder(_: PostgresqlServer) -> Iterator[Stores]:
    """The embedded default."""
    yield Stores("SQLite, folder", {})


@contextlib.contextmanager
def postgresql_and_s3(postgresql: PostgresqlServer) -> Iterator[Stores]:
    """A database without tables and an empty bucket."""
    with started_s3() as s3:
        variables = {
            "MAAS_REGISTRY_DATABASE_URL": postgresql.new_database(),
            "MAAS_REGISTRY_BLOBS_URL": s3.new_bucket(),
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
        yield Stores("PostgreSQL, S3", variables)


def measure(part: str, stores: Stores, arguments: argparse.Namespace) -> list[Any]:
    """Return the rows of one table for one pair of stores."""
    with registry_process(stores.variables) as registry:
        match part:
            case "transfers":
                return [measure_transfers(stores.name, registry, arguments.megabytes * 10**6, arguments.rounds)]
            case "reads":
                filled = fill(registry)
                say(f"{stores.name}: filled in {filled.seconds:.0f} s")
                return measure_reads(stores.name, registry, filled.read_time, arguments.seconds)
            case "writers":
                return [measure_writers(stores.name, registry, CLIENTS, VERSIONS)]
            case "refused":
                with watched(registry.pid) as memory:
                    answers = attack(registry.endpoint)
                return [Refused(stores.name, refused_by_row(answers), memory)]
            case _:
                registry.kill()
                killed = KilledRegistry(registry, arguments.seed, lambda text: say(f"{stores.name}: {text}"))
                return [Kills(stores.name, asyncio.run(killed.run(arguments.kills)))]


@dataclass(frozen=True, slots=True)
class Kills:
    """What kills came to on one pair of stores."""

    stores: str
    found: Found


def describe_kills(measured: list[Kills]) -> str:
    """Return the Markdown."""
    head = ["stores", "kills at work", "kills at the start", "acknowledged", "cut off", "faults", "verified"]
    rows = []
    for one in measured:
        found = one.found
        rows.append(
            [
                one.stores,
                str(found.kills["working"]),
                str(found.kills["starting"]),
                ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.acknowledged.items())),
                ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.cut_off.items())),
                str(len(found.faults)),
                f"{found.verifications} times",
            ]
        )
        for fault in found.faults:
            say(f"{one.stores}: {fault}")
    return table(head, rows)


@dataclass(frozen=True, slots=True)
class Refused:
    """How much of what is hostile was refused for the right reason, and what the process held, in bytes."""

    stores: str
    counts: dict[str, tuple[int, int]]
    memory: Memory


def refused_by_row(answers: Sequence[Answer]) -> dict[str, tuple[int, int]]:
    """Return how many were refused, and how many were sent, by kind."""
    sent = Counter(answer.hostile.row for answer in answers)
    refused = Counter(answer.hostile.row for answer in answers if answer.is_right)
    return {row: (refused[row], count) for row, count in sent.items()}


def describe_refused(measured: list[Refused]) -> str:
    """Return the Markdown."""
    rows = list(measured[0].counts)
    head = ["stores", *rows, "memory before / peak / after MB"]
    lines = []
    for one in measured:
        counts = [f"{refused} of {sent}" for refused, sent in (one.counts[row] for row in rows)]
        held = (one.memory.before, one.memory.peak, one.memory.after)
        lines.append([one.stores, *counts, " / ".join(f"{size / 2**20:.0f}" for size in held)])
    return table(head, lines)


DESCRIBE = {
    "transfers": describe_transfers,
    "reads": describe_reads,
    "writers": describe_writers,
    "refused": describe_refused,
    "kills": describe_kills,
}


if __name__ == "__main__":
    main()

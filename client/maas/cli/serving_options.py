"""The serving settings of a deployment, as options and as text."""

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from maas.cli.output import bytes_text
from maas.errors import InvalidInputError

if TYPE_CHECKING:
    from maas.rollout.v1.deployment_pb2 import ServingSettings

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*")

MaxBatchRows = Annotated[int | None, typer.Option(min=1, max=1024, help="The most rows of one batch.")]
MaxQueueDelay = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="The longest that rows are held back for a larger batch: 5ms; 0s is never."),
]
MaxQueueRows = Annotated[int | None, typer.Option(min=1, max=1_000_000, help="The most rows that wait.")]
Cache = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory for answers that are given again to equal requests: 64MB.")
]
OnDemand = Annotated[
    bool | None,
    typer.Option(
        "--on-demand/--always",
        help="Load at the first request and let go when others need the memory; or at once, and keep loaded.",
        show_default=False,
    ),
]
Engine = Annotated[
    str | None, typer.Option(metavar="NAME[:PRECISION]", help="The engine instead of the fastest: openvino:bf16.")
]
WorkerMemory = Annotated[str | None, typer.Option(metavar="SIZE", help="The most memory of one worker: 2GB.")]
ComputeTimeout = Annotated[
    str | None, typer.Option(metavar="TIME", help="A worker that computes one batch for longer is ended: 10s.")
]


def serving_settings(
    max_batch_rows: int | None,
    max_queue_delay: str | None,
    max_queue_rows: int | None,
    cache: str | None,
    on_demand: bool | None,
    engine: str | None,
    worker_memory: str | None,
    compute_timeout: str | None,
) -> "ServingSettings":
    """Return the message with the fields that were given. Raises InvalidInputError."""
    from maas.rollout.v1.deployment_pb2 import LOAD_POLICY_ALWAYS, LOAD_POLICY_ON_DEMAND, ServingSettings

    settings = ServingSettings(
        max_batch_rows=max_batch_rows or 0,
        max_queue_rows=max_queue_rows or 0,
        cache_bytes=0 if cache is None else parse_bytes(cache),
        engine=engine or "",
        worker_memory_bytes=0 if worker_memory is None else parse_bytes(worker_memory),
    )
    if on_demand is not None:
        settings.load_policy = LOAD_POLICY_ON_DEMAND if on_demand else LOAD_POLICY_ALWAYS
    if max_queue_delay is not None:
        settings.max_queue_delay.FromTimedelta(timedelta(seconds=parse_seconds(max_queue_delay)))
    if compute_timeout is not None:
        settings.compute_timeout.FromTimedelta(timedelta(seconds=parse_seconds(compute_timeout)))
    return settings


def serving_text(settings: "ServingSettings") -> list[tuple[str, str]]:
    """Return name and value of each setting that is not left to the replica."""
    from maas.rollout.v1.deployment_pb2 import LOAD_POLICY_ON_DEMAND

    shown = [("load policy", "on demand" if settings.load_policy == LOAD_POLICY_ON_DEMAND else "always")]
    if settings.max_batch_rows:
        shown.append(("max batch rows", str(settings.max_batch_rows)))
    if settings.HasField("max_queue_delay"):
        shown.append(("max queue delay", _seconds_text(settings.max_queue_delay.ToTimedelta())))
    if settings.max_queue_rows:
        shown.append(("max queue rows", str(settings.max_queue_rows)))
    if settings.cache_bytes:
        shown.append(("cache", bytes_text(settings.cache_bytes)))
    if settings.engine:
        shown.append(("engine", settings.engine))
    if settings.worker_memory_bytes:
        shown.append(("worker memory", bytes_text(settings.worker_memory_bytes)))
    if settings.HasField("compute_timeout"):
        shown.append(("compute timeout", _seconds_text(settings.compute_timeout.ToTimedelta())))
    return shown


def parse_seconds(text: str) -> float:
    """Return the seconds of `5ms`, `1.5s`, `2min`. Raises InvalidInputError."""
    return _parse(text, _SECONDS, "a time such as 5ms or 10s")


def parse_bytes(text: str) -> int:
    """Return the bytes of `64MB`, `2GiB`. Raises InvalidInputError."""
    return round(_parse(text, _BYTES, "a size such as 64MB or 2GiB"))


def _parse(text: str, units: dict[str, float] | dict[str, int], wanted: str) -> float:
    found = _QUANTITY.fullmatch(text)
    if found is None or found[2] not in units:
        raise InvalidInputError(f"{text!r} is not {wanted}; units: {', '.join(units)}", reason="OPTION_INVALID")
    return float(found[1]) * units[found[2]]


def _seconds_text(value: timedelta) -> str:
    seconds = value.total_seconds()
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"

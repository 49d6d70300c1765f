"""What a front has counted since it began, as it is sent to the manager: bare numbers, which cost the front little."""

from dataclasses import dataclass

SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets of a histogram of times; one bucket more has what is above."""
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
"""The same of a histogram of rows."""


@dataclass(frozen=True, slots=True)
class HistogramCounts:
    """How many values fell into each bucket, and their sum."""

    counts: list[int]
    sum: float


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """How often answers were looked up, and how many bytes are kept."""

    hits: int
    misses: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class VersionCounts:
    """The numbers of one version of a deployment."""

    deployment: str
    version: str
    queue: HistogramCounts
    """Seconds of a request from its arrival to its batch's release."""
    wait: HistogramCounts
    """Seconds of a batch from its release to its answer, without the computing: sockets and a busy engine."""
    compute: HistogramCounts
    """Seconds of a batch in the engine."""
    total: HistogramCounts
    """Seconds of a request from its arrival to its answer."""
    batch_rows: HistogramCounts
    releases: dict[str, int]
    """Batches by why they were released."""
    statuses: dict[str, int]
    """Answered requests by gRPC status."""
    cache: CacheCounts | None = None


@dataclass(frozen=True, slots=True)
class FrontCounts:
    """All numbers of a front. `refused`: (status, reason, count) of requests that reached no version."""

    versions: tuple[VersionCounts, ...] = ()
    refused: tuple[tuple[str, str, int], ...] = ()

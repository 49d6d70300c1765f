"""What the front counts, cheaply: plain lists in the hot path. The manager turns them into Prometheus' types."""

from bisect import bisect_left
from collections import Counter

from maas_inference.counts import ROWS, SECONDS, CacheCounts, FrontCounts, HistogramCounts, VersionCounts
from maas_inference.front.answer_cache import AnswerCache


class Histogram:
    """Counts of values in buckets; observing is a search in a short tuple and two additions."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def counts(self) -> HistogramCounts:
        """Return what was counted."""
        return HistogramCounts(self._counts.copy(), self._sum)


class VersionMetrics:
    """Numbers of one version of a deployment; counts.VersionCounts says what each is."""

    __slots__ = ("batch_rows", "cache", "compute", "queue", "releases", "statuses", "total", "wait")

    def __init__(self) -> None:
        self.queue = Histogram(SECONDS)
        self.wait = Histogram(SECONDS)
        self.compute = Histogram(SECONDS)
        self.total = Histogram(SECONDS)
        self.batch_rows = Histogram(ROWS)
        self.releases: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.cache: AnswerCache | None = None

    def counts(self, deployment: str, version: str) -> VersionCounts:
        """Return what was counted."""
        cache = self.cache
        return VersionCounts(
            deployment,
            version,
            queue=self.queue.counts(),
            wait=self.wait.counts(),
            compute=self.compute.counts(),
            total=self.total.counts(),
            batch_rows=self.batch_rows.counts(),
            releases=dict(self.releases),
            statuses=dict(self.statuses),
            cache=CacheCounts(cache.hits, cache.misses, cache.size_bytes) if cache else None,
        )


class FrontMetrics:
    """All numbers of a front."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, str], VersionMetrics] = {}
        self._refused: Counter[tuple[str, str]] = Counter()

    def of_version(self, deployment: str, version: str) -> VersionMetrics:
        """Return the numbers of a version, which live as long as the front."""
        return self._versions.setdefault((deployment, version), VersionMetrics())

    def count_refused(self, status: str, reason: str) -> None:
        """Count a request that reached no version."""
        self._refused[status, reason] += 1

    def counts(self) -> FrontCounts:
        """Return what was counted."""
        return FrontCounts(
            tuple(metrics.counts(*key) for key, metrics in self._versions.items()),
            tuple((status, reason, count) for (status, reason), count in self._refused.items()),
        )

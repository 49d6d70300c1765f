"""What the front counts, cheaply: plain lists in the hot path, Prometheus' types when somebody looks."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from maas_inference.front.answer_cache import AnswerCache

_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
_LABELS = ("deployment", "version")


class Histogram:
    """Counts of values in buckets; observing is a search in a short tuple and two additions."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, as often as it was seen."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def add_to(self, family: HistogramMetricFamily, labels: tuple[str, ...]) -> None:
        """Add the histogram to a family, with cumulative buckets as Prometheus has them."""
        total = 0
        buckets = []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric(labels, buckets, self._sum)


class VersionMetrics:
    """Numbers of one version of a deployment."""

    __slots__ = ("batch_rows", "cache", "compute", "queue", "releases", "statuses", "total", "wait")

    def __init__(self) -> None:
        self.queue = Histogram(_SECONDS)
        """A request's time from its arrival to its batch's release."""
        self.wait = Histogram(_SECONDS)
        """A batch's time from its release to its answer, without the computing: sockets and a busy engine."""
        self.compute = Histogram(_SECONDS)
        self.total = Histogram(_SECONDS)
        """A request's time from its arrival to its answer."""
        self.batch_rows = Histogram(_ROWS)
        self.releases: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.cache: AnswerCache | None = None


class FrontMetrics(Collector):
    """All numbers of a front."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._versions: dict[tuple[str, str], VersionMetrics] = {}
        self._refused: Counter[tuple[str, str]] = Counter()
        registry.register(self)

    def of_version(self, deployment: str, version: str) -> VersionMetrics:
        """Return the numbers of a version, which live as long as the front."""
        return self._versions.setdefault((deployment, version), VersionMetrics())

    def count_refused(self, status: str, reason: str) -> None:
        """Count a request that reached no version."""
        self._refused[status, reason] += 1

    def collect(self) -> Iterable[Metric]:
        """Return all families."""
        yield from self._histograms()
        requests = CounterMetricFamily(
            "maas_inference_requests", "Requests that a version answered, by gRPC status.", labels=(*_LABELS, "status")
        )
        releases = CounterMetricFamily(
            "maas_inference_batches", "Batches sent to workers, by why they were released.", labels=(*_LABELS, "reason")
        )
        for labels, metrics in self._versions.items():
            for status, count in metrics.statuses.items():
                requests.add_metric((*labels, status), count)
            for reason, count in metrics.releases.items():
                releases.add_metric((*labels, reason), count)
        refused = CounterMetricFamily(
            "maas_inference_refused_requests",
            "Requests that reached no version, by gRPC status and reason.",
            labels=("status", "reason"),
        )
        for (status, reason), count in self._refused.items():
            refused.add_metric((status, reason), count)
        yield from (requests, releases, refused, *self._caches())

    def _caches(self) -> Iterable[Metric]:
        lookups = CounterMetricFamily(
            "maas_inference_cache_lookups", "Requests that were looked up in the cache, by whether they were there.",
            labels=(*_LABELS, "result"),
        )  # fmt: skip
        size = GaugeMetricFamily(
            "maas_inference_cache_bytes", "Bytes of the answers that are kept for equal requests.", labels=_LABELS
        )
        for labels, metrics in self._versions.items():
            if metrics.cache is not None:
                lookups.add_metric((*labels, "hit"), metrics.cache.hits)
                lookups.add_metric((*labels, "miss"), metrics.cache.misses)
                size.add_metric(labels, metrics.cache.size_bytes)
        return (lookups, size)

    def _histograms(self) -> Iterator[Metric]:
        for attribute, name, documentation in (
            ("queue", "maas_inference_queue_seconds", "Time of a request from arrival to release in a batch."),
            ("wait", "maas_inference_batch_wait_seconds", "Time of a batch with its worker that was not computing."),
            ("compute", "maas_inference_compute_seconds", "Time of a batch in the engine."),
            ("total", "maas_inference_total_seconds", "Time of a request from arrival to answer."),
            ("batch_rows", "maas_inference_batch_rows", "Rows of a batch."),
        ):
            family = HistogramMetricFamily(name, documentation, labels=_LABELS)
            for labels, metrics in self._versions.items():
                getattr(metrics, attribute).add_to(family, labels)
            yield family


def exposition(registry: CollectorRegistry) -> str:
    """Return a registry's numbers as Prometheus reads them."""
    return generate_latest(registry).decode()

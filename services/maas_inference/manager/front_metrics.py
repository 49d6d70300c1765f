"""What fronts have counted, as Prometheus' families."""

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from maas_inference.counts import ROWS, SECONDS, FrontCounts, HistogramCounts

_LABELS = ("deployment", "version", "front")
_HISTOGRAMS = (
    ("queue", "maas_inference_queue_seconds", "Time of a request from arrival to release in a batch.", SECONDS),
    ("wait", "maas_inference_batch_wait_seconds", "Time of a batch with its worker that was not computing.", SECONDS),
    ("compute", "maas_inference_compute_seconds", "Time of a batch in the engine.", SECONDS),
    ("total", "maas_inference_total_seconds", "Time of a request from arrival to answer.", SECONDS),
    ("batch_rows", "maas_inference_batch_rows", "Rows of a batch.", ROWS),
)


def front_families(counts_by_front: Mapping[str, FrontCounts]) -> Iterable[Metric]:
    """Return all families; each sample is labelled with the front that counted it."""
    histograms = [
        (attribute, HistogramMetricFamily(name, documentation, labels=_LABELS), bounds)
        for attribute, name, documentation, bounds in _HISTOGRAMS
    ]
    requests = CounterMetricFamily(
        "maas_inference_requests", "Requests that a version answered, by gRPC status.", labels=(*_LABELS, "status")
    )
    batches = CounterMetricFamily(
        "maas_inference_batches", "Batches sent to workers, by why they were released.", labels=(*_LABELS, "reason")
    )
    lookups = CounterMetricFamily(
        "maas_inference_cache_lookups", "Requests looked up in the cache, by result.", labels=(*_LABELS, "result")
    )
    cached = GaugeMetricFamily(
        "maas_inference_cache_bytes", "Bytes of the answers that are kept for equal requests.", labels=_LABELS
    )
    refused = CounterMetricFamily(
        "maas_inference_refused_requests",
        "Requests that reached no version, by gRPC status and reason.",
        labels=("status", "reason", "front"),
    )
    for front, counts in counts_by_front.items():
        for version in counts.versions:
            labels = (version.deployment, version.version, front)
            for attribute, family, bounds in histograms:
                _add(family, labels, getattr(version, attribute), bounds)
            for status, count in version.statuses.items():
                requests.add_metric((*labels, status), count)
            for reason, count in version.releases.items():
                batches.add_metric((*labels, reason), count)
            if version.cache is not None:
                lookups.add_metric((*labels, "hit"), version.cache.hits)
                lookups.add_metric((*labels, "miss"), version.cache.misses)
                cached.add_metric(labels, version.cache.size_bytes)
        for status, reason, count in counts.refused:
            refused.add_metric((status, reason, front), count)
    return (*(family for _, family, _ in histograms), requests, batches, lookups, cached, refused)


def _add(
    family: HistogramMetricFamily, labels: tuple[str, ...], counted: HistogramCounts, bounds: tuple[float, ...]
) -> None:
    """Add a histogram with cumulative buckets, as Prometheus has them."""
    total = 0
    buckets = []
    for bound, count in zip((*map(str, bounds), "+Inf"), counted.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    family.add_metric(labels, buckets, counted.sum)

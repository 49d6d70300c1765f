"""What versions have answered, in the words of the Open Inference Protocol's statistics, from what fronts count."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from prometheus_client.metrics_core import Metric

_NANOSECONDS = 1e9


def statistics_of(families: Iterable[Metric], versions: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the JSON of the statistics of each (deployment, version), summed over all fronts."""
    counts: defaultdict[tuple[str, str], defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for family in families:
        for sample in family.samples:
            labels = sample.labels
            if "deployment" in labels and "version" in labels:
                name = sample.name.removeprefix("maas_inference_")
                if name == "requests_total":
                    name = "answered" if labels["status"] == "OK" else "failed"
                counts[labels["deployment"], labels["version"]][name] += sample.value
    return [_statistics(*version, counts[version]) for version in versions]


def _statistics(deployment: str, version: str, counted: defaultdict[str, float]) -> dict[str, Any]:
    def times(name: str) -> dict[str, int]:
        return {"count": int(counted[f"{name}_count"]), "ns": round(counted[f"{name}_sum"] * _NANOSECONDS)}

    return {
        "name": deployment,
        "version": version,
        "inference_count": int(counted["batch_rows_sum"]),
        "execution_count": int(counted["batch_rows_count"]),
        "inference_stats": {
            "success": times("total_seconds") | {"count": int(counted["answered"])},
            "fail": {"count": int(counted["failed"]), "ns": 0},
            "queue": times("queue_seconds"),
            "compute_infer": times("compute_seconds"),
        },
    }

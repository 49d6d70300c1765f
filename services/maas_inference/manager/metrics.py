"""What the manager knows of its workers, for Prometheus."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from maas_inference.manager.replica import Replica


class WorkerMetrics(Collector):
    """As last measured."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def collect(self) -> Iterable[Metric]:
        """Return memory, readiness and restarts of each held version."""
        labels = ("deployment", "version")
        memory = GaugeMetricFamily(
            "maas_inference_worker_memory_bytes", "Proportional set size of the engine worker.", labels=labels
        )
        ready = GaugeMetricFamily(
            "maas_inference_version_ready", "Whether the version has a warm worker (1) or not (0).", labels=labels
        )
        in_use = GaugeMetricFamily(
            "maas_inference_version_in_use",
            "Whether somebody used the version within the last second (1) or not (0).",
            labels=labels,
        )
        restarts = CounterMetricFamily(
            "maas_inference_worker_restarts", "How often the engine worker ended by itself.", labels=labels
        )
        for (deployment, version), keeper in sorted(self._replica.keepers.items()):
            key = (deployment.deployment_id, str(version.number))
            memory.add_metric(key, self._replica.memory_bytes(keeper))
            in_use.add_metric(key, float(self._replica.is_in_use((deployment, version))))
            ready.add_metric(key, float(keeper.is_ready))
            restarts.add_metric(key, keeper.keeping.restart_count)
        budget = GaugeMetricFamily(
            "maas_inference_memory_budget_bytes",
            "How much memory the engine workers may hold before versions on demand are let go.",
            value=self._replica.memory_budget_bytes,
        )
        used = GaugeMetricFamily(
            "maas_inference_memory_used_bytes",
            "How much memory the engine workers hold, those that are starting with what they are expected to take.",
            value=self._replica.memory_used_bytes(),
        )
        return (memory, ready, in_use, restarts, budget, used)

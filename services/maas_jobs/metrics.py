"""What a jobs process counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class JobMetrics:
    """Jobs of one kind: waiting, running, ended."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.waiting = Gauge("maas_jobs_waiting", "Jobs that wait for a free worker.", registry=registry)
        self.running = Gauge("maas_jobs_running", "Jobs that are worked on.", registry=registry)
        self.ended = Counter(
            "maas_jobs_ended", "Jobs that ended, by state and reason.", ["state", "reason"], registry=registry
        )
        self.seconds = Histogram(
            "maas_jobs_seconds",
            "Time from a job's begin to its end.",
            buckets=(1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400),
            registry=registry,
        )

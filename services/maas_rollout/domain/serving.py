"""How the requests to a deployment are queued, and how its workers are run."""

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum


class LoadPolicy(Enum):
    """When the versions of a deployment are loaded."""

    ALWAYS = "always"
    ON_DEMAND = "on_demand"


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """0, None and an empty text leave the decision to the replica."""

    max_batch_rows: int = 0
    max_queue_delay: timedelta | None = None
    max_queue_rows: int = 0
    cache_bytes: int = 0
    load_policy: LoadPolicy = LoadPolicy.ALWAYS
    engine: str = ""
    worker_memory_bytes: int = 0
    compute_timeout: timedelta | None = None


DEFAULT_SERVING = ServingSettings()

"""What may change of a model and of a version; the log holds it as it was after each change."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from maas.names import DatasetVersionName, DeploymentName


class VersionState(Enum):
    """PENDING -> READY | ARCHIVED; READY -> ARCHIVED; ARCHIVED -> READY."""

    PENDING = "pending"
    READY = "ready"
    ARCHIVED = "archived"


LEGAL_TRANSITIONS = {
    (VersionState.PENDING, VersionState.READY),
    (VersionState.PENDING, VersionState.ARCHIVED),
    (VersionState.READY, VersionState.ARCHIVED),
    (VersionState.ARCHIVED, VersionState.READY),
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Quality on held-out rows, with its 95 % confidence interval. `create_time` when it was added to a version.

    Without a dataset, on made-up inputs: that is how a model without texts is compared with its parent.
    """

    metric: str
    value: float
    low: float
    high: float
    row_count: int
    dataset_version: DatasetVersionName | None
    split: str
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """Size and speed of a version on the engine that serves it. `create_time` when it was added to a version."""

    servable_bytes: int
    package_bytes: int
    parameter_count: int
    nonzero_share: float
    latency_p50_ms: float
    latency_p99_ms: float
    throughput_rows: float
    peak_memory_bytes: int
    engine: str
    hardware: str
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Deletion:
    """When something was deleted, from when on its files may go, and when they went."""

    delete_time: datetime
    expire_time: datetime
    purge_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """What may change of a model."""

    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    deletion: Deletion | None = None


@dataclass(frozen=True, slots=True)
class VersionDetails:
    """What may change of a version."""

    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    state: VersionState = VersionState.READY
    evaluations: tuple[Evaluation, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    held_by: tuple[DeploymentName, ...] = ()
    deletion: Deletion | None = None

    @property
    def can_be_deployed(self) -> bool:
        """Whether a deployment may begin to serve it."""
        return self.state is VersionState.READY and self.deletion is None

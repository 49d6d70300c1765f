"""A version of a model, as a value."""

from dataclasses import dataclass
from datetime import datetime

from maas.names import BlobName, DatasetVersionName, JobName, VersionName
from maas_package.manifest import TensorSpec


@dataclass(frozen=True, slots=True)
class File:
    """One member of a stored folder."""

    path: str
    blob: BlobName
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ServableSpec:
    """One form in which a package can be served."""

    engine: str
    precision: str
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Signature:
    """What a package takes and gives. `architecture` and `text_input` are empty when there is none."""

    task: str
    architecture: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    text_input: str
    servables: tuple[ServableSpec, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Quality on held-out rows, with its 95 % confidence interval."""

    metric: str
    value: float
    low: float
    high: float
    row_count: int
    dataset_version: DatasetVersionName
    split: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """Size and speed of a version on the engine that serves it."""

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


@dataclass(frozen=True, slots=True)
class CompressionReport:
    """What compression changed; both sides measured in one run."""

    before: Measurement
    after: Measurement
    quality_before: Evaluation
    quality_after: Evaluation
    agreement: float
    smaller: bool
    faster: bool
    verdict: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the maker of a version says of it."""

    parent_version: VersionName | None = None
    description: str = ""
    source_job: JobName | None = None
    dataset_version: DatasetVersionName | None = None
    recipe: tuple[str, ...] = ()
    evaluation: Evaluation | None = None
    compression_report: CompressionReport | None = None


@dataclass(frozen=True, slots=True)
class VersionDraft:
    """A version that somebody wants stored: its members by path, and what is said of it."""

    members: tuple[tuple[str, BlobName], ...]
    provenance: Provenance = Provenance()


@dataclass(frozen=True, slots=True)
class VersionContent:
    """A version that was checked; all of it but its number."""

    files: tuple[File, ...]
    provenance: Provenance
    signature: Signature


@dataclass(frozen=True, slots=True)
class Version:
    """A stored version; it never changes."""

    name: VersionName
    content: VersionContent
    create_time: datetime

    @property
    def size_bytes(self) -> int:
        """All members together."""
        return sum(file.size_bytes for file in self.content.files)

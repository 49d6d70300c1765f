"""A version of a model, as a value."""

from dataclasses import dataclass, field
from datetime import datetime

from maas.names import BlobName, DatasetVersionName, JobName, VersionName
from maas_package.manifest import TensorSpec
from maas_registry.domain.details import Evaluation, Measurement, VersionDetails


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
class QualityDifference:
    """The result's quality minus the parent's on the same rows, with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SliceQuality:
    """Quality on the rows that have `slice` of `kind` in common."""

    kind: str
    slice: str
    row_count: int
    before: float
    after: float
    difference: QualityDifference


@dataclass(frozen=True, slots=True)
class LimitCheck:
    """A limit that was stated, and what was found."""

    limit: str
    wanted: float
    found: float


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
    quality_difference: QualityDifference | None = None
    mcnemar_p: float | None = None
    slices: tuple[SliceQuality, ...] = ()
    limits: tuple[LimitCheck, ...] = ()
    work_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the maker of a version says of it once and for all."""

    parent_version: VersionName | None = None
    source_job: JobName | None = None
    dataset_version: DatasetVersionName | None = None
    recipe: tuple[str, ...] = ()
    evaluation: Evaluation | None = None
    compression_report: CompressionReport | None = None
    code_revision: str = ""


@dataclass(frozen=True, slots=True)
class VersionDraft:
    """A version that somebody wants stored: its members by path, and what is said of it."""

    members: tuple[tuple[str, BlobName], ...]
    provenance: Provenance = Provenance()
    details: VersionDetails = field(default_factory=VersionDetails)


@dataclass(frozen=True, slots=True)
class VersionContent:
    """A version that was checked; all of it but its number."""

    files: tuple[File, ...]
    provenance: Provenance
    signature: Signature


@dataclass(frozen=True, slots=True)
class Version:
    """A stored version. Its content never changes; its details may."""

    name: VersionName
    content: VersionContent
    create_time: datetime
    details: VersionDetails
    update_time: datetime
    revision: int
    """Number of the change that made it what it is."""

    @property
    def size_bytes(self) -> int:
        """All members together."""
        return sum(file.size_bytes for file in self.content.files)

    @property
    def etag(self) -> str:
        """Changes with each change, and never comes back."""
        return str(self.revision)

    def metric(self, name: str) -> float | None:
        """Return the newest value of a metric; None when it was not evaluated."""
        known = (self.content.provenance.evaluation, *self.details.evaluations)
        return next((one.value for one in reversed(known) if one is not None and one.metric == name), None)

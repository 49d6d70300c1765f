"""Models, versions and aliases for tests of the registry, and short ways to store them."""

from datetime import UTC, datetime, timedelta

from maas.names import AliasName, BlobName, DatasetVersionName, JobName, ModelName, VersionName
from maas_package.manifest import TensorSpec
from maas_registry.domain.changes import Author, ChangeKind
from maas_registry.domain.details import Evaluation, Measurement, ModelDetails, VersionDetails
from maas_registry.domain.models import Alias, Model
from maas_registry.domain.store import ModelStore
from maas_registry.domain.versions import (
    CompressionReport,
    File,
    LimitCheck,
    Provenance,
    QualityDifference,
    ServableSpec,
    Signature,
    SliceQuality,
    Version,
    VersionContent,
)

NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
ANN = Author("ann@host", "because")
BLOB = BlobName("ab" * 32)
EVALUATION = Evaluation("accuracy", 0.75, 0.72, 0.78, 2000, DatasetVersionName("reviews", 1), "test")
MEASUREMENT = Measurement(10, 20, 30, 0.5, 1.5, 2.5, 3000.0, 2**40, "onnxruntime", "2 cores")
SIGNATURE = Signature(
    task="text-classification",
    architecture="lstm-text-classifier",
    inputs=(TensorSpec("input_ids", "INT64", (-1, -1)),),
    outputs=(TensorSpec("logits", "FP32", (-1, 2)),),
    labels=("negative", "positive"),
    text_input="text",
    servables=(ServableSpec("onnxruntime", "fp32", "servables/model.onnx", 10),),
)
PLAIN = VersionContent((File("manifest.json", BLOB, 2**33),), Provenance(), SIGNATURE)
FULL = VersionContent(
    (File("manifest.json", BLOB, 12), File("модель.onnx", BLOB, 10)),
    Provenance(
        parent_version=VersionName("a", 1),
        source_job=JobName("compressionJobs", "x1"),
        dataset_version=DatasetVersionName("reviews", 1),
        recipe=("clip(rule=fan_in)", "int8"),
        evaluation=EVALUATION,
        compression_report=CompressionReport(
            MEASUREMENT,
            MEASUREMENT,
            EVALUATION,
            Evaluation("fidelity", 0.99, 0.98, 1.0, 256, None, ""),
            0.99,
            True,
            False,
            "smaller by 70 %",
            QualityDifference(-0.01, -0.02, 0.0),
            0.25,
            (SliceQuality("class", "negative", 900, 0.7, 0.69, QualityDifference(-0.01, -0.03, 0.01)),),
            (LimitCheck("max_size_bytes", 100.0, 10.0),),
            12.5,
        ),
        code_revision="1f2e3d",
    ),
    SIGNATURE,
)
PLAIN_DETAILS = VersionDetails()


class ManualClock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def pass_seconds(self, seconds: float = 1.0) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


async def add_model(store: ModelStore, model_id: str, details: ModelDetails | None = None) -> Model:
    name = ModelName(model_id)
    return await store.write(ANN, lambda writer: writer.put_model(name, details or ModelDetails(), ChangeKind.CREATED))


async def add_version(
    store: ModelStore,
    model_id: str,
    content: VersionContent = PLAIN,
    details: VersionDetails = PLAIN_DETAILS,
    request_id: str = "",
) -> Version:
    return await store.write(ANN, lambda writer: writer.add_version(ModelName(model_id), content, details, request_id))


async def put_alias(store: ModelStore, alias: str, version: VersionName) -> Alias:
    return await store.write(ANN, lambda writer: writer.put_alias(AliasName(version.model_id, alias), version))

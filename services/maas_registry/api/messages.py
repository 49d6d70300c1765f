"""Messages to domain values and back."""

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from maas.names import AliasName, BlobName, DatasetVersionName, JobName, ModelName, VersionName
from maas.registry.v1 import blob_pb2, change_pb2, dataset_pb2, model_pb2, version_pb2, version_signature_pb2
from maas.registry.v1 import registry_service_pb2 as messages
from maas_package.manifest import TensorSpec
from maas_registry.domain.blobs import Blob, BlobState
from maas_registry.domain.changes import Change, ChangeKind
from maas_registry.domain.datasets import (
    ColumnStatistics,
    Dataset,
    DatasetVersion,
    NumberStatistics,
    Split,
    SplitDraft,
    TextStatistics,
)
from maas_registry.domain.details import (
    Evaluation,
    Measurement,
    ModelDetails,
    VersionDetails,
    VersionState,
)
from maas_registry.domain.models import Alias, Hold, Model
from maas_registry.domain.signatures import VersionSignature
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
    VersionDraft,
)
from maas_runtime.failures import InvalidInput


class TimeInvalid(InvalidInput):
    """A time is not one of the years 1 to 9999."""

    reason = "TIME_INVALID"


_PROTO_OF_STATE = {
    VersionState.PENDING: version_pb2.VERSION_STATE_PENDING,
    VersionState.READY: version_pb2.VERSION_STATE_READY,
    VersionState.ARCHIVED: version_pb2.VERSION_STATE_ARCHIVED,
}
_STATE_OF_PROTO = {value: state for state, value in _PROTO_OF_STATE.items()}
_PROTO_OF_KIND = {kind: change_pb2.ChangeKind.Value(f"CHANGE_KIND_{kind.name}") for kind in ChangeKind}


def model_to_proto(model: Model) -> model_pb2.Model:
    """Return the message."""
    message = _model_details_to_proto(model.name, model.details, model.update_time, model.etag)
    message.latest_version = _text(model.latest_version)
    message.version_count = model.version_count
    message.create_time.CopyFrom(_timestamp(model.create_time))
    return message


def model_details_from_proto(message: model_pb2.Model) -> ModelDetails:
    """Return what may be said of a model."""
    return ModelDetails(message.description, dict(message.tags))


def alias_to_proto(alias: Alias) -> model_pb2.Alias:
    """Return the message."""
    return model_pb2.Alias(
        name=str(alias.name), version=str(alias.version), update_time=_timestamp(alias.update_time), etag=alias.etag
    )


def draft_from_proto(message: version_pb2.Version) -> VersionDraft:
    """Return what is to be stored. Raises NameInvalid."""
    return VersionDraft(
        members=tuple((file.path, BlobName.parse(file.blob)) for file in message.files),
        provenance=Provenance(
            parent_version=VersionName.parse(message.parent_version) if message.parent_version else None,
            source_job=JobName.parse(message.source_job) if message.source_job else None,
            dataset_version=DatasetVersionName.parse(message.dataset_version) if message.dataset_version else None,
            recipe=tuple(message.recipe),
            evaluation=evaluation_from_proto(message.evaluation) if message.HasField("evaluation") else None,
            compression_report=_report_from_proto(message.compression_report)
            if message.HasField("compression_report")
            else None,
            code_revision=message.code_revision,
        ),
        details=version_details_from_proto(message),
    )


def version_details_from_proto(message: version_pb2.Version) -> VersionDetails:
    """Return what may be said of a version; one without a state is to be ready."""
    return VersionDetails(
        message.description, dict(message.tags), _STATE_OF_PROTO.get(message.state, VersionState.READY)
    )


def version_to_proto(version: Version) -> version_pb2.Version:
    """Return the message."""
    provenance = version.content.provenance
    message = _version_details_to_proto(version.name, version.details, version.update_time, version.etag)
    message.MergeFrom(
        version_pb2.Version(
            files=[_file_to_proto(file) for file in version.content.files],
            parent_version=_text(provenance.parent_version),
            source_job=_text(provenance.source_job),
            dataset_version=_text(provenance.dataset_version),
            recipe=provenance.recipe,
            evaluation=None if provenance.evaluation is None else _evaluation_to_proto(provenance.evaluation),
            compression_report=None
            if provenance.compression_report is None
            else _report_to_proto(provenance.compression_report),
            code_revision=provenance.code_revision,
            signature=_signature_to_proto(version.content.signature),
            size_bytes=version.size_bytes,
            create_time=_timestamp(version.create_time),
        )
    )
    return message


def signature_to_proto(
    signature: VersionSignature, *, with_bundle: bool = True
) -> version_signature_pb2.VersionSignature:
    """Return the message."""
    return version_signature_pb2.VersionSignature(
        name=str(signature.name),
        public_key=signature.public_key,
        bundle=signature.bundle if with_bundle else b"",
        create_time=_timestamp(signature.create_time),
    )


def hold_to_proto(hold: Hold) -> messages.Hold:
    """Return the message."""
    return messages.Hold(holder=str(hold.holder), version=str(hold.version))


def change_to_proto(change: Change) -> change_pb2.Change:
    """Return the message."""
    message = change_pb2.Change(
        name=f"changes/{change.sequence}",
        time=_timestamp(change.time),
        actor=change.author.actor,
        reason=change.author.reason,
        resource=str(change.resource),
        kind=_PROTO_OF_KIND[change.kind],
        previous_version=_text(change.previous) if isinstance(change.previous, VersionName) else "",
    )
    etag = str(change.sequence)
    match change.resource, change.state:
        case ModelName() as name, ModelDetails() as details:
            message.model.CopyFrom(_model_details_to_proto(name, details, change.time, etag))
        case VersionName() as name, VersionDetails() as details:
            message.version.CopyFrom(_version_details_to_proto(name, details, change.time, etag))
        case AliasName() as name, VersionName() as version:
            message.alias.CopyFrom(alias_to_proto(Alias(name, version, change.time, change.sequence)))
    return message


def time_from_proto(message: Timestamp) -> datetime:
    """Return a time of the years 1 to 9999. Raises TimeInvalid."""
    try:
        return message.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise TimeInvalid("a time is not one of the years 1 to 9999") from error


def dataset_to_proto(dataset: Dataset) -> dataset_pb2.Dataset:
    """Return the message."""
    return dataset_pb2.Dataset(
        name=str(dataset.name),
        description=dataset.description,
        latest_version=_text(dataset.latest_version),
        create_time=_timestamp(dataset.create_time),
    )


def splits_from_proto(message: dataset_pb2.DatasetVersion) -> list[SplitDraft]:
    """Return the splits to be stored. Raises NameInvalid."""
    return [
        SplitDraft(
            split.split_id,
            split.file.path,
            BlobName.parse(split.file.blob),
            tuple(_statistics_from_proto(one) for one in split.statistics),
        )
        for split in message.splits
    ]


def dataset_version_to_proto(version: DatasetVersion, *, statistics: bool = True) -> dataset_pb2.DatasetVersion:
    """Return the message, with or without what was counted."""
    return dataset_pb2.DatasetVersion(
        name=str(version.name),
        splits=[_split_to_proto(split, statistics=statistics) for split in version.content.splits],
        columns=[
            dataset_pb2.Column(name=column.name, type=column.type, nullable=column.nullable)
            for column in version.content.columns
        ],
        description=version.content.description,
        size_bytes=version.size_bytes,
        create_time=_timestamp(version.create_time),
    )


def blob_to_proto(blob: Blob) -> blob_pb2.Blob:
    """Return the message."""
    return blob_pb2.Blob(
        name=str(blob.name),
        size_bytes=blob.stored_bytes if blob.committed else 0,
        committed=blob.committed,
        received_bytes=blob.stored_bytes if blob.state is BlobState.RECEIVING else 0,
    )


def _file_to_proto(file: File) -> blob_pb2.File:
    return blob_pb2.File(path=file.path, blob=str(file.blob), size_bytes=file.size_bytes)


def _split_to_proto(split: Split, *, statistics: bool) -> dataset_pb2.Split:
    return dataset_pb2.Split(
        split_id=split.split_id,
        file=_file_to_proto(split.file),
        row_count=split.row_count,
        statistics=map(_statistics_to_proto, split.statistics) if statistics else (),
    )


def _statistics_from_proto(message: dataset_pb2.ColumnStatistics) -> ColumnStatistics:
    numbers, texts = message.numbers, message.texts
    return ColumnStatistics(
        column=message.column,
        null_count=message.null_count,
        distinct_count=message.distinct_count,
        distinct_estimated=message.distinct_estimated,
        numbers=NumberStatistics(numbers.minimum, numbers.maximum, numbers.mean, numbers.standard_deviation)
        if message.HasField("numbers")
        else None,
        texts=TextStatistics(texts.minimum_length, texts.maximum_length, texts.mean_length, tuple(texts.length_counts))
        if message.HasField("texts")
        else None,
        values=tuple((count.value, count.row_count) for count in message.values),
    )


def _statistics_to_proto(statistics: ColumnStatistics) -> dataset_pb2.ColumnStatistics:
    numbers, texts = statistics.numbers, statistics.texts
    return dataset_pb2.ColumnStatistics(
        column=statistics.column,
        null_count=statistics.null_count,
        distinct_count=statistics.distinct_count,
        distinct_estimated=statistics.distinct_estimated,
        numbers=None
        if numbers is None
        else dataset_pb2.NumberStatistics(
            minimum=numbers.minimum,
            maximum=numbers.maximum,
            mean=numbers.mean,
            standard_deviation=numbers.standard_deviation,
        ),
        texts=None
        if texts is None
        else dataset_pb2.TextStatistics(
            minimum_length=texts.minimum_length,
            maximum_length=texts.maximum_length,
            mean_length=texts.mean_length,
            length_counts=texts.length_counts,
        ),
        values=[dataset_pb2.ValueCount(value=value, row_count=count) for value, count in statistics.values],
    )


def _signature_to_proto(signature: Signature) -> version_pb2.Signature:
    return version_pb2.Signature(
        task=signature.task,
        architecture=signature.architecture,
        inputs=[_tensor_spec_to_proto(spec) for spec in signature.inputs],
        outputs=[_tensor_spec_to_proto(spec) for spec in signature.outputs],
        labels=signature.labels,
        text_input=signature.text_input,
        servables=[_servable_to_proto(servable) for servable in signature.servables],
    )


def _tensor_spec_to_proto(spec: TensorSpec) -> version_pb2.TensorSpec:
    return version_pb2.TensorSpec(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def _servable_to_proto(servable: ServableSpec) -> version_pb2.ServableSpec:
    return version_pb2.ServableSpec(
        engine=servable.engine,
        precision=servable.precision,
        path=servable.path,
        size_bytes=servable.size_bytes,
    )


def evaluation_from_proto(message: version_pb2.Evaluation) -> Evaluation:
    """Return an evaluation without a time. Raises NameInvalid."""
    return Evaluation(
        metric=message.metric,
        value=message.value,
        low=message.low,
        high=message.high,
        row_count=message.row_count,
        dataset_version=DatasetVersionName.parse(message.dataset_version) if message.dataset_version else None,
        split=message.split,
    )


def _evaluation_to_proto(evaluation: Evaluation) -> version_pb2.Evaluation:
    return version_pb2.Evaluation(
        metric=evaluation.metric,
        value=evaluation.value,
        low=evaluation.low,
        high=evaluation.high,
        row_count=evaluation.row_count,
        dataset_version=str(evaluation.dataset_version or ""),
        split=evaluation.split,
        create_time=None if evaluation.create_time is None else _timestamp(evaluation.create_time),
    )


def measurement_from_proto(message: version_pb2.Measurement) -> Measurement:
    """Return a measurement without a time."""
    return Measurement(
        servable_bytes=message.servable_bytes,
        package_bytes=message.package_bytes,
        parameter_count=message.parameter_count,
        nonzero_share=message.nonzero_share,
        latency_p50_ms=message.latency_p50_ms,
        latency_p99_ms=message.latency_p99_ms,
        throughput_rows=message.throughput_rows,
        peak_memory_bytes=message.peak_memory_bytes,
        engine=message.engine,
        hardware=message.hardware,
    )


def _measurement_to_proto(measurement: Measurement) -> version_pb2.Measurement:
    return version_pb2.Measurement(
        servable_bytes=measurement.servable_bytes,
        package_bytes=measurement.package_bytes,
        parameter_count=measurement.parameter_count,
        nonzero_share=measurement.nonzero_share,
        latency_p50_ms=measurement.latency_p50_ms,
        latency_p99_ms=measurement.latency_p99_ms,
        throughput_rows=measurement.throughput_rows,
        peak_memory_bytes=measurement.peak_memory_bytes,
        engine=measurement.engine,
        hardware=measurement.hardware,
        create_time=None if measurement.create_time is None else _timestamp(measurement.create_time),
    )


def _report_from_proto(message: version_pb2.CompressionReport) -> CompressionReport:
    return CompressionReport(
        before=measurement_from_proto(message.before),
        after=measurement_from_proto(message.after),
        quality_before=evaluation_from_proto(message.quality_before),
        quality_after=evaluation_from_proto(message.quality_after),
        agreement=message.agreement,
        smaller=message.smaller,
        faster=message.faster,
        verdict=message.verdict,
        quality_difference=_difference_from_proto(message.quality_difference)
        if message.HasField("quality_difference")
        else None,
        mcnemar_p=message.mcnemar_p if message.HasField("mcnemar_p") else None,
        slices=tuple(_slice_from_proto(one) for one in message.slices),
        limits=tuple(LimitCheck(one.limit, one.wanted, one.found) for one in message.limits),
        work_seconds=message.work_duration.ToNanoseconds() / 1e9 if message.HasField("work_duration") else None,
    )


def _report_to_proto(report: CompressionReport) -> version_pb2.CompressionReport:
    return version_pb2.CompressionReport(
        before=_measurement_to_proto(report.before),
        after=_measurement_to_proto(report.after),
        quality_before=_evaluation_to_proto(report.quality_before),
        quality_after=_evaluation_to_proto(report.quality_after),
        agreement=report.agreement,
        smaller=report.smaller,
        faster=report.faster,
        verdict=report.verdict,
        quality_difference=None
        if report.quality_difference is None
        else _difference_to_proto(report.quality_difference),
        mcnemar_p=report.mcnemar_p,
        slices=[_slice_to_proto(one) for one in report.slices],
        limits=[version_pb2.LimitCheck(limit=one.limit, wanted=one.wanted, found=one.found) for one in report.limits],
        work_duration=None if report.work_seconds is None else _duration(report.work_seconds),
    )


def _difference_from_proto(message: version_pb2.QualityDifference) -> QualityDifference:
    return QualityDifference(message.value, message.low, message.high)


def _difference_to_proto(difference: QualityDifference) -> version_pb2.QualityDifference:
    return version_pb2.QualityDifference(value=difference.value, low=difference.low, high=difference.high)


def _slice_from_proto(message: version_pb2.SliceQuality) -> SliceQuality:
    return SliceQuality(
        kind=message.kind,
        slice=message.slice,
        row_count=message.row_count,
        before=message.before,
        after=message.after,
        difference=_difference_from_proto(message.difference),
    )


def _slice_to_proto(quality: SliceQuality) -> version_pb2.SliceQuality:
    return version_pb2.SliceQuality(
        kind=quality.kind,
        slice=quality.slice,
        row_count=quality.row_count,
        before=quality.before,
        after=quality.after,
        difference=_difference_to_proto(quality.difference),
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _model_details_to_proto(
    name: ModelName, details: ModelDetails, update_time: datetime, etag: str
) -> model_pb2.Model:
    message = model_pb2.Model(
        name=str(name),
        description=details.description,
        tags=details.tags,
        update_time=_timestamp(update_time),
        etag=etag,
    )
    if details.deletion is not None:
        message.delete_time.CopyFrom(_timestamp(details.deletion.delete_time))
        message.expire_time.CopyFrom(_timestamp(details.deletion.expire_time))
    return message


def _version_details_to_proto(
    name: VersionName, details: VersionDetails, update_time: datetime, etag: str
) -> version_pb2.Version:
    message = version_pb2.Version(
        name=str(name),
        description=details.description,
        tags=details.tags,
        state=_PROTO_OF_STATE[details.state],
        evaluations=[_evaluation_to_proto(one) for one in details.evaluations],
        measurements=[_measurement_to_proto(one) for one in details.measurements],
        held_by=[str(holder) for holder in details.held_by],
        update_time=_timestamp(update_time),
        etag=etag,
    )
    if (deletion := details.deletion) is not None:
        message.delete_time.CopyFrom(_timestamp(deletion.delete_time))
        message.expire_time.CopyFrom(_timestamp(deletion.expire_time))
        if deletion.purge_time is not None:
            message.purge_time.CopyFrom(_timestamp(deletion.purge_time))
    return message


def _text(name: object | None) -> str:
    return "" if name is None else str(name)


def _timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp

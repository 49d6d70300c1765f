"""Versions as JSON, the form in which they stand in the database. Its format is the database's schema version."""

from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeAlias

from maas.names import (
    AliasName,
    BlobName,
    DatasetVersionName,
    DeploymentName,
    JobName,
    ModelName,
    VersionName,
)
from maas_package.manifest import TensorSpec
from maas_registry.domain.changes import ChangedState, ResourceName
from maas_registry.domain.datasets import (
    ColumnStatistics,
    DatasetContent,
    NumberStatistics,
    Split,
    TextStatistics,
)
from maas_registry.domain.details import (
    Deletion,
    Evaluation,
    Measurement,
    ModelDetails,
    VersionDetails,
    VersionState,
)
from maas_registry.domain.parquet_file import Column
from maas_registry.domain.versions import (
    CompressionReport,
    File,
    LimitCheck,
    Provenance,
    QualityDifference,
    ServableSpec,
    Signature,
    SliceQuality,
    VersionContent,
)

Json: TypeAlias = dict[str, Any]


def version_to_json(content: VersionContent) -> Json:
    """Return what version_from_json takes."""
    return {
        "files": [_file_to_json(file) for file in content.files],
        "provenance": _provenance_to_json(content.provenance),
        "signature": asdict(content.signature),
    }


def version_from_json(value: Json) -> VersionContent:
    """Return the content of a version."""
    return VersionContent(
        files=tuple(_file_from_json(file) for file in value["files"]),
        provenance=_provenance_from_json(value["provenance"]),
        signature=_signature_from_json(value["signature"]),
    )


def state_to_json(state: ChangedState) -> Json | None:
    """Return what state_from_json takes."""
    match state:
        case ModelDetails():
            return {
                "description": state.description,
                "tags": dict(state.tags),
                "deletion": _deletion_to_json(state.deletion),
            }
        case VersionDetails():
            return {
                "description": state.description,
                "tags": dict(state.tags),
                "state": state.state.value,
                "evaluations": [_evaluation_to_json(one) for one in state.evaluations],
                "measurements": [_measurement_to_json(one) for one in state.measurements],
                "held_by": [str(holder) for holder in state.held_by],
                "deletion": _deletion_to_json(state.deletion),
            }
        case VersionName():
            return {"version": str(state)}
        case None:
            return None


def state_from_json(resource: ResourceName, value: Json | None) -> ChangedState:
    """Return what the log holds of a resource."""
    if value is None:
        return None
    match resource:
        case ModelName():
            return model_details_from_json(value)
        case VersionName():
            return version_details_from_json(value)
        case AliasName():
            return VersionName.parse(value["version"])
        case _:
            return None


def model_details_from_json(value: Json) -> ModelDetails:
    """Return what may change of a model."""
    return ModelDetails(value["description"], value["tags"], _deletion_from_json(value["deletion"]))


def version_details_from_json(value: Json) -> VersionDetails:
    """Return what may change of a version."""
    return VersionDetails(
        description=value["description"],
        tags=value["tags"],
        state=VersionState(value["state"]),
        evaluations=tuple(_evaluation_from_json(one) for one in value["evaluations"]),
        measurements=tuple(_measurement_from_json(one) for one in value["measurements"]),
        held_by=tuple(DeploymentName.parse(holder) for holder in value["held_by"]),
        deletion=_deletion_from_json(value["deletion"]),
    )


def dataset_to_json(content: DatasetContent) -> Json:
    """Return what dataset_from_json takes."""
    return {
        "splits": [
            {
                "split_id": split.split_id,
                "file": _file_to_json(split.file),
                "row_count": split.row_count,
                "statistics": [asdict(one) for one in split.statistics],
            }
            for split in content.splits
        ],
        "columns": [asdict(column) for column in content.columns],
        "description": content.description,
    }


def dataset_from_json(value: Json) -> DatasetContent:
    """Return the content of a version of a dataset."""
    return DatasetContent(
        splits=tuple(
            Split(
                split["split_id"],
                _file_from_json(split["file"]),
                split["row_count"],
                tuple(_statistics_from_json(one) for one in split["statistics"]),
            )
            for split in value["splits"]
        ),
        columns=tuple(Column(**column) for column in value["columns"]),
        description=value["description"],
    )


def _statistics_from_json(value: Json) -> ColumnStatistics:
    numbers, texts = value["numbers"], value["texts"]
    return ColumnStatistics(
        column=value["column"],
        null_count=value["null_count"],
        distinct_count=value["distinct_count"],
        distinct_estimated=value["distinct_estimated"],
        numbers=NumberStatistics(**numbers) if numbers else None,
        texts=TextStatistics(**(texts | {"length_counts": tuple(texts["length_counts"])})) if texts else None,
        values=tuple((text, count) for text, count in value["values"]),
    )


def _file_to_json(file: File) -> Json:
    return {"path": file.path, "blob": str(file.blob), "size_bytes": file.size_bytes}


def _file_from_json(value: Json) -> File:
    return File(value["path"], BlobName.parse(value["blob"]), value["size_bytes"])


def _signature_from_json(value: Json) -> Signature:
    return Signature(
        task=value["task"],
        architecture=value["architecture"],
        inputs=tuple(_tensor_spec_from_json(spec) for spec in value["inputs"]),
        outputs=tuple(_tensor_spec_from_json(spec) for spec in value["outputs"]),
        labels=tuple(value["labels"]),
        text_input=value["text_input"],
        servables=tuple(ServableSpec(**servable) for servable in value["servables"]),
    )


def _tensor_spec_from_json(value: Json) -> TensorSpec:
    return TensorSpec(value["name"], value["datatype"], tuple(value["shape"]))


def _provenance_to_json(provenance: Provenance) -> Json:
    return {
        "parent_version": _text(provenance.parent_version),
        "source_job": _text(provenance.source_job),
        "dataset_version": _text(provenance.dataset_version),
        "recipe": list(provenance.recipe),
        "evaluation": None if provenance.evaluation is None else _evaluation_to_json(provenance.evaluation),
        "compression_report": None
        if provenance.compression_report is None
        else _report_to_json(provenance.compression_report),
        "code_revision": provenance.code_revision,
    }


def _provenance_from_json(value: Json) -> Provenance:
    parent, job, dataset = value["parent_version"], value["source_job"], value["dataset_version"]
    evaluation, report = value["evaluation"], value["compression_report"]
    return Provenance(
        parent_version=VersionName.parse(parent) if parent else None,
        source_job=JobName.parse(job) if job else None,
        dataset_version=DatasetVersionName.parse(dataset) if dataset else None,
        recipe=tuple(value["recipe"]),
        evaluation=_evaluation_from_json(evaluation) if evaluation else None,
        compression_report=_report_from_json(report) if report else None,
        code_revision=value["code_revision"],
    )


def _evaluation_to_json(evaluation: Evaluation) -> Json:
    return asdict(evaluation) | {
        "dataset_version": _text(evaluation.dataset_version),
        "create_time": _time_to_json(evaluation.create_time),
    }


def _evaluation_from_json(value: Json) -> Evaluation:
    dataset = value["dataset_version"]
    changed = {
        "dataset_version": DatasetVersionName.parse(dataset) if dataset else None,
        "create_time": _time_from_json(value["create_time"]),
    }
    return Evaluation(**(value | changed))


def _measurement_to_json(measurement: Measurement) -> Json:
    return asdict(measurement) | {"create_time": _time_to_json(measurement.create_time)}


def _measurement_from_json(value: Json) -> Measurement:
    return Measurement(**(value | {"create_time": _time_from_json(value["create_time"])}))


def _report_to_json(report: CompressionReport) -> Json:
    return asdict(report) | {
        "before": _measurement_to_json(report.before),
        "after": _measurement_to_json(report.after),
        "quality_before": _evaluation_to_json(report.quality_before),
        "quality_after": _evaluation_to_json(report.quality_after),
    }


def _report_from_json(value: Json) -> CompressionReport:
    difference = value.get("quality_difference")  # as all that follows, younger than the first reports
    changed = {
        "before": _measurement_from_json(value["before"]),
        "after": _measurement_from_json(value["after"]),
        "quality_before": _evaluation_from_json(value["quality_before"]),
        "quality_after": _evaluation_from_json(value["quality_after"]),
        "quality_difference": QualityDifference(**difference) if difference else None,
        "slices": tuple(
            SliceQuality(**(one | {"difference": QualityDifference(**one["difference"])}))
            for one in value.get("slices", ())
        ),
        "limits": tuple(LimitCheck(**one) for one in value.get("limits", ())),
    }
    return CompressionReport(**(value | changed))


def _deletion_to_json(deletion: Deletion | None) -> Json | None:
    if deletion is None:
        return None
    return {
        "delete_time": _time_to_json(deletion.delete_time),
        "expire_time": _time_to_json(deletion.expire_time),
        "purge_time": _time_to_json(deletion.purge_time),
    }


def _deletion_from_json(value: Json | None) -> Deletion | None:
    if value is None:
        return None
    return Deletion(
        datetime.fromisoformat(value["delete_time"]),
        datetime.fromisoformat(value["expire_time"]),
        _time_from_json(value["purge_time"]),
    )


def _time_to_json(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _time_from_json(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)


def _text(name: object | None) -> str | None:
    return None if name is None else str(name)

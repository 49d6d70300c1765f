"""Versions as JSON, the form in which they stand in the database. Its format is the database's schema version."""

from dataclasses import asdict
from typing import Any, TypeAlias

from maas.names import BlobName, DatasetVersionName, JobName, VersionName
from maas_package.manifest import TensorSpec
from maas_registry.domain.datasets import (
    ColumnStatistics,
    DatasetContent,
    NumberStatistics,
    Split,
    TextStatistics,
)
from maas_registry.domain.parquet_file import Column
from maas_registry.domain.versions import (
    CompressionReport,
    Evaluation,
    File,
    Measurement,
    Provenance,
    ServableSpec,
    Signature,
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
        "description": provenance.description,
        "source_job": _text(provenance.source_job),
        "dataset_version": _text(provenance.dataset_version),
        "recipe": list(provenance.recipe),
        "evaluation": None if provenance.evaluation is None else _evaluation_to_json(provenance.evaluation),
        "compression_report": None
        if provenance.compression_report is None
        else _report_to_json(provenance.compression_report),
    }


def _provenance_from_json(value: Json) -> Provenance:
    parent, job, dataset = value["parent_version"], value["source_job"], value["dataset_version"]
    evaluation, report = value["evaluation"], value["compression_report"]
    return Provenance(
        parent_version=VersionName.parse(parent) if parent else None,
        description=value["description"],
        source_job=JobName.parse(job) if job else None,
        dataset_version=DatasetVersionName.parse(dataset) if dataset else None,
        recipe=tuple(value["recipe"]),
        evaluation=_evaluation_from_json(evaluation) if evaluation else None,
        compression_report=_report_from_json(report) if report else None,
    )


def _evaluation_to_json(evaluation: Evaluation) -> Json:
    return asdict(evaluation) | {"dataset_version": str(evaluation.dataset_version)}


def _evaluation_from_json(value: Json) -> Evaluation:
    return Evaluation(**(value | {"dataset_version": DatasetVersionName.parse(value["dataset_version"])}))


def _report_to_json(report: CompressionReport) -> Json:
    return asdict(report) | {
        "quality_before": _evaluation_to_json(report.quality_before),
        "quality_after": _evaluation_to_json(report.quality_after),
    }


def _report_from_json(value: Json) -> CompressionReport:
    return CompressionReport(
        **(
            value
            | {
                "before": Measurement(**value["before"]),
                "after": Measurement(**value["after"]),
                "quality_before": _evaluation_from_json(value["quality_before"]),
                "quality_after": _evaluation_from_json(value["quality_after"]),
            }
        )
    )


def _text(name: object | None) -> str | None:
    return None if name is None else str(name)

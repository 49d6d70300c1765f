"""The step `train`: from the splits in the job's folder to a package in `package/`, evaluated on the split `test`."""

import os
import shutil
from functools import partial

import torch
from google.protobuf.json_format import MessageToDict

from maas.registry.v1 import version_pb2
from maas_engine.predictor import open_predictor
from maas_engine.publish import publish_servables
from maas_engine.quality import evaluate
from maas_jobs.job import JsonObject
from maas_jobs.labelled_rows import LabelledSplit, check_labels, open_labelled_split
from maas_jobs.step import Reporter, StepRequest, run_step
from maas_jobs.transfer import split_path
from maas_learning.checkpoint import Checkpoints
from maas_learning.encoded_rows import encode_rows
from maas_learning.loop import EpochMoment, LearningSettings, learn
from maas_learning.objectives import Accuracy, cross_entropy
from maas_package.package import Package
from maas_package.trainable import package_trained_model
from maas_training.beginning import Beginning, begin_anew, begin_with
from maas_training.spec import PACKAGE_FOLDER, SOURCE_FOLDER, SPLITS, Hyperparameters, TrainingSpec

# Where the parts of this step begin, as shares of it.
_WORDS, _ENCODE, _TRAIN, _EXPORT, _EVALUATE = 0.005, 0.01, 0.02, 0.93, 0.97


def train_and_package(request: StepRequest, report: Reporter) -> JsonObject:
    """Train, export, evaluate; the result has the evaluation."""
    spec = TrainingSpec.from_json(request.spec)
    # A process that may use two cores of a big machine must not start a thread for each core.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    report.progress(0.0, "read")
    splits = {name: open_labelled_split(split_path(request.folder, name)) for name in SPLITS}
    report.progress(_WORDS, "words")
    if spec.source_version is None:
        beginning = begin_anew(spec, splits["train"])
    else:
        beginning = begin_with(request.folder / SOURCE_FOLDER, spec.hyperparameters, splits["train"])
    for name in ("validation", "test"):
        check_labels(splits[name], len(beginning.labels))
    package = _train(spec, splits, beginning, request, report)
    report.progress(_EVALUATE, "evaluate")
    predictor = open_predictor(package, threads=torch.get_num_threads())
    quality = evaluate(predictor, ((part.texts, part.labels) for part in splits["test"].parts()))
    predictor.close()
    report.log(
        f"{quality.metric} on test: {quality.value:.4f}, between {quality.low:.4f} and {quality.high:.4f} (95 %)"
    )
    report.metrics({f"test_{quality.metric}": quality.value})
    evaluation = version_pb2.Evaluation(
        metric=quality.metric,
        value=quality.value,
        low=quality.low,
        high=quality.high,
        row_count=quality.rows,
        dataset_version=str(spec.dataset_version),
        split="test",
    )
    return {"evaluation": MessageToDict(evaluation, preserving_proto_field_name=True)}


def _train(
    spec: TrainingSpec, splits: dict[str, LabelledSplit], beginning: Beginning, request: StepRequest, report: Reporter
) -> Package:
    module, tokenizer = beginning.module, beginning.tokenizer
    report.log(
        f"{spec.architecture}: {sum(parameter.numel() for parameter in module.parameters()):,} weights, "
        f"{tokenizer.vocabulary_size:,} words, {len(beginning.labels)} classes, {torch.get_num_threads()} threads"
    )
    report.progress(_ENCODE, "encode")
    encoded = request.folder / "encoded"
    with (
        encode_rows(encoded / "train.ids", tokenizer, splits["train"].rows()) as train_rows,
        encode_rows(encoded / "validation.ids", tokenizer, splits["validation"].rows()) as validation_rows,
    ):
        state = learn(
            module,
            train_rows,
            cross_entropy,
            Accuracy(validation_rows),
            _settings(spec.hyperparameters),
            Checkpoints(request.folder / "checkpoints"),
            partial(_narrate, report),
        )
    report.log(f"best epoch: {state.best_epoch}, validation accuracy {state.best_score:.4f}")
    report.progress(_EXPORT, "export")
    folder = request.folder / PACKAGE_FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    package = package_trained_model(
        folder,
        architecture=beginning.architecture,
        config=beginning.config,
        module=module,
        tokenizer=tokenizer,
        labels=beginning.labels,
    )
    return publish_servables(package, splits["validation"].first_texts(), report.log)


def _settings(wanted: Hyperparameters) -> LearningSettings:
    return LearningSettings(
        epochs=wanted.epochs,
        batch_size=wanted.batch_size,
        learning_rate=wanted.learning_rate,
        patience=wanted.patience,
        seed=wanted.seed,
        warm_up=wanted.warm_up,
    )


def _narrate(report: Reporter, moment: EpochMoment) -> None:
    """Turn a training's moments into progress, metrics and log lines."""
    metrics = {"epoch": moment.epoch, "loss": moment.loss, "rows_per_second": moment.rows_per_second}
    if moment.score is not None:
        report.metrics({**metrics, "validation_accuracy": moment.score})
        report.log(
            f"epoch {moment.epoch} of {moment.epochs}: loss {moment.loss:.4f}, validation accuracy "
            f"{moment.score:.4f}, {moment.rows_per_second:,.0f} rows/s"
        )
    report.progress(_TRAIN + (_EXPORT - _TRAIN) * moment.done, "train", metrics)


if __name__ == "__main__":
    run_step(train_and_package)

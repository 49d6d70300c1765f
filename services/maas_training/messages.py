"""Training jobs as messages."""

from dataclasses import replace

from google.protobuf.json_format import ParseDict

from maas.names import JobName
from maas.registry.v1 import version_pb2
from maas.training.v1 import training_job_pb2 as messages
from maas_jobs.job import Job
from maas_jobs.messages import status_to_proto
from maas_training.spec import Hyperparameters, TrainingSpec

COLLECTION = "trainingJobs"


def job_to_proto(job: Job) -> messages.TrainingJob:
    """Return the job with every default filled in."""
    spec = TrainingSpec.from_json(job.spec)
    result = job.result or {}
    return messages.TrainingJob(
        name=str(JobName(COLLECTION, job.job_id)),
        model=str(spec.model),
        dataset_version=str(spec.dataset_version),
        architecture=spec.architecture,
        hyperparameters=messages.Hyperparameters(
            epochs=spec.hyperparameters.epochs,
            batch_size=spec.hyperparameters.batch_size,
            learning_rate=spec.hyperparameters.learning_rate,
            dropout=spec.hyperparameters.dropout,
            patience=spec.hyperparameters.patience,
            seed=spec.hyperparameters.seed,
            warm_up=spec.hyperparameters.warm_up,
        ),
        source_version=str(spec.source_version) if spec.source_version else "",
        status=status_to_proto(job),
        result_version=result.get("version", ""),
        evaluation=ParseDict(result["evaluation"], version_pb2.Evaluation()) if "evaluation" in result else None,
    )


def hyperparameters_from_proto(message: messages.Hyperparameters, default: Hyperparameters) -> Hyperparameters:
    """Return what was asked for; what was not keeps its default."""
    return replace(default, **{field.name: value for field, value in message.ListFields()})

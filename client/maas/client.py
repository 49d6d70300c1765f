"""The client of a cluster, for programs. The `maas` command is written with it."""

import math
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, overload

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from maas import blobs, tensors
from maas.actor import this_user
from maas.calls import Pauses, guarded, open_channel
from maas.compression.v1 import compression_service_pb2
from maas.compression.v1.compression_job_pb2 import CompressionJob, Limits
from maas.compression.v1.compression_service_pb2_grpc import CompressionServiceStub
from maas.compressions import Work, new_job
from maas.datasets import check_pyarrow
from maas.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    InvalidInputError,
    MaasError,
    NotAllowedNowError,
    NotFoundError,
    UnavailableError,
)
from maas.inference.v1 import inference_service_pb2
from maas.inference.v1.inference_service_pb2 import Replica
from maas.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from maas.jobs.v1 import job_state_pb2
from maas.names import (
    AliasName,
    BlobName,
    DatasetName,
    DeploymentName,
    JobName,
    ModelName,
    NameInvalid,
    VersionName,
    check_id,
)
from maas.oip.v2.grpc_service_pb2 import ModelInferRequest, ModelInferResponse
from maas.references import ReferenceInvalid, TargetReference, parse_reference
from maas.registry.v1 import registry_service_pb2
from maas.registry.v1.blob_pb2 import File
from maas.registry.v1.change_pb2 import Change
from maas.registry.v1.dataset_pb2 import Dataset, DatasetVersion, Split
from maas.registry.v1.model_pb2 import Alias, Model
from maas.registry.v1.registry_service_pb2 import WatchRegistryResponse
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas.registry.v1.version_pb2 import Evaluation, Measurement, Version, VersionState
from maas.registry.v1.version_signature_pb2 import VersionSignature
from maas.rollout.v1 import deployment_pb2, rollout_service_pb2
from maas.rollout.v1.deployment_pb2 import Deployment, DeploymentEvent, ServingSettings, Target
from maas.rollout.v1.rollout_service_pb2_grpc import RolloutServiceStub
from maas.signatures import PublicKey, PublicKeyInvalid, VersionNotSigned, members_of, signer_of
from maas.training.v1 import training_service_pb2
from maas.training.v1.training_job_pb2 import Hyperparameters, TrainingJob
from maas.training.v1.training_service_pb2_grpc import TrainingServiceStub

if TYPE_CHECKING:
    import numpy

    from maas.datasets.prepare import PreparedSplit, PrepareOptions

Job: TypeAlias = TrainingJob | CompressionJob
Progress: TypeAlias = Callable[[int], None]
"""Told of the number of bytes that were just moved."""

DEFAULT_ENDPOINT = "127.0.0.1:8080"

FINAL_STATES = frozenset(
    {job_state_pb2.JOB_STATE_SUCCEEDED, job_state_pb2.JOB_STATE_FAILED, job_state_pb2.JOB_STATE_CANCELLED}
)

_INFER_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_WATCH_SECONDS = 300.0
"""How long one watch stays open before it is opened again."""
_WATCH_RETRY_SECONDS = 30.0
_LABELS_TIMEOUT_SECONDS = 2.0
_LABELS_KEPT_SECONDS = 60.0
_LABELS_RETRY_SECONDS = 5.0
_POLL_SECONDS = 0.1


class JobFailed(MaasError):
    """A job that was waited for ended without a result; `code` and `reason` are the job's."""


class DeploymentFailed(MaasError):
    """A deployment that was waited for cannot be loaded; the message says why."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one text."""

    predicted: int
    """Index of the most probable class."""
    label: str
    """Its name; empty when the model has none, or when the registry could not be asked for it."""
    probabilities: tuple[float, ...]
    version: str
    """The version that answered."""


@dataclass(frozen=True, slots=True)
class _Labels:
    names: tuple[str, ...]
    known_until: float


class Client:
    """A connection to a cluster. Every call has a timeout and raises maas.errors.MaasError; it may be used by threads.

        with Client("127.0.0.1:8080") as client:
            client.push_dataset("reviews", {"train": "train.parquet", "validation": "v.parquet", "test": "t.parquet"})
            job = client.wait_for_job(client.train("reviews", "reviews").name)
            smaller = client.wait_for_job(client.compress(job.result_version, ["int8"]).name)
            client.deploy("reviews", [smaller.result_version])
            client.wait_until_ready("reviews")
            print(client.predict("reviews", "A gripping, beautiful film."))

    Resources are the messages of the contract (`maas.registry.v1`, ...). A version is named as people name it:
    `reviews` (the newest), `reviews@2`, `reviews@production`, or by its whole name. `timeout` is for one call, in
    seconds; a call that finds the cluster away is sent again for `retry_seconds` if that does no harm. `actor` is who
    asks, for the records of what changed; by default, user and host.
    """

    def __init__(
        self, endpoint: str = DEFAULT_ENDPOINT, *, timeout: float = 10.0, retry_seconds: float = 5.0, actor: str = ""
    ) -> None:
        self.endpoint = endpoint
        self._raw_channel = open_channel(endpoint)
        channel = guarded(self._raw_channel, timeout, retry_seconds, actor or this_user())
        self._registry = RegistryServiceStub(channel)
        self._training = TrainingServiceStub(channel)
        self._compression = CompressionServiceStub(channel)
        self._rollout = RolloutServiceStub(channel)
        self._inference = InferenceServiceStub(channel)
        self._model_infer = channel.unary_unary(
            _INFER_METHOD,
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelInferResponse.FromString,
        )
        self._health = HealthStub(channel).Check
        self._labels: dict[tuple[str, str], _Labels] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._raw_channel.close()

    # ---- models -------------------------------------------------------------------------------------------------

    def models(
        self, *, where: str = "", order_by: str = "", show_deleted: bool = False, at: datetime | None = None
    ) -> Iterator[Model]:
        """List models, by name unless `order_by` says otherwise; all, or those that the filter `where` lets through.

        `at` shows what was there at a time, here and wherever else it is taken.
        """
        request = registry_service_pb2.ListModelsRequest(
            filter=where, order_by=order_by, show_deleted=show_deleted, read_time=_timestamp(at)
        )
        return _pages(self._registry.ListModels, request, "models")

    def model(self, model: str, *, at: datetime | None = None) -> Model:
        """Return one model."""
        return self._registry.GetModel(
            registry_service_pb2.GetModelRequest(name=_model_name(model), read_time=_timestamp(at))
        )

    def versions(
        self,
        model: str,
        *,
        where: str = "",
        order_by: str = "",
        show_deleted: bool = False,
        at: datetime | None = None,
    ) -> Iterator[Version]:
        """List a model's versions, newest first unless `order_by` says otherwise."""
        request = registry_service_pb2.ListVersionsRequest(
            parent=_model_name(model),
            filter=where,
            order_by=order_by,
            show_deleted=show_deleted,
            read_time=_timestamp(at),
        )
        return _pages(self._registry.ListVersions, request, "versions")

    def version(self, reference: str, *, at: datetime | None = None) -> Version:
        """Return the version that `reviews`, `reviews@2` or `reviews@production` refers to."""
        name = self._version_name(reference, at)
        return self._registry.GetVersion(registry_service_pb2.GetVersionRequest(name=name, read_time=_timestamp(at)))

    def aliases(self, model: str, *, at: datetime | None = None) -> Iterator[Alias]:
        """List a model's aliases, by name."""
        request = registry_service_pb2.ListAliasesRequest(parent=_model_name(model), read_time=_timestamp(at))
        return _pages(self._registry.ListAliases, request, "aliases")

    def set_alias(self, reference: str, alias: str, *, expected: str = "", reason: str = "") -> Alias:
        """Point an alias to the version that `reference` refers to.

        With `expected`, a version or `none`, only if that is where it points now. Raises ConflictError.
        """
        version = VersionName.parse(self.version(reference).name)
        if expected not in ("", "none"):
            expected = self.version(expected).name
        name = AliasName(version.model_id, _id(alias))
        return self._registry.SetAlias(
            registry_service_pb2.SetAliasRequest(
                name=str(name), version=str(version), expected_version=expected, reason=reason
            )
        )

    def delete_alias(self, model: str, alias: str, *, reason: str = "") -> None:
        """Remove an alias; the version stays, and so does the alias's history."""
        name = AliasName(ModelName.parse(_model_name(model)).model_id, _id(alias))
        self._registry.DeleteAlias(registry_service_pb2.DeleteAliasRequest(name=str(name), reason=reason))

    def update_model(
        self,
        model: str,
        *,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        etag: str = "",
        reason: str = "",
    ) -> Model:
        """Change what is not None: the description, all tags. Raises ConflictError when the etag is a stale one."""
        given = {"description": description, "tags": tags}
        changed = {field: value for field, value in given.items() if value is not None}
        return self._registry.UpdateModel(
            registry_service_pb2.UpdateModelRequest(
                model=Model(name=_model_name(model), etag=etag, **changed),  # type: ignore[arg-type]
                update_mask=FieldMask(paths=changed),
                reason=reason,
            )
        )

    def update_version(
        self,
        reference: str,
        *,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        state: "VersionState.ValueType | None" = None,
        etag: str = "",
        reason: str = "",
    ) -> Version:
        """Change what is not None: the description, all tags, the state. Raises ConflictError, as update_model does."""
        given = {"description": description, "tags": tags, "state": state}
        changed = {field: value for field, value in given.items() if value is not None}
        return self._registry.UpdateVersion(
            registry_service_pb2.UpdateVersionRequest(
                version=Version(name=self._number_of(reference), etag=etag, **changed),  # type: ignore[arg-type]
                update_mask=FieldMask(paths=changed),
                reason=reason,
            )
        )

    def add_evaluation(self, reference: str, evaluation: Evaluation, *, reason: str = "") -> Version:
        """Add an evaluation to a version, in place of one of the same metric, dataset version and split."""
        request = registry_service_pb2.AddEvaluationRequest(
            name=self._number_of(reference), evaluation=evaluation, reason=reason
        )
        return self._registry.AddEvaluation(request)

    def add_measurement(self, reference: str, measurement: Measurement, *, reason: str = "") -> Version:
        """Add a measurement to a version, in place of one on the same engine and hardware."""
        request = registry_service_pb2.AddMeasurementRequest(
            name=self._number_of(reference), measurement=measurement, reason=reason
        )
        return self._registry.AddMeasurement(request)

    def delete(self, reference: str, *, reason: str = "") -> None:
        """Delete `reviews`, the model with all that is in it, or `reviews@2`; for 30 days, `restore` brings it back."""
        named = parse_reference(reference)
        if isinstance(named, ModelName):
            self._registry.DeleteModel(registry_service_pb2.DeleteModelRequest(name=str(named), reason=reason))
        else:
            name = self._number_of(reference)
            self._registry.DeleteVersion(registry_service_pb2.DeleteVersionRequest(name=name, reason=reason))

    def restore(self, reference: str, *, reason: str = "") -> Model | Version:
        """Bring back what was deleted: `reviews` or `reviews@2`."""
        named = parse_reference(reference)
        if isinstance(named, ModelName):
            model = registry_service_pb2.UndeleteModelRequest(name=str(named), reason=reason)
            return self._registry.UndeleteModel(model)
        version = registry_service_pb2.UndeleteVersionRequest(name=self._number_of(reference), reason=reason)
        return self._registry.UndeleteVersion(version)

    def history(self, reference: str = "", *, at: datetime | None = None) -> Iterator[Change]:
        """List what changed, newest first: of a model and all in it, of a version, of an alias, or of everything."""
        resource = str(parse_reference(reference)) if reference else ""
        request = registry_service_pb2.ListChangesRequest(resource=resource, read_time=_timestamp(at))
        return _pages(self._registry.ListChanges, request, "changes")

    def watch_registry(
        self, reference: str = "", *, resume_token: str = "", timeout: float | None = None
    ) -> Iterator[WatchRegistryResponse]:
        """Yield what changes in the registry, from a resume token on or from now on; without a timeout, for ever.

        The first comes at once, and others without changes when nothing happens for a while; each has the token to go
        on from. A watch that breaks is opened again and misses nothing.
        """
        resource = str(parse_reference(reference)) if reference else ""
        end = math.inf if timeout is None else time.monotonic() + timeout
        pauses: Pauses | None = None
        while (remaining := end - time.monotonic()) > 0:
            request = registry_service_pb2.WatchRegistryRequest(resume_token=resume_token, resource=resource)
            watch: Any = self._registry.WatchRegistry(request, timeout=min(_WATCH_SECONDS, remaining))
            try:
                with closing(watch):
                    for news in watch:
                        pauses = None
                        resume_token = news.resume_token
                        yield news
            except DeadlineExceededError:
                continue
            except UnavailableError:
                pauses = pauses or Pauses(_WATCH_RETRY_SECONDS)
                if not pauses.wait():
                    raise

    def push_package(
        self, folder: Path, model: str, *, description: str = "", progress: Progress = lambda _: None
    ) -> Version:
        """Store a package folder as the next version of a model, which is made if there is none."""
        paths = package_files(folder)
        name = _model_name(model)
        try:
            self._registry.GetModel(registry_service_pb2.GetModelRequest(name=name))
        except NotFoundError:
            self._make_model(name)
        files = [
            File(path=path.relative_to(folder).as_posix(), blob=str(self._upload(path, progress))) for path in paths
        ]
        return self._registry.CreateVersion(
            registry_service_pb2.CreateVersionRequest(
                parent=name, version=Version(files=files, description=description), request_id=_request_id()
            ),
        )

    def pull_package(self, reference: str, folder: Path, *, progress: Progress = lambda _: None) -> Version:
        """Write a version's package into a folder, which must not hold anything yet."""
        version = self.version(reference)
        if folder.exists() and any(folder.iterdir()):
            raise InvalidInputError(f"{folder} is not empty; name a new folder", reason="FOLDER_NOT_EMPTY")
        for file in version.files:
            target = folder / file.path
            if not target.resolve().is_relative_to(folder.resolve()):
                raise InvalidInputError(f"{version.name} has a file outside its folder", reason="PACKAGE_PATH_INVALID")
            blobs.download_blob(self._raw_channel, BlobName.parse(file.blob), target, progress)
        return version

    def sign(self, reference: str, private_key: Path, *, password: str | None = None) -> VersionSignature:
        """Sign a version with a private key in PEM form, which stays here. Needs `model-signing`.

        Nothing of the model is read: what is signed are the hashes under which its files are stored.
        """
        from maas import signing

        version = self.version(reference)
        key, bundle = signing.sign(private_key, version.name, members_of(version.files), password)
        return self._registry.CreateVersionSignature(
            registry_service_pb2.CreateVersionSignatureRequest(
                parent=version.name, version_signature=VersionSignature(public_key=key.pem, bundle=bundle)
            )
        )

    def signatures(self, reference: str) -> Iterator[VersionSignature]:
        """List a version's signatures, without their bundles, by the fingerprint of their keys."""
        request = registry_service_pb2.ListVersionSignaturesRequest(parent=self.version(reference).name)
        return _pages(self._registry.ListVersionSignatures, request, "version_signatures")

    def verify(
        self, reference: str, public_keys: Sequence[Path | str], *, progress: Progress = lambda _: None
    ) -> VersionSignature:
        """Return the signature of a version by one of the keys, after reading all its bytes and hashing them.

        Raises NotAllowedNowError (VERSION_NOT_SIGNED) when none of the keys signed it, DataCorruptError when stored
        bytes are not the signed ones.
        """
        trusted = [_public_key(Path(path)) for path in public_keys]
        version = self.version(reference)
        found = self._signatures_of(version.name, trusted)
        bundles = {fingerprint: signature.bundle for fingerprint, signature in found.items()}
        try:
            key = signer_of(version.name, members_of(version.files), bundles, trusted)
        except VersionNotSigned as error:
            raise NotAllowedNowError(
                str(error), code="FAILED_PRECONDITION", reason="VERSION_NOT_SIGNED", resource_name=version.name
            ) from error
        with tempfile.TemporaryDirectory(prefix="maas-verify-") as folder:
            for blob in sorted({file.blob for file in version.files}):
                path = Path(folder, "blob")
                blobs.download_blob(self._raw_channel, BlobName.parse(blob), path, progress)
        return found[key.fingerprint]

    # ---- datasets -----------------------------------------------------------------------------------------------

    def datasets(self) -> Iterator[Dataset]:
        """List all datasets, by name."""
        return _pages(self._registry.ListDatasets, registry_service_pb2.ListDatasetsRequest(), "datasets")

    def dataset_versions(self, dataset: str) -> Iterator[DatasetVersion]:
        """List a dataset's versions, newest first."""
        request = registry_service_pb2.ListDatasetVersionsRequest(parent=_dataset_name(dataset))
        return _pages(self._registry.ListDatasetVersions, request, "dataset_versions")

    def dataset(self, dataset: str) -> Dataset:
        """Return one dataset."""
        return self._registry.GetDataset(registry_service_pb2.GetDatasetRequest(name=_dataset_name(dataset)))

    def dataset_version(self, reference: str) -> DatasetVersion:
        """Return the version that `reviews` (the newest) or `reviews@2` refers to, with its statistics."""
        name = _dataset_reference(reference)
        if name.count("/") == 1:
            name = self.dataset(reference).latest_version
            if not name:
                raise NotFoundError(
                    f"{reference} has no version yet; push one: maas data push {reference} FILE",
                    code="NOT_FOUND",
                    reason="DATASET_WITHOUT_VERSION",
                    resource_name=reference,
                )
        return self._registry.GetDatasetVersion(registry_service_pb2.GetDatasetVersionRequest(name=name))

    def push_dataset(
        self,
        dataset: str,
        splits: Mapping[str, Path | str],
        *,
        options: "PrepareOptions | None" = None,
        description: str = "",
        reason: str = "",
        progress: Progress = lambda _: None,
    ) -> DatasetVersion:
        """Store files (`train`, `validation`, `test`) as the next version of a dataset, which is made if missing.

        Files are CSV, JSONL or Parquet; `options` say what becomes of them (maas.datasets.prepare). Pushing what the
        newest version has returns that version.
        """
        check_pyarrow()
        from maas.datasets.prepare import PrepareOptions, prepared_splits

        sources = {_id(split_id): [Path(path)] for split_id, path in splits.items()}
        with prepared_splits(sources, options or PrepareOptions()) as prepared:
            return self.store_dataset(dataset, prepared, description=description, reason=reason, progress=progress)

    def store_dataset(
        self,
        dataset: str,
        splits: "Mapping[str, PreparedSplit]",
        *,
        description: str = "",
        reason: str = "",
        progress: Progress = lambda _: None,
    ) -> DatasetVersion:
        """Store prepared splits as the next version of a dataset; what the newest version has is not stored again."""
        name = _dataset_name(dataset)
        try:
            newest = self.dataset(name).latest_version
        except NotFoundError:
            self._make_dataset(name, description, reason)
            newest = ""
        if newest:
            version = self.dataset_version(newest)
            if {split.split_id: split.file.blob for split in version.splits} == {
                split_id: str(BlobName(blobs.sha256_of(split.path))) for split_id, split in splits.items()
            }:
                return version
        stored = [
            Split(
                split_id=_id(split_id),
                file=File(path=f"{split_id}.parquet", blob=str(self._upload(split.path, progress))),
                statistics=split.statistics,
            )
            for split_id, split in splits.items()
        ]
        return self._registry.CreateDatasetVersion(
            registry_service_pb2.CreateDatasetVersionRequest(
                parent=name,
                dataset_version=DatasetVersion(splits=stored, description=description),
                request_id=_request_id(),
                reason=reason,
            ),
        )

    def pull_dataset(
        self,
        reference: str,
        folder: Path,
        *,
        splits: Sequence[str] = (),
        progress: Progress = lambda _: None,
    ) -> DatasetVersion:
        """Write a version's Parquet files, or those of some splits, into a folder as `<split>.parquet`."""
        version = self.dataset_version(reference)
        for split in _chosen_splits(version, splits):
            target = folder / f"{split.split_id}.parquet"
            blobs.download_blob(self._raw_channel, BlobName.parse(split.file.blob), target, progress)
        return version

    def dataset_rows(self, reference: str, split: str = "", rows: int = 10) -> list[dict[str, Any]]:
        """Return the first rows of a split (default: the first); only the part of its file that holds them is read."""
        check_pyarrow()
        from maas.datasets.remote import first_rows

        version = self.dataset_version(reference)
        chosen = _chosen_splits(version, [split] if split else [])[0]
        return first_rows(self._raw_channel, chosen.file, rows)

    # ---- jobs ---------------------------------------------------------------------------------------------------

    def train(
        self,
        model: str,
        dataset: str,
        *,
        architecture: str = "",
        hyperparameters: Hyperparameters | None = None,
        source: str = "",
        request_id: str = "",
    ) -> TrainingJob:
        """Start a training job that ends with a new version of `model`; `dataset` is `reviews` or `reviews@2`.

        With a `source`, such as `minilm@1`, it goes on from the weights of that version.
        """
        job = TrainingJob(
            model=_model_name(model),
            dataset_version=_dataset_reference(dataset),
            architecture=architecture,
            hyperparameters=hyperparameters,
            source_version=self._version_name(source) if source else "",
        )
        return self._training.CreateTrainingJob(
            training_service_pb2.CreateTrainingJobRequest(training_job=job, request_id=request_id or _request_id())
        )

    def compress(
        self,
        reference: str,
        work: Work,
        *,
        limits: Limits | None = None,
        dataset: str = "",
        unlabelled: str = "",
        allow_no_gain: bool = False,
        request_id: str = "",
    ) -> CompressionJob:
        """Start a compression job on the version that `reference` refers to.

        `work` is a recipe, of techniques or of the lines that stand for them, `["int8(mode=static)"]`, whose result
        becomes a child of the version; or what maas.compressions makes: `search`, `advice`, `sensitivity`, as it makes
        `limits`. Raises RecipeUnreadable.
        """
        job = new_job(self._version_name(reference), work)
        job.limits.CopyFrom(limits or Limits())
        job.dataset_version = self.dataset_version(dataset).name if dataset else ""
        job.unlabelled_dataset_version = self.dataset_version(unlabelled).name if unlabelled else ""
        job.allow_no_gain = allow_no_gain
        return self._compression.CreateCompressionJob(
            compression_service_pb2.CreateCompressionJobRequest(
                compression_job=job, request_id=request_id or _request_id()
            )
        )

    def jobs(self) -> Iterator[Job]:
        """List all jobs, without their log lines: training first, each newest first."""
        yield from _pages(
            self._training.ListTrainingJobs, training_service_pb2.ListTrainingJobsRequest(), "training_jobs"
        )
        yield from _pages(
            self._compression.ListCompressionJobs,
            compression_service_pb2.ListCompressionJobsRequest(),
            "compression_jobs",
        )

    def job(self, job: str) -> Job:
        """Return a job by its name, or by its id alone."""
        names = [_job_name(job)] if "/" in job else [JobName(kind, _id(job)) for kind in JobName.COLLECTIONS]
        for name in names:
            try:
                return self._get_job(name)
            except NotFoundError:
                if name is names[-1]:
                    raise
        raise AssertionError("the last name returns or raises")

    def watch_job(self, job: str, *, timeout: float | None = None) -> Iterator[Job]:
        """Yield the job now and after each change, and end with its final state.

        A watch that breaks is opened again, so that a restart of the cluster goes unnoticed. Without a timeout the
        watch lasts as long as the job. Raises DeadlineExceededError.
        """
        name = _job_name(self.job(job).name)
        end = math.inf if timeout is None else time.monotonic() + timeout
        pauses: Pauses | None = None
        while True:
            remaining = end - time.monotonic()
            if remaining <= 0:
                raise DeadlineExceededError(
                    f"{name} has not ended after {timeout:g} s; it goes on", code="DEADLINE_EXCEEDED", reason="JOB_RUNS"
                )
            try:
                with closing(self._open_watch(name, min(_WATCH_SECONDS, remaining))) as watch:
                    for seen in watch:
                        pauses = None
                        yield seen
                        if seen.status.state in FINAL_STATES:
                            return
            except DeadlineExceededError:
                continue
            except UnavailableError:
                pauses = pauses or Pauses(_WATCH_RETRY_SECONDS)
                if not pauses.wait():
                    raise

    def wait_for_job(self, job: str, *, timeout: float | None = None) -> Job:
        """Wait until a job has succeeded and return it. Raises JobFailed, DeadlineExceededError."""
        last: Job | None = None
        for last in self.watch_job(job, timeout=timeout):  # noqa: B007
            pass
        if last is None:
            raise UnavailableError(f"the watch of {job} ended before it began", code="UNAVAILABLE")
        raise_unless_succeeded(last)
        return last

    def cancel_job(self, job: str) -> Job:
        """Ask a job to stop; returns before it has."""
        name = str(_job_name(self.job(job).name))
        if name.startswith("trainingJobs/"):
            training = training_service_pb2.CancelTrainingJobRequest(name=name)
            return self._training.CancelTrainingJob(training).training_job
        compression = compression_service_pb2.CancelCompressionJobRequest(name=name)
        return self._compression.CancelCompressionJob(compression).compression_job

    # ---- deployments --------------------------------------------------------------------------------------------

    def deployments(self) -> Iterator[Deployment]:
        """List all deployments, by name."""
        return _pages(self._rollout.ListDeployments, rollout_service_pb2.ListDeploymentsRequest(), "deployments")

    def deployment(self, deployment: str) -> Deployment:
        """Return one deployment."""
        name = _deployment_name(deployment)
        return self._rollout.GetDeployment(rollout_service_pb2.GetDeploymentRequest(name=name))

    def deploy(
        self,
        deployment: str,
        targets: Sequence[str | TargetReference],
        *,
        serving: ServingSettings | None = None,
        reset_serving: bool = False,
        trusted_keys: Sequence[Path | str] | None = None,
        actor: str = "",
        reason: str = "",
    ) -> Deployment:
        """Let the targets (`reviews@2`, `reviews@2=90`) answer as `deployment`, which is made or changed.

        Of `serving`, the fields that are set are changed and the others stay as they are; with `reset_serving` the
        others become their defaults. `trusted_keys` are files with public keys, one of which has to have signed each
        target from now on; with an empty list signatures are no longer asked for; None leaves it as it is. Returns
        before the versions are loaded; see wait_until_ready. Versions that answer now do so until the new ones can.
        """
        name = _deployment_name(deployment)
        settings = serving or ServingSettings()
        wanted = Deployment(
            name=name,
            targets=[self._target(target) for target in targets],
            serving=settings,
            trusted_keys=[_public_key(Path(path)).pem for path in trusted_keys or ()],
        )
        changed = ["serving"] if reset_serving else [f"serving.{field.name}" for field, _ in settings.ListFields()]
        if trusted_keys is not None:
            changed.append("trusted_keys")
        try:
            return self._rollout.UpdateDeployment(
                rollout_service_pb2.UpdateDeploymentRequest(
                    deployment=wanted,
                    update_mask=FieldMask(paths=["targets", *changed]),
                    actor=actor,
                    reason=reason,
                )
            )
        except NotFoundError as error:
            if error.resource_name not in ("", name):
                raise
        return self._rollout.CreateDeployment(
            rollout_service_pb2.CreateDeploymentRequest(
                deployment_id=DeploymentName.parse(name).deployment_id, deployment=wanted, actor=actor, reason=reason
            )
        )

    def wait_until_ready(self, deployment: str, *, timeout: float = 60.0) -> Deployment:
        """Wait until all targets are warm. Raises DeploymentFailed, DeadlineExceededError."""
        end = time.monotonic() + timeout
        while True:
            found = self.deployment(deployment)
            if found.state == deployment_pb2.DEPLOYMENT_STATE_READY:
                return found
            if found.state == deployment_pb2.DEPLOYMENT_STATE_FAILED:
                raise DeploymentFailed(
                    f"{found.name} cannot be loaded: {found.message}",
                    code="FAILED_PRECONDITION",
                    reason="DEPLOYMENT_FAILED",
                    resource_name=found.name,
                )
            if time.monotonic() > end:
                state = deployment_pb2.DeploymentState.Name(found.state).removeprefix("DEPLOYMENT_STATE_").lower()
                raise DeadlineExceededError(
                    f"{found.name} is still {state} after {timeout:g} s{found.message and ': ' + found.message}",
                    code="DEADLINE_EXCEEDED",
                    reason="DEPLOYMENT_NOT_READY",
                    resource_name=found.name,
                )
            time.sleep(_POLL_SECONDS)

    def undeploy(self, deployment: str, *, actor: str = "", reason: str = "") -> None:
        """End a deployment; its record of events stays."""
        self._rollout.DeleteDeployment(
            rollout_service_pb2.DeleteDeploymentRequest(name=_deployment_name(deployment), actor=actor, reason=reason)
        )

    def deployment_events(self, deployment: str) -> Iterator[DeploymentEvent]:
        """List what changed a deployment's traffic, newest first."""
        request = rollout_service_pb2.ListDeploymentEventsRequest(parent=_deployment_name(deployment))
        return _pages(self._rollout.ListDeploymentEvents, request, "deployment_events")

    # ---- inference ----------------------------------------------------------------------------------------------

    @overload
    def predict(self, deployment: str, text: str, *, version: str = "", timeout: float | None = None) -> Prediction: ...

    @overload
    def predict(
        self, deployment: str, text: list[str], *, version: str = "", timeout: float | None = None
    ) -> list[Prediction]: ...

    def predict(
        self, deployment: str, text: str | list[str], *, version: str = "", timeout: float | None = None
    ) -> Prediction | list[Prediction]:
        """Classify one text, or several in one request. `version` pins a version's number."""
        texts = [text] if isinstance(text, str) else text
        request = ModelInferRequest(model_name=_deployment_id(deployment), model_version=version)
        tensors.add_texts(request, "text", texts)
        response = self._infer(request, timeout)
        labels = self._labels_of(response.model_name, response.model_version)
        predictions = [
            _prediction(tensors.softmax(row), labels, response.model_version)
            for row in tensors.read_rows_of_numbers(response)
        ]
        return predictions[0] if isinstance(text, str) else predictions

    def infer(
        self, deployment: str, inputs: Mapping[str, Any], *, version: str = "", timeout: float | None = None
    ) -> "dict[str, numpy.ndarray[Any, Any]]":
        """Send tensors, as arrays or lists by name, and return the output tensors by name. Needs numpy."""
        request = ModelInferRequest(model_name=_deployment_id(deployment), model_version=version)
        tensors.add_arrays(request, inputs)
        return tensors.read_arrays(self._infer(request, timeout))

    def replica(self) -> Replica:
        """Return the loaded versions of the inference replica, with what they cost."""
        return self._inference.GetReplica(inference_service_pb2.GetReplicaRequest())

    def is_serving(self, service: str = "") -> bool:
        """Return whether a service (`maas.registry.v1.RegistryService`) says that it serves; all of them when empty."""
        answer = self._health(HealthCheckRequest(service=service))
        return bool(answer.status == HealthCheckResponse.SERVING)

    # ---- how it is done -----------------------------------------------------------------------------------------

    def _infer(self, request: ModelInferRequest, timeout: float | None) -> ModelInferResponse:
        response: ModelInferResponse = self._model_infer(request, timeout=timeout)
        return response

    def _labels_of(self, deployment: str, version: str) -> tuple[str, ...]:
        """Return class names. Predictions do not depend on it: when rollout or registry are away there are none."""
        known = self._labels.get((deployment, version))
        if known is not None and time.monotonic() < known.known_until:
            return known.names
        try:
            name = _deployment_name(deployment)
            target = self._rollout.GetDeployment(
                rollout_service_pb2.GetDeploymentRequest(name=name), timeout=_LABELS_TIMEOUT_SECONDS
            ).targets[0]
            model = VersionName.parse(target.version).model
            found = self._registry.GetVersion(
                registry_service_pb2.GetVersionRequest(name=f"{model}/versions/{version}"),
                timeout=_LABELS_TIMEOUT_SECONDS,
            )
            labels = _Labels(tuple(found.signature.labels), time.monotonic() + _LABELS_KEPT_SECONDS)
        except MaasError:
            labels = _Labels(known.names if known else (), time.monotonic() + _LABELS_RETRY_SECONDS)
        self._labels[deployment, version] = labels
        return labels.names

    def _number_of(self, reference: str) -> str:
        """Return the name of the version, with its number, also where an alias is given."""
        named = parse_reference(reference)
        return str(named) if isinstance(named, VersionName) else self.version(reference).name

    def _version_name(self, reference: str, at: datetime | None = None) -> str:
        """Return the name of the version or alias; for a model that of its newest version."""
        named = parse_reference(reference)
        if not isinstance(named, ModelName):
            return str(named)
        latest = self.model(str(named), at=at).latest_version
        if not latest:
            raise NotFoundError(
                f"{named} has no version yet; train one, or push a package",
                code="NOT_FOUND",
                reason="VERSION_NOT_FOUND",
                resource_name=str(named),
            )
        return latest

    def _target(self, target: str | TargetReference) -> Target:
        wanted = TargetReference.parse(target) if isinstance(target, str) else target
        return Target(version=self._version_name(wanted.reference), weight=wanted.weight)

    def _get_job(self, name: JobName) -> Job:
        if name.collection == "trainingJobs":
            return self._training.GetTrainingJob(training_service_pb2.GetTrainingJobRequest(name=str(name)))
        return self._compression.GetCompressionJob(compression_service_pb2.GetCompressionJobRequest(name=str(name)))

    def _open_watch(self, name: JobName, seconds: float) -> Generator[Job, None, None]:
        """Return a generator of jobs; closing it ends the call."""
        if name.collection == "trainingJobs":
            training = training_service_pb2.WatchTrainingJobRequest(name=str(name))
            return (message.training_job for message in self._training.WatchTrainingJob(training, timeout=seconds))
        compression = compression_service_pb2.WatchCompressionJobRequest(name=str(name))
        return (
            message.compression_job for message in self._compression.WatchCompressionJob(compression, timeout=seconds)
        )

    def _upload(self, path: Path, progress: Progress) -> BlobName:
        return blobs.upload_blob(self._raw_channel, path, progress)

    def _signatures_of(self, version: str, keys: Sequence[PublicKey]) -> dict[str, VersionSignature]:
        """Return the signatures of a version that these keys made, by fingerprint."""
        found = {}
        for key in keys:
            request = registry_service_pb2.GetVersionSignatureRequest(name=f"{version}/signatures/{key.fingerprint}")
            try:
                found[key.fingerprint] = self._registry.GetVersionSignature(request)
            except NotFoundError as error:
                if error.reason != "SIGNATURE_NOT_FOUND":
                    raise
        return found

    def _make_model(self, name: str) -> None:
        try:
            self._registry.CreateModel(registry_service_pb2.CreateModelRequest(model_id=ModelName.parse(name).model_id))
        except AlreadyExistsError:
            return  # somebody made it in between

    def _make_dataset(self, name: str, description: str, reason: str) -> None:
        try:
            self._registry.CreateDataset(
                registry_service_pb2.CreateDatasetRequest(
                    dataset_id=DatasetName.parse(name).dataset_id,
                    dataset=Dataset(description=description),
                    reason=reason,
                )
            )
        except AlreadyExistsError:
            return  # somebody made it in between


def raise_unless_succeeded(job: Job) -> None:
    """Raise JobFailed for a job that ended without a result."""
    if job.status.state == job_state_pb2.JOB_STATE_SUCCEEDED:
        return
    from google.rpc import code_pb2, error_details_pb2

    info = error_details_pb2.ErrorInfo()
    for detail in job.status.error.details:
        if detail.Unpack(info):
            break
    ended = "was cancelled" if job.status.state == job_state_pb2.JOB_STATE_CANCELLED else "failed"
    raise JobFailed(
        f"{job.name} {ended}{': ' if job.status.error.message else ''}{job.status.error.message}",
        code=code_pb2.Code.Name(job.status.error.code),
        reason=info.reason,
        resource_name=job.name,
    )


def package_files(folder: Path) -> list[Path]:
    """Return the files of a package folder. Raises InvalidInputError if it is none."""
    if not (folder / "manifest.json").is_file():
        raise InvalidInputError(
            f"{folder} is no package: it holds no manifest.json", code="INVALID_ARGUMENT", reason="PACKAGE_INVALID"
        )
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _public_key(path: Path) -> PublicKey:
    try:
        return PublicKey.parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, PublicKeyInvalid) as error:
        raise InvalidInputError(f"{path}: {error}", code="INVALID_ARGUMENT", reason="PUBLIC_KEY_INVALID") from error


def _pages(call: Callable[[Any], Any], request: Any, field: str) -> Iterator[Any]:
    while True:
        response = call(request)
        yield from getattr(response, field)
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def _prediction(probabilities: tuple[float, ...], labels: tuple[str, ...], version: str) -> Prediction:
    predicted = max(range(len(probabilities)), key=probabilities.__getitem__)
    return Prediction(predicted, labels[predicted] if predicted < len(labels) else "", probabilities, version)


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(time.astimezone(UTC))
    return timestamp


def _request_id() -> str:
    return uuid.uuid4().hex


def _id(text: str) -> str:
    try:
        return check_id(text)
    except NameInvalid as error:
        raise ReferenceInvalid(str(error)) from error


def _model_name(text: str) -> str:
    return text if text.startswith("models/") else str(ModelName(_id(text)))


def _dataset_name(text: str) -> str:
    return text if text.startswith("datasets/") else str(DatasetName(_id(text)))


def _chosen_splits(version: DatasetVersion, splits: Sequence[str]) -> list[Split]:
    found = {split.split_id: split for split in version.splits}
    for split_id in splits:
        if split_id not in found:
            raise NotFoundError(
                f"{version.name} has no split {split_id}; it has: {', '.join(found)}",
                code="NOT_FOUND",
                reason="DATASET_SPLIT_MISSING",
            )
    return [found[split_id] for split_id in splits or found]


def _dataset_reference(text: str) -> str:
    """`reviews` and `reviews@2` as resource names."""
    if text.startswith("datasets/"):
        return text
    dataset, at, number = text.partition("@")
    return f"{_dataset_name(dataset)}/versions/{number}" if at else _dataset_name(dataset)


def _deployment_name(text: str) -> str:
    return text if text.startswith("deployments/") else str(DeploymentName(_id(text)))


def _deployment_id(text: str) -> str:
    return text.removeprefix("deployments/")


def _job_name(text: str) -> JobName:
    try:
        return JobName.parse(text)
    except NameInvalid as error:
        raise ReferenceInvalid(str(error)) from error

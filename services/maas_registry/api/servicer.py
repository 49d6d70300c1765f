"""RegistryService over gRPC: check, one domain call, convert."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias

from google.protobuf import empty_pb2
from prometheus_client import CollectorRegistry, Counter

from maas.names import (
    AliasName,
    BlobName,
    DatasetName,
    DatasetVersionName,
    DeploymentName,
    ModelName,
    SignatureName,
    VersionName,
    parse_version_or_alias,
)
from maas.registry.v1 import blob_pb2, dataset_pb2, model_pb2, version_pb2, version_signature_pb2
from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceServicer
from maas_registry.api.messages import (
    alias_to_proto,
    blob_to_proto,
    change_to_proto,
    dataset_to_proto,
    dataset_version_to_proto,
    draft_from_proto,
    evaluation_from_proto,
    hold_to_proto,
    measurement_from_proto,
    model_details_from_proto,
    model_to_proto,
    signature_to_proto,
    splits_from_proto,
    time_from_proto,
    version_details_from_proto,
    version_to_proto,
)
from maas_registry.domain.alias_rules import Aliases, Holds
from maas_registry.domain.blobs import Blobs
from maas_registry.domain.changes import Author, Feed, ResourceName, parse_resource, resume_token_invalid
from maas_registry.domain.datasets import Datasets
from maas_registry.domain.filters import parse_filter, parse_order
from maas_registry.domain.listing import (
    BY_NAME,
    MODEL_FIELDS,
    MODEL_ORDERS,
    NEWEST_FIRST,
    VERSION_FIELDS,
    VERSION_ORDERS,
    Place,
    Query,
    Slice,
)
from maas_registry.domain.model_rules import Models
from maas_registry.domain.models import Hold, Model
from maas_registry.domain.signatures import Signatures
from maas_registry.domain.version_rules import STORED_ORDER, Versions
from maas_registry.domain.versions import Version
from maas_runtime.context import current_actor
from maas_runtime.failures import InvalidInput
from maas_runtime.interceptor import Context
from maas_runtime.paging import cut_page, page_size_or_default, page_token, read_page_token
from maas_runtime.validation import mask_paths

MODEL_PATHS = frozenset({"description", "tags"})
VERSION_PATHS = frozenset({"description", "tags", "state"})
NO_VERSION = "none"


class UploadHeaderMisplaced(InvalidInput):
    """An upload does not begin with its header, or has a second one."""

    reason = "UPLOAD_HEADER_MISPLACED"


class InitialStateInvalid(InvalidInput):
    """A version cannot begin in this state."""

    reason = "INITIAL_STATE_INVALID"


@dataclass(frozen=True, slots=True)
class Records:
    """The rules of what is recorded of models, and the log of it."""

    models: Models
    versions: Versions
    aliases: Aliases
    holds: Holds
    feed: Feed


class TransferMetrics:
    """Bytes of blobs that came and went."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.uploaded = Counter("maas_registry_uploaded_bytes", "Bytes of blobs that arrived.", registry=registry)
        self.downloaded = Counter("maas_registry_downloaded_bytes", "Bytes of blobs that were sent.", registry=registry)


class RegistryServicer(RegistryServiceServicer):
    """RegistryService, answered by Models, Signatures, Datasets and Blobs."""

    def __init__(
        self, records: Records, signatures: Signatures, datasets: Datasets, blobs: Blobs, metrics: TransferMetrics
    ) -> None:
        self._models = records.models
        self._versions = records.versions
        self._aliases = records.aliases
        self._holds = records.holds
        self._feed = records.feed
        self._signatures = signatures
        self._datasets = datasets
        self._blobs = blobs
        self._metrics = metrics

    async def CreateModel(self, request: messages.CreateModelRequest, context: Context) -> model_pb2.Model:
        details = model_details_from_proto(request.model)
        return model_to_proto(await self._models.create(ModelName(request.model_id), details, _author(request.reason)))

    async def GetModel(self, request: messages.GetModelRequest, context: Context) -> model_pb2.Model:
        return model_to_proto(await self._models.get(ModelName.parse(request.name), _read_time(request)))

    async def ListModels(self, request: messages.ListModelsRequest, context: Context) -> messages.ListModelsResponse:
        query = Query(
            parse_order(request.order_by, MODEL_ORDERS, BY_NAME),
            parse_filter(request.filter, MODEL_FIELDS),
            request.show_deleted,
            _read_time(request),
        )
        parse: Callable[[str], ModelName | Place] = ModelName.parse if query.order.field == "name" else Place.parse
        after = read_page_token(_query_text(request, "models"), request.page_token, parse)
        found = await self._models.list(query, after, page_size_or_default(request.page_size))
        return messages.ListModelsResponse(
            models=map(model_to_proto, found.items), next_page_token=_next_token(request, "models", found)
        )

    async def UpdateModel(self, request: messages.UpdateModelRequest, context: Context) -> model_pb2.Model:
        asked, paths = model_details_from_proto(request.model), mask_paths(request.update_mask, MODEL_PATHS)
        changes = {path: getattr(asked, path) for path in paths}
        model = await self._models.update(
            ModelName.parse(request.model.name),
            request.model.etag,
            _author(request.reason),
            lambda present: replace(present, **changes),
        )
        return model_to_proto(model)

    async def DeleteModel(self, request: messages.DeleteModelRequest, context: Context) -> empty_pb2.Empty:
        await self._models.delete(ModelName.parse(request.name), request.etag, _author(request.reason))
        return empty_pb2.Empty()

    async def UndeleteModel(self, request: messages.UndeleteModelRequest, context: Context) -> model_pb2.Model:
        return model_to_proto(await self._models.undelete(ModelName.parse(request.name), _author(request.reason)))

    async def CreateVersion(self, request: messages.CreateVersionRequest, context: Context) -> version_pb2.Version:
        if request.version.state == version_pb2.VERSION_STATE_ARCHIVED:
            raise InitialStateInvalid("version.state: a version begins as pending or ready")
        version = await self._versions.create(
            ModelName.parse(request.parent),
            draft_from_proto(request.version),
            request.request_id,
            _author(request.reason),
        )
        return version_to_proto(version)

    async def GetVersion(self, request: messages.GetVersionRequest, context: Context) -> version_pb2.Version:
        return version_to_proto(await self._versions.get(parse_version_or_alias(request.name), _read_time(request)))

    async def ListVersions(
        self, request: messages.ListVersionsRequest, context: Context
    ) -> messages.ListVersionsResponse:
        model = ModelName.parse(request.parent)
        query = Query(
            parse_order(request.order_by, VERSION_ORDERS, NEWEST_FIRST),
            parse_filter(request.filter, VERSION_FIELDS),
            request.show_deleted,
            _read_time(request),
        )
        parse: Callable[[str], VersionName | Place] = (
            VersionName.parse if query.order.field in STORED_ORDER else Place.parse
        )
        after = read_page_token(_query_text(request, f"{model}/versions"), request.page_token, parse)
        found = await self._versions.list(model, query, after, page_size_or_default(request.page_size))
        return messages.ListVersionsResponse(
            versions=map(version_to_proto, found.items),
            next_page_token=_next_token(request, f"{model}/versions", found),
        )

    async def UpdateVersion(self, request: messages.UpdateVersionRequest, context: Context) -> version_pb2.Version:
        asked, paths = version_details_from_proto(request.version), mask_paths(request.update_mask, VERSION_PATHS)
        if "state" in paths and not request.version.state:
            paths.discard("state")
        changes = {path: getattr(asked, path) for path in paths}
        version = await self._versions.update(
            VersionName.parse(request.version.name),
            request.version.etag,
            _author(request.reason),
            lambda present: replace(present, **changes),
        )
        return version_to_proto(version)

    async def AddEvaluation(self, request: messages.AddEvaluationRequest, context: Context) -> version_pb2.Version:
        evaluation = evaluation_from_proto(request.evaluation)
        version = await self._versions.add_evaluation(
            VersionName.parse(request.name), evaluation, _author(request.reason)
        )
        return version_to_proto(version)

    async def AddMeasurement(self, request: messages.AddMeasurementRequest, context: Context) -> version_pb2.Version:
        measurement = measurement_from_proto(request.measurement)
        version = await self._versions.add_measurement(
            VersionName.parse(request.name), measurement, _author(request.reason)
        )
        return version_to_proto(version)

    async def DeleteVersion(self, request: messages.DeleteVersionRequest, context: Context) -> empty_pb2.Empty:
        await self._versions.delete(VersionName.parse(request.name), request.etag, _author(request.reason))
        return empty_pb2.Empty()

    async def UndeleteVersion(self, request: messages.UndeleteVersionRequest, context: Context) -> version_pb2.Version:
        return version_to_proto(await self._versions.undelete(VersionName.parse(request.name), _author(request.reason)))

    async def SetHolds(self, request: messages.SetHoldsRequest, context: Context) -> messages.SetHoldsResponse:
        versions = sorted({VersionName.parse(version) for version in request.versions})
        await self._holds.set(DeploymentName.parse(request.holder), versions, _author(request.reason))
        return messages.SetHoldsResponse(versions=map(str, versions))

    async def ListHolds(self, request: messages.ListHoldsRequest, context: Context) -> messages.ListHoldsResponse:
        query, size = "holds", page_size_or_default(request.page_size)
        after = read_page_token(query, request.page_token, Hold.parse)
        page = cut_page(query, await self._holds.list(after, size + 1), size, key=lambda hold: hold)
        return messages.ListHoldsResponse(holds=map(hold_to_proto, page.items), next_page_token=page.next_page_token)

    async def ListChanges(self, request: messages.ListChangesRequest, context: Context) -> messages.ListChangesResponse:
        resource = _resource(request.resource)
        query, size = _query_text(request, f"changes of {resource}"), page_size_or_default(request.page_size)
        before = read_page_token(query, request.page_token, _change_number)
        found = await self._feed.list(resource, before, size + 1, _read_time(request))
        page = cut_page(query, found, size, key=lambda change: change.sequence)
        return messages.ListChangesResponse(
            changes=map(change_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def WatchRegistry(
        self, request: messages.WatchRegistryRequest, context: Context
    ) -> AsyncIterator[messages.WatchRegistryResponse]:
        resource, after = _resource(request.resource), _resume_point(request.resume_token)
        async with aclosing(self._feed.watch(resource, after)) as watch:
            async for news in watch:
                yield messages.WatchRegistryResponse(
                    changes=map(change_to_proto, news.changes), resume_token=str(news.sequence)
                )

    async def SetAlias(self, request: messages.SetAliasRequest, context: Context) -> model_pb2.Alias:
        expected = request.expected_version
        alias = await self._aliases.set(
            AliasName.parse(request.name),
            VersionName.parse(request.version),
            _author(request.reason),
            etag=request.etag,
            expected=VersionName.parse(expected) if expected not in ("", NO_VERSION) else None,
            expected_none=expected == NO_VERSION,
        )
        return alias_to_proto(alias)

    async def ListAliases(self, request: messages.ListAliasesRequest, context: Context) -> messages.ListAliasesResponse:
        model, size = ModelName.parse(request.parent), page_size_or_default(request.page_size)
        query = _query_text(request, f"{model}/aliases")
        after = read_page_token(query, request.page_token, AliasName.parse)
        aliases = await self._aliases.list(model, after, size + 1, _read_time(request))
        page = cut_page(query, aliases, size, key=lambda alias: alias.name)
        return messages.ListAliasesResponse(
            aliases=[alias_to_proto(alias) for alias in page.items], next_page_token=page.next_page_token
        )

    async def DeleteAlias(self, request: messages.DeleteAliasRequest, context: Context) -> empty_pb2.Empty:
        await self._aliases.delete(AliasName.parse(request.name), request.etag, _author(request.reason))
        return empty_pb2.Empty()

    async def CreateVersionSignature(
        self, request: messages.CreateVersionSignatureRequest, context: Context
    ) -> version_signature_pb2.VersionSignature:
        sent = request.version_signature
        signature = await self._signatures.create(VersionName.parse(request.parent), sent.public_key, sent.bundle)
        return signature_to_proto(signature)

    async def GetVersionSignature(
        self, request: messages.GetVersionSignatureRequest, context: Context
    ) -> version_signature_pb2.VersionSignature:
        return signature_to_proto(await self._signatures.get(SignatureName.parse(request.name)))

    async def ListVersionSignatures(
        self, request: messages.ListVersionSignaturesRequest, context: Context
    ) -> messages.ListVersionSignaturesResponse:
        version, size = VersionName.parse(request.parent), page_size_or_default(request.page_size)
        query = f"{version}/signatures"
        after = read_page_token(query, request.page_token, SignatureName.parse)
        found = await self._signatures.list(version, after, size + 1)
        page = cut_page(query, found, size, key=lambda signature: signature.name)
        return messages.ListVersionSignaturesResponse(
            version_signatures=[signature_to_proto(one, with_bundle=False) for one in page.items],
            next_page_token=page.next_page_token,
        )

    async def CreateDataset(self, request: messages.CreateDatasetRequest, context: Context) -> dataset_pb2.Dataset:
        dataset = await self._datasets.create(
            DatasetName(request.dataset_id), request.dataset.description, _author(request.reason)
        )
        return dataset_to_proto(dataset)

    async def GetDataset(self, request: messages.GetDatasetRequest, context: Context) -> dataset_pb2.Dataset:
        return dataset_to_proto(await self._datasets.get(DatasetName.parse(request.name)))

    async def ListDatasets(
        self, request: messages.ListDatasetsRequest, context: Context
    ) -> messages.ListDatasetsResponse:
        query, size = "datasets", page_size_or_default(request.page_size)
        after = read_page_token(query, request.page_token, DatasetName.parse)
        page = cut_page(query, await self._datasets.list(after, size + 1), size, key=lambda dataset: dataset.name)
        return messages.ListDatasetsResponse(
            datasets=[dataset_to_proto(dataset) for dataset in page.items], next_page_token=page.next_page_token
        )

    async def CreateDatasetVersion(
        self, request: messages.CreateDatasetVersionRequest, context: Context
    ) -> dataset_pb2.DatasetVersion:
        version = await self._datasets.create_version(
            DatasetName.parse(request.parent),
            splits_from_proto(request.dataset_version),
            request.dataset_version.description,
            request.request_id,
            _author(request.reason),
        )
        return dataset_version_to_proto(version)

    async def GetDatasetVersion(
        self, request: messages.GetDatasetVersionRequest, context: Context
    ) -> dataset_pb2.DatasetVersion:
        return dataset_version_to_proto(await self._datasets.get_version(DatasetVersionName.parse(request.name)))

    async def ListDatasetVersions(
        self, request: messages.ListDatasetVersionsRequest, context: Context
    ) -> messages.ListDatasetVersionsResponse:
        dataset, size = DatasetName.parse(request.parent), page_size_or_default(request.page_size)
        query = f"{dataset}/versions"
        before = read_page_token(query, request.page_token, DatasetVersionName.parse)
        versions = await self._datasets.list_versions(dataset, before, size + 1)
        page = cut_page(query, versions, size, key=lambda version: version.name)
        return messages.ListDatasetVersionsResponse(
            dataset_versions=[dataset_version_to_proto(version, statistics=False) for version in page.items],
            next_page_token=page.next_page_token,
        )

    async def GetBlob(self, request: messages.GetBlobRequest, context: Context) -> blob_pb2.Blob:
        return blob_to_proto(await self._blobs.get(BlobName.parse(request.name)))

    async def UploadBlob(
        self, request_iterator: AsyncIterator[messages.UploadBlobRequest], context: Context
    ) -> blob_pb2.Blob:
        first = await anext(request_iterator, None)
        if first is None or not first.HasField("header"):
            raise UploadHeaderMisplaced("the first message of an upload holds its header")
        header = first.header
        async with aclosing(self._chunks(request_iterator)) as chunks:
            blob = await self._blobs.upload(BlobName.parse(header.name), header.size_bytes, header.offset, chunks)
        return blob_to_proto(blob)

    async def DownloadBlob(
        self, request: messages.DownloadBlobRequest, context: Context
    ) -> AsyncIterator[messages.DownloadBlobResponse]:
        async with aclosing(
            self._blobs.download(BlobName.parse(request.name), request.offset, request.length or None)
        ) as chunks:
            async for chunk in chunks:
                self._metrics.downloaded.inc(len(chunk))
                yield messages.DownloadBlobResponse(chunk=chunk)

    async def _chunks(self, requests: AsyncIterator[messages.UploadBlobRequest]) -> AsyncGenerator[bytes, None]:
        async for request in requests:
            if request.HasField("header"):
                raise UploadHeaderMisplaced("only the first message of an upload holds a header")
            self._metrics.uploaded.inc(len(request.chunk))
            yield request.chunk


def _author(reason: str) -> Author:
    return Author(current_actor(), reason)


_Dated: TypeAlias = (
    messages.GetModelRequest
    | messages.GetVersionRequest
    | messages.ListModelsRequest
    | messages.ListVersionsRequest
    | messages.ListAliasesRequest
    | messages.ListChangesRequest
)


def _read_time(request: _Dated) -> datetime | None:
    return time_from_proto(request.read_time) if request.HasField("read_time") else None


def _query_text(
    request: messages.ListModelsRequest
    | messages.ListVersionsRequest
    | messages.ListAliasesRequest
    | messages.ListChangesRequest,
    of: str,
) -> str:
    """All that a page has to have in common with the next one."""
    at = _read_time(request)
    if isinstance(request, messages.ListAliasesRequest | messages.ListChangesRequest):
        return f"{of} at {at}"
    return json.dumps([of, request.filter, request.order_by, request.show_deleted, str(at)])


def _next_token(
    request: messages.ListModelsRequest | messages.ListVersionsRequest, of: str, found: Slice[Model] | Slice[Version]
) -> str:
    return page_token(_query_text(request, of), found.next_key) if found.next_key else ""


def _resource(text: str) -> ResourceName | None:
    return parse_resource(text) if text else None


def _change_number(text: str) -> int:
    """Raises ValueError."""
    number = int(text)
    if not 0 <= number < 2**31:
        raise ValueError(f"{number} is no number of a change")
    return number


def _resume_point(token: str) -> int | None:
    if not token:
        return None
    try:
        return _change_number(token)
    except ValueError as error:
        raise resume_token_invalid() from error

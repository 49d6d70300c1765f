"""RegistryService over gRPC: check, one domain call, convert."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from google.protobuf import empty_pb2
from prometheus_client import CollectorRegistry, Counter

from maas.names import (
    AliasName,
    BlobName,
    DatasetName,
    DatasetVersionName,
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
    dataset_to_proto,
    dataset_version_to_proto,
    draft_from_proto,
    model_to_proto,
    signature_to_proto,
    splits_from_proto,
    version_to_proto,
)
from maas_registry.domain.blobs import Blobs
from maas_registry.domain.datasets import Datasets
from maas_registry.domain.models import Models
from maas_registry.domain.signatures import Signatures
from maas_runtime.failures import InvalidInput
from maas_runtime.interceptor import Context
from maas_runtime.paging import cut_page, page_size_or_default, read_page_token


class UploadHeaderMisplaced(InvalidInput):
    """An upload does not begin with its header, or has a second one."""

    reason = "UPLOAD_HEADER_MISPLACED"


class TransferMetrics:
    """Bytes of blobs that came and went."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.uploaded = Counter("maas_registry_uploaded_bytes", "Bytes of blobs that arrived.", registry=registry)
        self.downloaded = Counter("maas_registry_downloaded_bytes", "Bytes of blobs that were sent.", registry=registry)


class RegistryServicer(RegistryServiceServicer):
    """RegistryService, answered by Models, Signatures, Datasets and Blobs."""

    def __init__(
        self, models: Models, signatures: Signatures, datasets: Datasets, blobs: Blobs, metrics: TransferMetrics
    ) -> None:
        self._models = models
        self._signatures = signatures
        self._datasets = datasets
        self._blobs = blobs
        self._metrics = metrics

    async def CreateModel(self, request: messages.CreateModelRequest, context: Context) -> model_pb2.Model:
        model = await self._models.create(
            ModelName(request.model_id), request.model.description, dict(request.model.tags)
        )
        return model_to_proto(model)

    async def GetModel(self, request: messages.GetModelRequest, context: Context) -> model_pb2.Model:
        return model_to_proto(await self._models.get(ModelName.parse(request.name)))

    async def ListModels(self, request: messages.ListModelsRequest, context: Context) -> messages.ListModelsResponse:
        query, size = "models", page_size_or_default(request.page_size)
        after = read_page_token(query, request.page_token, ModelName.parse)
        page = cut_page(query, await self._models.list(after, size + 1), size, key=lambda model: model.name)
        return messages.ListModelsResponse(
            models=[model_to_proto(model) for model in page.items], next_page_token=page.next_page_token
        )

    async def CreateVersion(self, request: messages.CreateVersionRequest, context: Context) -> version_pb2.Version:
        version = await self._models.create_version(
            ModelName.parse(request.parent), draft_from_proto(request.version), request.request_id
        )
        return version_to_proto(version)

    async def GetVersion(self, request: messages.GetVersionRequest, context: Context) -> version_pb2.Version:
        return version_to_proto(await self._models.get_version(parse_version_or_alias(request.name)))

    async def ListVersions(
        self, request: messages.ListVersionsRequest, context: Context
    ) -> messages.ListVersionsResponse:
        model, size = ModelName.parse(request.parent), page_size_or_default(request.page_size)
        query = f"{model}/versions"
        before = read_page_token(query, request.page_token, VersionName.parse)
        versions = await self._models.list_versions(model, before, size + 1)
        page = cut_page(query, versions, size, key=lambda version: version.name)
        return messages.ListVersionsResponse(
            versions=[version_to_proto(version) for version in page.items], next_page_token=page.next_page_token
        )

    async def SetAlias(self, request: messages.SetAliasRequest, context: Context) -> model_pb2.Alias:
        alias = await self._models.set_alias(AliasName.parse(request.name), VersionName.parse(request.version))
        return alias_to_proto(alias)

    async def ListAliases(self, request: messages.ListAliasesRequest, context: Context) -> messages.ListAliasesResponse:
        model, size = ModelName.parse(request.parent), page_size_or_default(request.page_size)
        query = f"{model}/aliases"
        after = read_page_token(query, request.page_token, AliasName.parse)
        aliases = await self._models.list_aliases(model, after, size + 1)
        page = cut_page(query, aliases, size, key=lambda alias: alias.name)
        return messages.ListAliasesResponse(
            aliases=[alias_to_proto(alias) for alias in page.items], next_page_token=page.next_page_token
        )

    async def DeleteAlias(self, request: messages.DeleteAliasRequest, context: Context) -> empty_pb2.Empty:
        await self._models.delete_alias(AliasName.parse(request.name))
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
        dataset = await self._datasets.create(DatasetName(request.dataset_id), request.dataset.description)
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
        async with aclosing(self._blobs.download(BlobName.parse(request.name), request.offset)) as chunks:
            async for chunk in chunks:
                self._metrics.downloaded.inc(len(chunk))
                yield messages.DownloadBlobResponse(chunk=chunk)

    async def _chunks(self, requests: AsyncIterator[messages.UploadBlobRequest]) -> AsyncGenerator[bytes, None]:
        async for request in requests:
            if request.HasField("header"):
                raise UploadHeaderMisplaced("only the first message of an upload holds a header")
            self._metrics.uploaded.inc(len(request.chunk))
            yield request.chunk

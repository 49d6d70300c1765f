"""The production server with everything around it, called through generated stubs."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.protobuf import empty_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from maas.errors import InvalidInputError, NotFoundError, UnavailableError, from_rpc_error
from maas.names import ModelName
from maas.registry.v1 import blob_pb2, model_pb2, registry_service_pb2
from maas.registry.v1.registry_service_pb2_grpc import (
    RegistryServiceServicer,
    RegistryServiceStub,
    add_RegistryServiceServicer_to_server,
)
from maas_runtime.channel import open_channel, translated_failures
from maas_runtime.context import CURRENT_CALL
from maas_runtime.failures import NotFound, Unavailable
from maas_runtime.logs import JsonFormatter
from maas_runtime.metrics import metrics_page
from maas_runtime.server import GrpcService, ListenFailed, build_server, serve
from maas_runtime.settings import ProcessSettings


class ModelMissing(NotFound):
    """The model is not there."""

    reason = "TEST_MODEL_MISSING"


class Servicer(RegistryServiceServicer):
    """Fails in every way that a servicer may."""

    def __init__(self) -> None:
        self.seen_request_ids: list[str] = []

    async def GetModel(self, request: registry_service_pb2.GetModelRequest, context: Any) -> model_pb2.Model:
        call = CURRENT_CALL.get()
        assert call is not None
        self.seen_request_ids.append(call.request_id)
        match ModelName.parse(request.name).model_id:
            case "bug":
                raise ZeroDivisionError("secret")
            case "missing":
                raise ModelMissing("no model missing", name=request.name)
            case "slow":
                await asyncio.sleep(60)
        return model_pb2.Model(name=request.name)

    async def DeleteAlias(self, request: registry_service_pb2.DeleteAliasRequest, context: Any) -> empty_pb2.Empty:
        raise Unavailable("away", retry_after_seconds=2.5)

    async def UploadBlob(self, request_iterator: Any, context: Any) -> blob_pb2.Blob:
        total = 0
        async for message in request_iterator:
            total += len(message.chunk)
        return blob_pb2.Blob(size_bytes=total)

    async def DownloadBlob(
        self, request: registry_service_pb2.DownloadBlobRequest, context: Any
    ) -> AsyncIterator[registry_service_pb2.DownloadBlobResponse]:
        yield registry_service_pb2.DownloadBlobResponse(chunk=b"first")
        raise ModelMissing("gone in the middle", name=request.name)


@asynccontextmanager
async def running(servicer: RegistryServiceServicer) -> AsyncIterator[tuple[str, CollectorRegistry]]:
    metrics = CollectorRegistry()
    server, _ = build_server(
        [GrpcService("maas.registry.v1.RegistryService", lambda s: add_RegistryServiceServicer_to_server(servicer, s))],
        metrics,
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", metrics
    finally:
        await server.stop(None)


def details_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    metadata: Any = error.trailing_metadata()
    return status_pb2.Status.FromString(dict(metadata)["grpc-status-details-bin"])


async def test_failure_reaches_the_caller_with_status_reason_and_resource() -> None:
    async with running(Servicer()) as (address, _), grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RegistryServiceStub(channel).GetModel(
                registry_service_pb2.GetModelRequest(name="models/missing"), timeout=5
            )
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    info, resource = error_details_pb2.ErrorInfo(), error_details_pb2.ResourceInfo()
    details = details_of(caught.value).details
    assert details[0].Unpack(info)
    assert details[2].Unpack(resource)
    assert (info.reason, info.domain) == ("TEST_MODEL_MISSING", "maas")
    assert resource.resource_name == "models/missing"
    error = from_rpc_error(caught.value)
    assert isinstance(error, NotFoundError)
    assert error.resource_name == "models/missing"


async def test_a_bug_is_internal_and_tells_only_the_request_id(caplog: pytest.LogCaptureFixture) -> None:
    async with running(Servicer()) as (address, _), grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RegistryServiceStub(channel).GetModel(
                registry_service_pb2.GetModelRequest(name="models/bug"),
                timeout=5,
                metadata=(("x-request-id", "abc-1"),),
            )
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "internal error; request id abc-1"
    assert "ZeroDivisionError" in caplog.text


async def test_a_rpc_that_is_not_implemented_says_so() -> None:
    async with running(Servicer()) as (address, _), grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RegistryServiceStub(channel).ListModels(registry_service_pb2.ListModelsRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_broken_rules_of_the_contract_name_their_fields() -> None:
    async with running(Servicer()) as (address, _), grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RegistryServiceStub(channel).CreateModel(
                registry_service_pb2.CreateModelRequest(model_id="Not An Id"), timeout=5
            )
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidInputError)
    assert error.reason == "REQUEST_INVALID"
    assert [field for field, _ in error.violations] == ["model_id"]


async def test_a_wrong_resource_name_is_invalid_argument() -> None:
    async with running(Servicer()) as (address, _), grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RegistryServiceStub(channel).GetModel(registry_service_pb2.GetModelRequest(name="model/x"), timeout=5)
    assert from_rpc_error(caught.value).reason == "RESOURCE_NAME_INVALID"


async def test_a_broken_rule_in_mid_stream_ends_an_upload() -> None:
    async def parts() -> AsyncIterator[registry_service_pb2.UploadBlobRequest]:
        yield registry_service_pb2.UploadBlobRequest(chunk=b"x")
        yield registry_service_pb2.UploadBlobRequest()

    async with running(Servicer()) as (address, _), grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RegistryServiceStub(channel).UploadBlob(parts(), timeout=5)
    assert from_rpc_error(caught.value).reason == "REQUEST_INVALID"


async def test_a_failure_in_mid_stream_comes_after_what_was_sent() -> None:
    received = []
    async with running(Servicer()) as (address, _), grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for response in RegistryServiceStub(channel).DownloadBlob(
                registry_service_pb2.DownloadBlobRequest(name="blobs/x"), timeout=5
            ):
                received.append(response.chunk)
    assert received == [b"first"]
    assert from_rpc_error(caught.value).reason == "TEST_MODEL_MISSING"


async def test_a_failure_crosses_two_services_with_its_reason() -> None:
    class Front(Servicer):
        def __init__(self, channel: grpc.aio.Channel) -> None:
            super().__init__()
            self._behind = RegistryServiceStub(channel)

        async def GetModel(self, request: registry_service_pb2.GetModelRequest, context: Any) -> model_pb2.Model:
            return await self._behind.GetModel(request)

        async def DownloadBlob(
            self, request: registry_service_pb2.DownloadBlobRequest, context: Any
        ) -> AsyncIterator[registry_service_pb2.DownloadBlobResponse]:
            with translated_failures():
                async for response in self._behind.DownloadBlob(request):
                    yield response

    behind = Servicer()
    async with (
        running(behind) as (address, _),
        open_channel(address) as to_behind,
        running(Front(to_behind)) as (front_address, _),
        grpc.aio.insecure_channel(front_address) as channel,
    ):
        stub = RegistryServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await stub.GetModel(
                registry_service_pb2.GetModelRequest(name="models/missing"),
                timeout=5,
                metadata=(("x-request-id", "travels"),),
            )
        with pytest.raises(grpc.aio.AioRpcError) as stream:
            async for _ in stub.DownloadBlob(registry_service_pb2.DownloadBlobRequest(name="blobs/x"), timeout=5):
                pass
        assert from_rpc_error(unary.value).reason == "TEST_MODEL_MISSING"
        assert from_rpc_error(stream.value).reason == "TEST_MODEL_MISSING"
        assert behind.seen_request_ids == ["travels"]


async def test_the_callers_deadline_goes_along() -> None:
    class Front(Servicer):
        def __init__(self, channel: grpc.aio.Channel) -> None:
            super().__init__()
            self.behind = RegistryServiceStub(channel)
            self.outcome: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

        async def GetModel(self, request: registry_service_pb2.GetModelRequest, context: Any) -> model_pb2.Model:
            try:
                return await asyncio.shield(self._ask(request))
            except asyncio.CancelledError:
                raise

        async def _ask(self, request: registry_service_pb2.GetModelRequest) -> model_pb2.Model:
            try:
                return await self.behind.GetModel(request)
            except Exception as error:
                self.outcome.set_result(error)
                raise

    async with running(Servicer()) as (address, _), open_channel(address) as to_behind:
        front = Front(to_behind)
        async with running(front) as (front_address, _), grpc.aio.insecure_channel(front_address) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await RegistryServiceStub(channel).GetModel(
                    registry_service_pb2.GetModelRequest(name="models/slow"), timeout=0.3
                )
            # Without the deadline the inner call would have ended by its own default of 10 s.
            outcome = await asyncio.wait_for(front.outcome, timeout=5)
        assert isinstance(outcome, Unavailable)


async def test_calls_are_counted_by_method_status_and_reason() -> None:
    async with running(Servicer()) as (address, metrics), grpc.aio.insecure_channel(address) as channel:
        stub = RegistryServiceStub(channel)
        await stub.GetModel(registry_service_pb2.GetModelRequest(name="models/fine"), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.DeleteAlias(registry_service_pb2.DeleteAliasRequest(name="models/a/aliases/b"), timeout=5)
    error = from_rpc_error(caught.value)
    assert isinstance(error, UnavailableError)
    assert error.retry_after_seconds == 2.5
    service = "/maas.registry.v1.RegistryService"
    for labels in (
        {"method": f"{service}/GetModel", "status": "OK", "reason": ""},
        {"method": f"{service}/DeleteAlias", "status": "UNAVAILABLE", "reason": "UNAVAILABLE"},
    ):
        assert metrics.get_sample_value("maas_runtime_calls_total", labels) == 1
    assert metrics.get_sample_value("maas_runtime_calls_running") == 0


async def test_health_and_reflection_know_the_service() -> None:
    settings_service = "maas.registry.v1.RegistryService"
    async with running(Servicer()) as (address, _), grpc.aio.insecure_channel(address) as channel:
        from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5)
        answer = await call.read()
    assert settings_service in [service.name for service in answer.list_services_response.service]


def settings_for(folder: Path, listen: str) -> ProcessSettings:
    return ProcessSettings(
        home=folder, listen=listen, metrics_listen=f"unix:{folder}/metrics.sock", log_level="INFO", drain_seconds=5.0
    )


async def test_a_stopped_server_lets_running_calls_end(tmp_path: Path) -> None:
    started, finish = asyncio.Event(), asyncio.Event()

    class Slow(RegistryServiceServicer):
        async def GetModel(self, request: registry_service_pb2.GetModelRequest, context: Any) -> model_pb2.Model:
            started.set()
            await finish.wait()
            return model_pb2.Model(name=request.name)

    service = GrpcService(
        "maas.registry.v1.RegistryService", lambda s: add_RegistryServiceServicer_to_server(Slow(), s)
    )
    address = f"unix:{tmp_path}/s.sock"
    process = asyncio.create_task(serve(settings_for(tmp_path, address), [service], CollectorRegistry()))
    async with grpc.aio.insecure_channel(address) as channel:
        call = RegistryServiceStub(channel).GetModel(
            registry_service_pb2.GetModelRequest(name="models/a"), timeout=10, wait_for_ready=True
        )
        answered = asyncio.ensure_future(call)
        await asyncio.wait_for(started.wait(), timeout=5)
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == 1

        import os
        import signal

        os.kill(os.getpid(), signal.SIGTERM)
        finish.set()
        assert (await asyncio.wait_for(answered, timeout=5)).name == "models/a"
        await asyncio.wait_for(process, timeout=5)


async def test_an_address_in_use_is_one_clear_failure(tmp_path: Path) -> None:
    async with running(Servicer()) as (address, _):
        with pytest.raises(ListenFailed, match="in use"):
            await serve(settings_for(tmp_path, address), [], CollectorRegistry())


async def test_the_metrics_page_shows_what_was_counted(tmp_path: Path) -> None:
    socket = f"{tmp_path}/m.sock"
    async with (
        running(Servicer()) as (_, metrics),
        metrics_page(metrics, f"unix:{socket}"),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as session,
        session.get("http://process/metrics") as response,
    ):
        assert response.status == 200
        assert "maas_runtime_calls_running 0.0" in await response.text()


def test_a_log_line_is_one_json_object_with_its_fields() -> None:
    record = logging.LogRecord("maas_x", logging.INFO, "f", 1, "model loaded", None, None)
    record.seconds = 1.5
    line = json.loads(JsonFormatter("maas_x").format(record))
    assert (line["event"], line["seconds"], line["process"], line["level"]) == ("model loaded", 1.5, "maas_x", "INFO")

"""No request, however wrong, ends in INTERNAL: every rpc of both services, over their real stores and the wire."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from maas.registry.v1 import registry_service_pb2
from maas.rollout.v1 import rollout_service_pb2
from maas_registry.__main__ import open_registry
from maas_registry.settings import Settings as RegistrySettings
from maas_rollout.__main__ import open_rollout
from maas_rollout.settings import Settings as RolloutSettings
from maas_runtime.server import build_server

REGISTRY = registry_service_pb2.DESCRIPTOR.services_by_name["RegistryService"]
ROLLOUT = rollout_service_pb2.DESCRIPTOR.services_by_name["RolloutService"]

BLOBS = ["blobs/" + "0" * 64, "blobs/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]
# What `name` and `parent` may well be, by a word in the name of their message; the first that fits.
NAMES = {
    "DatasetVersion": (["datasets/a/versions/1", "datasets/a/versions/2"], "datasets/a"),
    "Dataset": (["datasets/a"], ""),
    "Deployment": (["deployments/a"], "deployments/a"),
    "Alias": (["models/a/aliases/best"], "models/a"),
    "VersionSignature": ([f"models/a/versions/1/signatures/{'0a' * 32}"], "models/a/versions/1"),
    "Evaluation": (["models/a/versions/1"], ""),
    "Measurement": (["models/a/versions/1"], ""),
    "Version": (["models/a/versions/1", "models/a/versions/999999999999999999", "models/a/aliases/best"], "models/a"),
    "Model": (["models/a"], ""),
    "Blob": (BLOBS, ""),
    "Upload": (BLOBS, ""),
}
# What a field may well hold, so that requests get past the first check.
FITTING = {
    "version": ["models/a/versions/1", "models/a/versions/999999999999999999", "models/a/aliases/best"],
    "parent_version": ["", "models/a/versions/1"],
    "dataset_version": ["datasets/a/versions/1"],
    "deployment": ["deployments/a"],
    "blob": BLOBS,
    "path": ["manifest.json", "model.onnx", "../a", "MANIFEST.JSON"],
    "model_id": ["a", "b-1"],
    "dataset_id": ["a"],
    "deployment_id": ["a"],
    "split_id": ["train"],
    "page_token": ["", "bW9kZWxzCm1vZGVscy9h", "ZGVwbG95bWVudHMvYS9ldmVudHMKOTk5OTk5OTk5OTk5OTk5OTk5OTk5"],
    "resume_token": ["", "a.1", "a." + "9" * 30, "0", "9" * 30],
    "paths": ["targets", "description", "tags", "state"],
    "filter": ["", "state = ready", 'tags.a = "b" OR NOT number < 2', "create_time > 2026-01-01", "state ="],
    "order_by": ["", "name", "number desc", "size_bytes", "metrics.accuracy desc", "version_count"],
    "expected_version": ["", "none", "models/a/versions/1"],
    "holder": ["deployments/a"],
    "versions": ["models/a/versions/1"],
    "resource": ["", "models/a", "models/a/aliases/best", "models/a/versions/1", "datasets/a"],
    "replica": ["a", "b"],
    "metric": ["accuracy"],
    "etag": ["", "1"],
    "request_id": ["", "a"],
}
ANSWERS = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "ABORTED"}
HOSTILE = st.one_of(st.sampled_from(["", "models/a/versions/0", "a" * 3000, "\x00", "１"]), st.text(max_size=20))
INTEGERS = st.one_of(st.integers(0, 3), st.sampled_from([1000, 2**31 - 1]), st.integers(-(2**31), 2**31 - 1))


def messages_of(descriptor: Descriptor, depth: int = 4) -> st.SearchStrategy[Message]:
    """Any message of a type, as deep as `depth`."""
    kind = message_factory.GetMessageClass(descriptor)
    fields = {
        field.name: values_of(field, depth - 1)
        for field in descriptor.fields
        if depth > 0 or field.message_type is None
    }
    whole, part = st.fixed_dictionaries(fields), st.fixed_dictionaries({}, optional=fields)
    return st.one_of(whole, whole, part).map(lambda values: kind(**values))


def values_of(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.dictionaries(HOSTILE, HOSTILE, max_size=3)
    one: st.SearchStrategy[Any]
    match field.type:
        case FieldDescriptor.TYPE_MESSAGE:
            assert field.message_type is not None
            one = messages_of(field.message_type, depth)
        case FieldDescriptor.TYPE_STRING:
            fitting = st.sampled_from(fitting_for(field))
            one = st.integers(0, 9).flatmap(lambda chance: HOSTILE if chance == 9 else fitting)
        case FieldDescriptor.TYPE_BYTES:
            one = st.binary(max_size=20)
        case FieldDescriptor.TYPE_BOOL:
            one = st.booleans()
        case FieldDescriptor.TYPE_DOUBLE:
            one = st.floats()
        case FieldDescriptor.TYPE_ENUM:
            one = st.integers(0, 5)
        case _:
            one = INTEGERS
    return st.lists(one, min_size=1, max_size=2) if field.is_repeated else one


def fitting_for(field: FieldDescriptor) -> list[str]:
    """Texts that may well be right."""
    assert field.containing_type is not None
    names, parent = next((pair for word, pair in NAMES.items() if word in field.containing_type.name), ([""], ""))
    return {"name": names, "parent": [parent]}.get(field.name) or FITTING.get(field.name, ["", "text"])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Both services behind one server, in a thread of its own."""
    folder = tmp_path_factory.mktemp("fuzz")
    started, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve(folder, started, stop)))
    thread.start()
    assert started.wait(30)
    yield f"unix:{folder}/s.sock"
    stop.set()
    thread.join(30)


async def serve(folder: Path, started: threading.Event, stop: threading.Event) -> None:
    variables = {
        "MAAS_HOME": str(folder),
        "MAAS_LISTEN": f"unix:{folder}/s.sock",
        "MAAS_METRICS_LISTEN": f"unix:{folder}/m.sock",
        "MAAS_REGISTRY_ADDRESS": f"unix:{folder}/s.sock",
    }
    metrics = CollectorRegistry()
    async with (
        open_registry(RegistrySettings.from_env(variables), metrics) as registry,
        open_rollout(RolloutSettings.from_env(variables)) as rollout,
    ):
        server, _ = build_server([registry, rollout.service], metrics)
        server.add_insecure_port(variables["MAAS_LISTEN"])
        await server.start()
        started.set()
        await asyncio.to_thread(stop.wait)
        rollout.feed.close()
        await server.stop(None)


@pytest.mark.parametrize(
    "method",
    [*REGISTRY.methods, *ROLLOUT.methods],
    ids=lambda method: f"{method.containing_service.name}-{method.name}",
)
def test_every_request_gets_an_answer_that_its_caller_can_act_on(method: MethodDescriptor, address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        call = caller(channel, method)

        @given(messages_of(method.input_type))
        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        def check(request: Message) -> None:
            assert call(request).name in ANSWERS

        check()


def caller(channel: grpc.Channel, method: MethodDescriptor) -> Any:
    """Return what calls the method with one request and returns the status; of a stream of answers it reads one."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    codec = {
        "request_serializer": lambda message: message.SerializeToString(),
        "response_deserializer": message_factory.GetMessageClass(method.output_type).FromString,
    }

    def call(request: Message) -> grpc.StatusCode:
        try:
            if method.server_streaming:
                answers = channel.unary_stream(path, **codec)(request, timeout=10)
                next(answers, None)
                answers.cancel()
            elif method.client_streaming:
                channel.stream_unary(path, **codec)(iter([request, request]), timeout=10)
            else:
                channel.unary_unary(path, **codec)(request, timeout=10)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    return call

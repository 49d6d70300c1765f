"""The protos keep the rules of docs and STYLE; the stubs are what they make; the wire of OIP is the specification's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tritonclient.grpc.model_config_pb2 as triton_config
import tritonclient.grpc.service_pb2 as triton
from google.api import field_behavior_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from maas.oip.v2 import grpc_service_pb2 as oip

ROOT = Path(__file__).resolve().parents[2]
BEHAVIOR_WORDS = {
    "Required": "REQUIRED",
    "Optional": "OPTIONAL",
    "Output only": "OUTPUT_ONLY",
    "Immutable": "IMMUTABLE",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    image = tmp_path_factory.mktemp("image") / "image.binpb"
    subprocess.run([sys.executable, "tools/stubs.py", "--image", str(image)], cwd=ROOT, check=True, timeout=60)
    descriptors = FileDescriptorSet.FromString(image.read_bytes())
    return [file for file in descriptors.file if file.name.startswith("maas/")]


def fields_with_comments(file: FileDescriptorProto) -> list[tuple[str, FieldDescriptorProto, str]]:
    comments = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}
    found = []

    def walk(message: DescriptorProto, path: tuple[int, ...], name: str) -> None:
        if message.options.map_entry:
            return
        for index, field in enumerate(message.field):
            found.append((f"{name}.{field.name}", field, comments.get((*path, 2, index), "").strip()))
        for index, nested in enumerate(message.nested_type):
            walk(nested, (*path, 3, index), f"{name}.{nested.name}")

    for index, message in enumerate(file.message_type):
        walk(message, (4, index), message.name)
    return found


def test_every_field_opens_with_its_behavior_and_carries_the_same_annotation(files: list[FileDescriptorProto]) -> None:
    wrong = []
    for file in files:
        if file.package == "maas.oip.v2":
            continue  # the specification's messages carry no annotations
        for name, field, comment in fields_with_comments(file):
            annotated = {
                field_behavior_pb2.FieldBehavior.Name(value)
                for value in field.options.Extensions[field_behavior_pb2.field_behavior]
            }
            said = {code for word, code in BEHAVIOR_WORDS.items() if re.match(rf"(\w+\. )*{word}\b", comment)}
            if not said or not said & annotated or not annotated:
                wrong.append(f"{file.name}: {name}: says {said}, annotated {annotated}")
    assert not wrong, "\n".join(wrong)


def test_every_field_and_rpc_is_explained(files: list[FileDescriptorProto]) -> None:
    silent = [
        f"{file.name}: {name}" for file in files for name, _, comment in fields_with_comments(file) if len(comment) < 5
    ]
    for file in files:
        comments = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}
        for service_index, service in enumerate(file.service):
            silent += [
                f"{file.name}: {method.name}"
                for index, method in enumerate(service.method)
                if not comments.get((6, service_index, 2, index), "").strip()
            ]
    assert not silent, "\n".join(silent)


def test_every_list_pages_from_its_first_day(files: list[FileDescriptorProto]) -> None:
    messages = {
        message.name: {field.name for field in message.field} for file in files for message in file.message_type
    }
    lists = [name for name in messages if re.fullmatch(r"List\w+Request", name)]
    assert lists
    for name in lists:
        assert {"page_size", "page_token"} <= messages[name], name
        assert "next_page_token" in messages[name.replace("Request", "Response")], name


def test_stubs_are_what_the_protos_make() -> None:
    result = subprocess.run(
        [sys.executable, "tools/stubs.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


def test_lint_finds_a_field_without_a_comment(tmp_path: Path) -> None:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet as Set

    image = tmp_path / "image.binpb"
    subprocess.run([sys.executable, "tools/stubs.py", "--image", str(image)], cwd=ROOT, check=True, timeout=60)
    descriptors = Set.FromString(image.read_bytes())
    victim = next(file for file in descriptors.file if file.name == "maas/jobs/v1/job_state.proto")
    for location in victim.source_code_info.location:
        location.ClearField("leading_comments")
    image.write_bytes(descriptors.SerializeToString())
    buf = Path(sys.executable).parent / "buf"
    command = [str(buf), "lint", str(image), "--config", "buf.yaml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert "job_state.proto" in result.stdout


def wire_shape(message: object) -> dict[str, tuple[int, int, int]]:
    fields = message.fields if hasattr(message, "fields") else []
    return {field.name: (field.number, field.type, int(field.is_repeated)) for field in fields}


@pytest.mark.parametrize(
    "name",
    [
        "ServerLiveRequest", "ServerLiveResponse", "ServerReadyRequest", "ServerReadyResponse", "ModelReadyRequest",
        "ModelReadyResponse", "ServerMetadataRequest", "ServerMetadataResponse", "ModelMetadataRequest",
        "ModelMetadataResponse", "ModelInferRequest", "ModelInferResponse", "InferParameter", "InferTensorContents",
        "ModelStreamInferResponse", "ModelConfigRequest", "ModelConfigResponse", "ModelStatisticsRequest",
        "ModelStatisticsResponse", "StatisticDuration", "RepositoryIndexRequest", "RepositoryIndexResponse",
        "ModelRepositoryParameter", "RepositoryModelLoadRequest", "RepositoryModelLoadResponse",
        "RepositoryModelUnloadRequest", "RepositoryModelUnloadResponse",
    ],
)  # fmt: skip
def test_oip_messages_are_on_the_wire_what_tritonclient_sends(name: str) -> None:
    ours, theirs = getattr(oip, name).DESCRIPTOR, getattr(triton, name).DESCRIPTOR
    assert wire_shape(ours) == wire_shape(theirs)
    for nested in ours.nested_types:
        if not nested.GetOptions().map_entry:
            assert wire_shape(nested) == wire_shape(theirs.nested_types_by_name[nested.name])


@pytest.mark.parametrize("name", ["ModelStatistics", "InferStatistics", "ModelConfig", "ModelInput", "ModelOutput"])
def test_oip_messages_of_which_we_give_a_part_have_the_same_numbers(name: str) -> None:
    theirs = wire_shape(getattr(triton if hasattr(triton, name) else triton_config, name).DESCRIPTOR)
    assert wire_shape(getattr(oip, name).DESCRIPTOR).items() <= theirs.items()


def test_oip_methods_and_types_are_those_that_tritonclient_calls() -> None:
    ours = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    theirs = triton.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for name, method in ours.items():
        assert method.client_streaming == theirs[name].client_streaming
        assert method.input_type.name == theirs[name].input_type.name
        assert method.output_type.name == theirs[name].output_type.name
    assert dict(oip.DataType.items()) == dict(triton_config.DataType.items())


def test_an_oip_request_of_tritonclient_is_read_by_our_stubs() -> None:
    theirs = triton.ModelInferRequest(model_name="reviews", id="1", raw_input_contents=[b"\x01"])
    theirs.inputs.add(name="tokens", datatype="INT64", shape=[1, 2]).contents.int64_contents.extend([3, 4])
    theirs.parameters["sequence_id"].int64_param = 7
    ours = oip.ModelInferRequest.FromString(theirs.SerializeToString())
    assert (ours.model_name, ours.id, list(ours.inputs[0].shape)) == ("reviews", "1", [1, 2])
    assert ours.parameters["sequence_id"].int64_param == 7
    assert triton.ModelInferRequest.FromString(ours.SerializeToString()) == theirs
    assert message_factory.GetMessageClass(ours.DESCRIPTOR) is oip.ModelInferRequest

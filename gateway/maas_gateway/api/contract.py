"""The contract as descriptors: which services there are, and what the transcoder and reflection need of them."""

from collections.abc import Iterable

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from maas.compression.v1 import compression_service_pb2
from maas.inference.v1 import inference_service_pb2
from maas.oip.v2 import grpc_service_pb2
from maas.registry.v1 import registry_service_pb2
from maas.rollout.v1 import rollout_service_pb2
from maas.training.v1 import training_service_pb2
from maas_gateway.domain.topology import INFERENCE, Rpc, Service

SERVICE_FILES: dict[str, FileDescriptor] = {
    "registry": registry_service_pb2.DESCRIPTOR,
    "training": training_service_pb2.DESCRIPTOR,
    "compression": compression_service_pb2.DESCRIPTOR,
    "rollout": rollout_service_pb2.DESCRIPTOR,
    INFERENCE: inference_service_pb2.DESCRIPTOR,
}
"""The file with the service of each process."""

_OIP = grpc_service_pb2.DESCRIPTOR
_OIP_PUBLIC_PACKAGE = "inference"
_OIP_CHANGES = ("RepositoryModelLoad", "RepositoryModelUnload")
"""What of the protocol does not only read."""
OIP_SERVICE = f"{_OIP_PUBLIC_PACKAGE}.GRPCInferenceService"
"""The name under which the Open Inference Protocol is served; our messages for it have another package."""


def services() -> tuple[Service, ...]:
    """Return all services that are reached through the gateway, the Open Inference Protocol's manager part too."""
    own = [
        Service(service.full_name, process, tuple(_rpc(method, method.name) for method in service.methods))
        for process, file in SERVICE_FILES.items()
        for service in file.services_by_name.values()
    ]
    oip = _OIP.services_by_name["GRPCInferenceService"]
    # Its inference calls have routes of their own, before these.
    rpcs = [Rpc(method.name, streams=False, reads=method.name not in _OIP_CHANGES) for method in oip.methods]
    return (*own, Service(OIP_SERVICE, INFERENCE, tuple(rpcs)))


def rest_services() -> tuple[str, ...]:
    """Return the names of the services that have REST paths."""
    return tuple(service.full_name for file in SERVICE_FILES.values() for service in file.services_by_name.values())


def rest_descriptors() -> bytes:
    """Return the FileDescriptorSet for the transcoder: these services, and the details that errors carry."""
    files = _with_dependencies([*SERVICE_FILES.values(), status_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR])
    result = descriptor_pb2.FileDescriptorSet(file=[_proto(file) for file in files])
    return result.SerializeToString(deterministic=True)


def reflected() -> tuple[tuple[str, ...], descriptor_pool.DescriptorPool]:
    """Return the names of all services and a pool that knows them, the Open Inference Protocol by its public name.

    A pool of its own, because the default one of this process must not define `inference.*`: clients of the protocol
    bring files that do.
    """
    pool = descriptor_pool.DescriptorPool()
    standard = [health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR]
    for file in _with_dependencies([*SERVICE_FILES.values(), *standard]):
        pool.Add(_proto(file))
    pool.Add(_published_oip())
    names = [service.full_name for file in standard for service in file.services_by_name.values()]
    return (*rest_services(), OIP_SERVICE, *names), pool


def _rpc(method: MethodDescriptor, name: str) -> Rpc:
    return Rpc(
        name,
        streams=bool(method.client_streaming or method.server_streaming),
        reads=name.startswith(("Get", "List", "Watch", "Download")),
    )


def _with_dependencies(files: Iterable[FileDescriptor]) -> list[FileDescriptor]:
    """Return the files and all that they import, what is imported first, each once."""
    found: dict[str, FileDescriptor] = {}

    def visit(file: FileDescriptor) -> None:
        if file.name not in found:
            for dependency in file.dependencies:
                visit(dependency)
            found[file.name] = file

    for file in files:
        visit(file)
    return list(found.values())


def _proto(file: FileDescriptor) -> descriptor_pb2.FileDescriptorProto:
    result = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(result)
    return result


def _published_oip() -> descriptor_pb2.FileDescriptorProto:
    file = _proto(_OIP)
    ours, public = f".{file.package}.", f".{_OIP_PUBLIC_PACKAGE}."
    file.package = _OIP_PUBLIC_PACKAGE
    file.name = "inference/grpc_service.proto"
    for message in file.message_type:
        _rename(message, ours, public)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(ours, public, 1)
            method.output_type = method.output_type.replace(ours, public, 1)
    return file


def _rename(message: descriptor_pb2.DescriptorProto, ours: str, public: str) -> None:
    for field in message.field:
        if field.type_name:
            field.type_name = field.type_name.replace(ours, public, 1)
    for nested in message.nested_type:
        _rename(nested, ours, public)

"""What a server says of itself and of its models, as the JSON of the Open Inference Protocol.

Fronts answer REST with these values; the manager makes the messages of its rpcs of them, whose fields have the same
names.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from maas_inference.datatypes import BYTES
from maas_inference.table import ModelTable, ServedDeployment, ServedVersion, Tensor, VersionState

SERVER_NAME: Final = "maas"
EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)

_INDEX_STATES: Final[dict[VersionState, str]] = {"ready": "READY", "loading": "LOADING"}


def server_metadata(table: ModelTable) -> dict[str, Any]:
    """Return name, version and extensions of the server."""
    return {"name": SERVER_NAME, "version": table.server_version, "extensions": list(EXTENSIONS)}


def model_metadata(name: str, versions: Iterable[str], served: ServedVersion) -> dict[str, Any]:
    """Return what a version takes and gives, and the versions beside it."""
    return {
        "name": name,
        "versions": list(versions),
        "platform": platform(served),
        "inputs": [_tensor(tensor) for tensor in inputs_of(served)],
        "outputs": [_tensor(tensor) for tensor in served.outputs],
    }


def model_config(name: str, served: ServedVersion) -> dict[str, Any]:
    """Return what a version takes and gives, as a Triton model configuration."""
    max_batch_size = served.max_batch_rows if served.joins_rows else 0
    return {
        "name": name,
        "platform": platform(served),
        "backend": served.engine,
        "max_batch_size": max_batch_size,
        "input": [_configured(tensor, max_batch_size) for tensor in inputs_of(served)],
        "output": [_configured(tensor, max_batch_size) for tensor in served.outputs],
    }


def repository_index(deployments: Sequence[ServedDeployment], *, ready_only: bool) -> list[dict[str, Any]]:
    """Return each version of each deployment and whether it can answer."""
    return list(_index(deployments, ready_only=ready_only))


def inputs_of(served: ServedVersion) -> tuple[Tensor, ...]:
    """Return what a version takes, the text that may stand for its tensors too."""
    if not served.text_input:
        return served.inputs
    return (*served.inputs, Tensor(served.text_input, BYTES, (-1,)))


def platform(served: ServedVersion) -> str:
    """Return what runs a version, as one word."""
    return f"{served.engine}_{served.precision}"


def _index(deployments: Sequence[ServedDeployment], *, ready_only: bool) -> Iterator[dict[str, Any]]:
    for deployment in deployments:
        for served in deployment.versions:
            state = _INDEX_STATES.get(served.state, "UNAVAILABLE")
            if state == "READY" or not ready_only:
                reason = "" if state == "READY" else served.message or served.state
                yield {"name": deployment.deployment, "version": served.version, "state": state, "reason": reason}


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _configured(tensor: Tensor, max_batch_size: int) -> dict[str, Any]:
    datatype = "STRING" if tensor.datatype == BYTES else tensor.datatype
    dims = tensor.shape[1:] if max_batch_size else tensor.shape
    return {"name": tensor.name, "data_type": f"TYPE_{datatype}", "dims": list(dims)}

"""The networks that a trainable form can be built from, found by the entry point group `maas.architectures`.

An installed distribution adds one by naming an object that is an `Architecture`; nothing else decides the list.
This module imports no torch, the architectures themselves do.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Protocol

from maas_runtime.failures import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx
    from torch import Tensor, nn

    from maas_package.manifest import JsonObject, TensorSpec

ENTRY_POINT_GROUP = "maas.architectures"


class ArchitectureUnknown(InvalidInput):
    """No installed distribution has an architecture of this name."""

    reason = "ARCHITECTURE_UNKNOWN"


class ArchitectureConfigInvalid(InvalidInput):
    """The configuration does not fit the architecture."""

    reason = "ARCHITECTURE_CONFIG_INVALID"


class Architecture(Protocol):
    """How one kind of network is configured and built. Configurations are JSON objects, as manifests hold them."""

    name: str

    @property
    def default_config(self) -> JsonObject:
        """Every setting with its default."""

    def parse_config(self, config: Mapping[str, object]) -> JsonObject:
        """Return the whole configuration, defaults filled in. Raises ArchitectureConfigInvalid."""

    def build(self, config: Mapping[str, object]) -> nn.Module:
        """Return a fresh module; its forward takes the inputs in order and returns the outputs in order."""

    def inputs(self, config: Mapping[str, object]) -> tuple[TensorSpec, ...]:
        """Return what the module takes."""

    def outputs(self, config: Mapping[str, object]) -> tuple[TensorSpec, ...]:
        """Return what the module returns."""

    def onnx_model(self, module: nn.Module, config: Mapping[str, object]) -> onnx.ModelProto | None:
        """Return the module as an ONNX graph, or None where torch's exporter makes a good one by itself."""

    def example_inputs(self, config: Mapping[str, object], rows: int, seed: int) -> dict[str, Tensor]:
        """Return random inputs that a server could see, padded rows among them; for export and its check."""


def architecture_names() -> tuple[str, ...]:
    """Return the names of all installed architectures, sorted."""
    return tuple(sorted(_found()))


def load_architecture(name: str) -> Architecture:
    """Import and return the architecture. Raises ArchitectureUnknown."""
    found = _found()
    if name not in found:
        raise ArchitectureUnknown(
            f"no architecture {name!r} is installed; there are: {', '.join(sorted(found)) or 'none'}", name=name
        )
    architecture: Architecture = found[name].load()
    return architecture


def _found() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}

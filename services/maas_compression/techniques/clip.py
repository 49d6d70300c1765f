"""clip: limits each weight matrix to a range."""

import math
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from maas_compression.recipe import Clip
from maas_compression.techniques.graph_weights import MATRICES, graph_weights
from maas_compression.techniques.graphs import float_graph, write_graph_package
from maas_compression.techniques.repackage import repackage
from maas_engine.engine import choose_servable
from maas_package.package import Package
from maas_package.trainable import load_module


def apply_clip(source: Package, technique: Clip, folder: Path) -> Package:
    """Write the clipped package to `folder`, which must be new or empty; a trainable form stays one.

    Raises GraphMissing or GraphUnusable for a version without a trainable form.
    """
    if source.manifest.architecture is not None and source.manifest.weights is not None:
        module = load_module(source)
        clip_weights(module, technique)
        return repackage(source, module, folder)
    model = clip_graph(float_graph(source), technique)
    return write_graph_package(source, model, folder, precision=choose_servable(source, "onnxruntime").precision)


def clip_weights(module: nn.Module, technique: Clip) -> None:
    """Limit each matrix [outputs, fan_in] in place. Embeddings stay: a lookup has no fan-in. So do vectors."""
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim >= 2 and id(parameter) not in embeddings:
                bound = bound_of(parameter.numpy(), math.prod(parameter.shape[1:]), technique)
                parameter.clamp_(-bound, bound)


def clip_graph(model: onnx.ModelProto, technique: Clip) -> onnx.ModelProto:
    """Return the graph with its float matrices limited. Raises GraphUnusable when it has none."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    matrices = {weight.name: weight for weight in graph_weights(result, MATRICES, least=1)}
    for tensor in result.graph.initializer:
        if tensor.name in matrices:
            weight = matrices[tensor.name]
            fan_in = math.prod(weight.value.shape[axis] for axis in weight.fan_in_axes)
            bound = bound_of(weight.value, fan_in, technique)
            tensor.CopyFrom(numpy_helper.from_array(weight.value.clip(-bound, bound), tensor.name))
    return result


def bound_of(weights: NDArray[np.float32], fan_in: int, technique: Clip) -> float:
    """Return b of [-b, b], by the technique's rule; recipe.py says where they are from."""
    match technique.rule:
        case "fan_in":
            return math.sqrt(6 / fan_in)
        case "absolute":
            return technique.bound
        case "percentile":
            return float(np.percentile(np.abs(weights), technique.percentile))
    raise ValueError(f"no rule {technique.rule!r} passed validation")

"""bf16: weights of 16 bits, in the file, and in the processor where it multiplies them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from maas_compression.materials import Materials
from maas_compression.recipe import Bf16
from maas_compression.techniques.graphs import (
    comparable_servable,
    example_batches,
    float_graph,
    write_graph_package,
)
from maas_engine.engine import BF16
from maas_engine.publish import agreeing
from maas_package.manifest import Servable
from maas_package.package import Package, write_package

STORED = "fp16"
"""The precision's name of a file whose weights have 16 bits and which computes with 32."""

_LEAST_ELEMENTS = 64
_MOST = float(np.finfo(np.float16).max)


def apply_bf16(source: Package, technique: Bf16, folder: Path, materials: Materials) -> Package:
    """Write the package whose served file has weights of 16 bits to `folder`, which must be new or empty.

    Half the bytes for every host, and as fast as before: onnxruntime makes float32 of them when it loads the file.
    On a host that multiplies bfloat16 itself, openvino serves the same file in that precision too. Raises what
    float_graph and write_graph_package raise.
    """
    del technique  # no settings
    model = float_graph(source)
    store_halves(model)
    made = write_graph_package(source, model, folder, precision=STORED)
    stored = made.manifest.servables[0]
    candidate = Servable("openvino", BF16, stored.path)
    found = tuple(agreeing(made, [candidate], comparable_servable(made), example_batches(made), materials.log))
    return write_package(folder, replace(made.manifest, servables=(stored, *found), files=())) if found else made


def store_halves(model: onnx.ModelProto) -> None:
    """Store each float32 weight with 16 bits and cast it back where the graph begins, in place.

    As float16, whose 11 bits of precision keep eight times as much as bfloat16's 8; as bfloat16 where a weight is
    beyond float16's range, 65,504.
    """
    graph = model.graph
    initializers, casts = [], []
    for tensor in graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or value.size < _LEAST_ELEMENTS:
            initializers.append(tensor)
            continue
        stored = f"{tensor.name}_halves"
        if np.abs(value).max() <= _MOST:
            initializers.append(numpy_helper.from_array(value.astype(np.float16), stored))
        else:
            initializers.append(helper.make_tensor(stored, TensorProto.BFLOAT16, value.shape, value.ravel()))
        casts.append(
            helper.make_node("Cast", [stored], [tensor.name], name=f"{tensor.name}_cast", to=TensorProto.FLOAT)
        )
    nodes = [*casts, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(initializers)
    graph.node.extend(nodes)

"""fixed_point: weights as integers with a scale of a power of two, in the weights file and in the served file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from maas_compression.recipe import FixedPoint
from maas_compression.techniques.repackage import repackage
from maas_package.manifest import FixedPointStorage
from maas_package.package import Package, write_package
from maas_package.trainable import load_module

_INTEGER_TYPES = (np.int8, np.int16, np.int32)


def apply_fixed_point(source: Package, technique: FixedPoint, folder: Path) -> Package:
    """Write the package with w' = round(w * 2^p) / 2^p to `folder`, which must be new or empty.

    Every float tensor is stored in the smallest of int8, int16 and int32 that holds round(w * 2^p). Raises
    TrainableFormMissing, or WeightsInvalid when a tensor does not fit 32 bits.
    """
    module = load_module(source)
    scale = 2.0**-technique.fractional_bits
    scales = {name: scale for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    package = repackage(source, module, folder, FixedPointStorage(scales))
    servable = package.manifest.servables[0]
    store_integers(package.path(servable.path), scale)
    fixed = replace(servable, precision=f"fixed{technique.fractional_bits}")
    return write_package(folder, replace(package.manifest, servables=(fixed,), files=()))


def store_integers(path: Path, scale: float) -> None:
    """Rewrite an ONNX file so that each float32 initializer is stored as integers and multiplied by `scale`.

    Those that are no multiples of `scale` within 32 bits are constants of the network, not weights, and stay as they
    are. So the answers stay the same to the bit. onnxruntime folds Cast and
    Mul when it loads the file: it runs as fast as before. (DequantizeLinear takes 16-bit integers only from operator
    set 21 on.)
    """
    model = onnx.load(str(path))
    graph = model.graph
    nodes, initializers = [], []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            initializers.append(tensor)
            continue
        integers = _smallest(numpy_helper.to_array(tensor).astype(np.float64) / scale)
        if integers is None:
            initializers.append(tensor)
            continue
        initializers.append(numpy_helper.from_array(integers, f"{tensor.name}_integers"))
        nodes.append(
            helper.make_node("Cast", [f"{tensor.name}_integers"], [f"{tensor.name}_cast"], to=TensorProto.FLOAT)
        )
        nodes.append(helper.make_node("Mul", [f"{tensor.name}_cast", "fixed_point_scale"], [tensor.name]))
    initializers.append(numpy_helper.from_array(np.array(scale, np.float32), "fixed_point_scale"))
    nodes += list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(initializers)
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _smallest(values: NDArray[np.float64]) -> NDArray[np.signedinteger] | None:
    """Return the values in the smallest type of integers that holds them, or None when none does."""
    if not (values == np.rint(values)).all():
        return None
    largest = np.abs(values).max(initial=0)
    dtype = next((dtype for dtype in _INTEGER_TYPES if largest <= np.iinfo(dtype).max), None)
    return None if dtype is None else values.astype(dtype)

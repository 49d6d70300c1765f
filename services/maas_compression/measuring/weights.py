"""How many weights a version has, and how many are not zero, also where only a served file is left."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from maas_package.manifest import Servable
from maas_package.package import Package
from maas_package.weight_statistics import WeightStatistics, weight_statistics

_WEIGHT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16)
# What onnxruntime's quantizer adds beside a weight. Its signed 8-bit weights are symmetric: 0 stands for 0.
_NOT_WEIGHTS = ("_scale", "_zero_point")


def count_weights(package: Package, servable: Servable) -> WeightStatistics:
    """Count the trainable form's weights, or, where there is none, those in the served file."""
    return weight_statistics(package) or _count_in_onnx(package, servable)


def _count_in_onnx(package: Package, servable: Servable) -> WeightStatistics:
    model = onnx.load(str(package.path(servable.path)))
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type in _WEIGHT_TYPES and not tensor.name.endswith(_NOT_WEIGHTS)
    ]
    return WeightStatistics(
        parameters=sum(tensor.size for tensor in weights),
        non_zero=sum(int(np.count_nonzero(tensor)) for tensor in weights),
    )

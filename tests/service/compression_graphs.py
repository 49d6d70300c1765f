"""Small ONNX graphs and packages that several tests of compression change."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from maas_package.architectures import load_architecture
from maas_package.package import Package
from maas_package.text import build_word_tokenizer
from maas_package.trainable import package_trained_model

FLOATS = NDArray[np.float32]
WORDS = [f"w{number}" for number in range(198)]

SMALL_BERT = {"hidden_size": 32, "layers": 2, "heads": 4, "inner_size": 64, "positions": 40}
SMALL_LSTM = {"embedding_size": 12, "hidden_size": 16}


def small_package(folder: Path, architecture_name: str, sizes: dict[str, int]) -> Package:
    """A classifier of 200 words, its weights random but large enough to say something."""
    architecture = load_architecture(architecture_name)
    config = architecture.parse_config({**sizes, "vocabulary_size": 200})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(3)
        module = architecture.build(config).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" not in name:
                parameter.mul_(4)
            # Equal vectors would be one constant of the exported graph.
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=build_word_tokenizer([" ".join(WORDS)], vocabulary_size=200, max_tokens=32),
        labels=("negative", "positive"),
    )


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, FLOATS], opset: int = 17) -> onnx.ModelProto:
    """One input `x` (`ids` for a lookup), one output `y`."""
    is_lookup = any("ids" in node.input for node in nodes)
    given = ("ids", TensorProto.INT64) if is_lookup else ("x", TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*given, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def answer(model: onnx.ModelProto, given: NDArray[np.generic]) -> FLOATS:
    """Return what onnxruntime answers."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: FLOATS = session.run(None, {session.get_inputs()[0].name: given})[0]
    return result


def operators_when_loaded(model: onnx.ModelProto, folder: Path) -> list[str]:
    """Return the operators that onnxruntime really runs, after it has computed what it can while loading."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(str(folder / "loaded.onnx")).graph.node]


def numbers(*shape: int, seed: int = 0) -> FLOATS:
    """Return numbers of a normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def served(package: Package) -> onnx.ModelProto:
    """Return the graph that is served."""
    return onnx.load(str(package.path(package.manifest.servables[0].path)))

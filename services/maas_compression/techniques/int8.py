"""int8: dynamic quantization of the served form for onnxruntime."""

import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

from maas_compression.recipe import Int8
from maas_package.architectures import load_architecture
from maas_package.manifest import Servable
from maas_package.package import Package, write_package
from maas_package.trainable import ONNX_PATH, TrainableFormMissing, export_onnx, load_module, onnx_difference


def apply_int8(source: Package, technique: Int8, folder: Path) -> Package:
    """Write the package whose served form multiplies 8-bit integers to `folder`, which must be new or empty.

    Weights become signed 8-bit integers with a scale for each output, activations unsigned ones while running;
    embeddings are stored as 8-bit integers. The result has no trainable form. Its largest difference from the
    source's is recorded, without a tolerance: accuracy and agreement on real data say what it costs. Raises
    TrainableFormMissing.
    """
    del technique  # one kind, no settings
    manifest = source.manifest
    if manifest.architecture is None or manifest.text is None:
        raise TrainableFormMissing("this version has no trainable form; take the version that it was made from")
    architecture = load_architecture(manifest.architecture.name)
    config = architecture.parse_config(manifest.architecture.config)
    module = load_module(source)
    target = folder.joinpath(*ONNX_PATH.split("/"))
    target.parent.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        # From the weights, not from the served file: that may hold integers, which cannot be quantized again.
        exported = Path(scratch, "model.onnx")
        export_onnx(module, architecture, config, exported)
        quantize(exported, target)
    shutil.copyfile(source.path(manifest.text.tokenizer), folder / manifest.text.tokenizer)
    difference = onnx_difference(module, architecture, config, target)
    servable = Servable("onnxruntime", "int8", ONNX_PATH, None, difference)
    return write_package(folder, replace(manifest, architecture=None, weights=None, servables=(servable,), files=()))


def quantize(source: Path, target: Path) -> None:
    """Write the dynamically quantized form of an ONNX file, right on every processor.

    Weights take 7 of their 8 bits. A processor with AVX2 and no VNNI adds two products in 16 bits, which overflow
    with 8-bit weights: the seed's LSTM then differs by 0.026 instead of 0.003. Each output has a scale of its own:
    with one for a tensor, vectors of all-MiniLM-L6-v2 keep a cosine of 0.63 to 0.92 to what they were, with these
    0.987 or more. The LSTM answers as well with either. Speed and size are the same (measured).
    """
    root = logging.getLogger()
    level = root.level
    # onnxruntime advises pre-processing on the root logger; a graph of known shapes gains nothing by it.
    root.setLevel(logging.ERROR)
    try:
        quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8, reduce_range=True, per_channel=True)
    finally:
        root.setLevel(level)

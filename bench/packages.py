"""The benches' models as packages of this project."""

import tempfile
import warnings
from pathlib import Path

import models
import torch
from report import say

from maas_compression.recipe import Int8
from maas_compression.techniques.int8 import apply_int8
from maas_engine.publish import publish_servables
from maas_formats.onnx_files import import_onnx
from maas_package.architectures import load_architecture
from maas_package.package import Package
from maas_package.text import build_word_tokenizer
from maas_package.trainable import package_trained_model

# The bench's names of the seed's weights -> the architecture's.
_SEED_NAMES = {"emb.weight": "embedding.weight", "out.weight": "output.weight", "out.bias": "output.bias"}


def seed_package(folder: Path, weights: dict[str, torch.Tensor] | None = None) -> Package:
    """Make a package of the seed's classifier, of these weights or of random ones."""
    architecture = load_architecture("lstm-text-classifier")
    config = architecture.default_config
    torch.manual_seed(7)
    module = architecture.build(config).eval()
    if weights is not None:
        module.load_state_dict({_SEED_NAMES.get(name, name): tensor for name, tensor in weights.items()})
    return package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=build_word_tokenizer([f"word{number}" for number in range(10_000)], vocabulary_size=10_000),
        labels=("negative", "positive"),
    )


def with_all_engines(package: Package) -> Package:
    """Add the servables of the other engines, all measured here, so that the fastest is chosen."""
    return publish_servables(package, log=say)


def int8_package(source: Package, folder: Path) -> Package:
    """Make the 8-bit form of a package."""
    return apply_int8(source, Int8(), folder)


def minilm_package(folder: Path, weights: Path) -> Package:
    """Make a package of MiniLM-L6 by way of an ONNX file, as a user's own model comes."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "minilm.onnx")
        export_minilm(weights, path)
        return import_onnx(path, folder, log=say)


def export_minilm(weights: Path, path: Path) -> None:
    """Write MiniLM-L6 as an ONNX file with a free number of rows."""
    signature = models.SIGNATURES["minilm"]
    with warnings.catch_warnings():
        # torch's own exporter uses what torch has deprecated.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            models.load("minilm", folder=weights),
            (torch.from_numpy(models.sample("minilm", 4)),),
            str(path),
            input_names=[signature.input],
            output_names=[signature.output],
            dynamic_shapes=({0: torch.export.Dim("rows", min=1, max=1024)},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )

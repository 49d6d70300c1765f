"""The seed's LSTM as a package: what every benchmark serves."""

from pathlib import Path

import torch

from maas_package.architectures import load_architecture
from maas_package.package import Package
from maas_package.text import build_word_tokenizer
from maas_package.trainable import package_trained_model


def seed_package(folder: Path, weights: dict[str, torch.Tensor] | None = None) -> Package:
    """Make a package of these weights, or of random ones: its speed does not depend on them."""
    architecture = load_architecture("lstm-text-classifier")
    config = architecture.default_config
    torch.manual_seed(7)
    module = architecture.build(config).eval()
    if weights is not None:
        module.load_state_dict(weights)
    return package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=build_word_tokenizer([f"word{number}" for number in range(10_000)], vocabulary_size=10_000),
        labels=("negative", "positive"),
    )

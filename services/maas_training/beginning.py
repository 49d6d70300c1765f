"""What a training begins with: a fresh network, or the weights of a registered version."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from maas.label_names import label_names
from maas_jobs.labelled_rows import LabelledSplit, check_labels, count_classes
from maas_package.architectures import Architecture, load_architecture
from maas_package.manifest import JsonObject, Manifest
from maas_package.package import read_package
from maas_package.text import TextTokenizer, build_word_tokenizer
from maas_package.trainable import TrainableFormMissing, load_module
from maas_training.spec import CLASSIFIER_OF_ENCODER, Hyperparameters, TrainingSpec


@dataclass(frozen=True, slots=True)
class Beginning:
    """A network that has not learned yet, and what belongs to it."""

    architecture: Architecture
    config: JsonObject
    module: nn.Module
    tokenizer: TextTokenizer
    labels: tuple[str, ...]


def begin_anew(spec: TrainingSpec, train: LabelledSplit) -> Beginning:
    """Return a network with random weights for the words and classes of the data. Raises LabelsInvalid."""
    classes = count_classes(train)
    architecture = load_architecture(spec.architecture)
    tokenizer = build_word_tokenizer(train.texts(), architecture.default_config["vocabulary_size"])
    config = architecture.parse_config(
        {
            "vocabulary_size": tokenizer.vocabulary_size,
            "classes": classes,
            "dropout": spec.hyperparameters.dropout,
        }
    )
    torch.manual_seed(spec.hyperparameters.seed)
    return Beginning(architecture, config, architecture.build(config), tokenizer, label_names(train.metadata, classes))


def begin_with(folder: Path, hyperparameters: Hyperparameters, train: LabelledSplit) -> Beginning:
    """Return the network of the package in `folder`, with its tokenizer.

    A classifier keeps its labels, which the data's must be among. An encoder becomes a classifier of the data's
    classes: its weights below, random ones on top. Raises LabelsInvalid or TrainableFormMissing.
    """
    source = read_package(folder)
    manifest = source.manifest
    if manifest.architecture is None or manifest.text is None:
        raise TrainableFormMissing("this version has no trainable form; take the version that it was made from")
    tokenizer = TextTokenizer.from_file(source.path(manifest.text.tokenizer), manifest.text.max_tokens)
    module = load_module(source)
    if manifest.architecture.name in CLASSIFIER_OF_ENCODER:
        return _classifier_of_encoder(manifest, module, tokenizer, hyperparameters, train)
    check_labels(train, len(manifest.labels))
    architecture = load_architecture(manifest.architecture.name)
    config = architecture.parse_config({**manifest.architecture.config, "dropout": hyperparameters.dropout})
    return Beginning(architecture, config, _with_weights(architecture, config, module), tokenizer, manifest.labels)


def _classifier_of_encoder(
    manifest: Manifest,
    encoder: nn.Module,
    tokenizer: TextTokenizer,
    hyperparameters: Hyperparameters,
    train: LabelledSplit,
) -> Beginning:
    assert manifest.architecture is not None
    classes = count_classes(train)
    architecture = load_architecture(CLASSIFIER_OF_ENCODER[manifest.architecture.name])
    known = architecture.default_config
    kept = {name: value for name, value in manifest.architecture.config.items() if name in known}
    config = architecture.parse_config({**kept, "classes": classes, "dropout": hyperparameters.dropout})
    torch.manual_seed(hyperparameters.seed)
    module = _with_weights(architecture, config, encoder)
    return Beginning(architecture, config, module, tokenizer, label_names(train.metadata, classes))


def _with_weights(architecture: Architecture, config: Mapping[str, object], source: nn.Module) -> nn.Module:
    """Return a network of this configuration with all weights that the source has too."""
    module = architecture.build(config)
    module.load_state_dict({**module.state_dict(), **source.state_dict()})
    return module

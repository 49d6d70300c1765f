"""A student before it has learnt anything: as large and as fast as it will be."""

from pathlib import Path

import torch

from maas_compression.recipe import Distill
from maas_package.architectures import load_architecture
from maas_package.manifest import JsonObject
from maas_package.package import Package
from maas_package.text import TextTokenizer
from maas_package.trainable import TrainableFormMissing, package_trained_model


def untrained_student(teacher: Package, technique: Distill, folder: Path) -> Package:
    """Write the package of the student with random weights to `folder`. Raises TrainableFormMissing."""
    manifest = teacher.manifest
    if manifest.architecture is None or manifest.text is None:
        raise TrainableFormMissing("this version has no trainable form; take the version that it was made from")
    architecture = load_architecture(technique.student or manifest.architecture.name)
    tokenizer = TextTokenizer.from_file(teacher.path(manifest.text.tokenizer), manifest.text.max_tokens)
    config = _student_config(manifest.architecture.config, technique, tokenizer.vocabulary_size, len(manifest.labels))
    with torch.random.fork_rng(devices=[]):
        module = architecture.build(config)
    return package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=tokenizer,
        labels=manifest.labels,
        task=manifest.task,
    )


def _student_config(teacher: JsonObject, technique: Distill, words: int, classes: int) -> JsonObject:
    if technique.student:
        return {"vocabulary_size": words, "classes": classes}
    return {**teacher, "layers": technique.layers or max(int(teacher.get("layers", 2)) // 2, 1)}

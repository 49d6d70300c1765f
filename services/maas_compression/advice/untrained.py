"""A student before it has learnt anything: as large and as fast as it will be."""

from pathlib import Path

import torch

from maas_compression.recipe import Distill
from maas_compression.techniques.distilling.students import make_student
from maas_package.package import Package
from maas_package.text import TextTokenizer
from maas_package.trainable import TrainableFormMissing, load_module, package_trained_model


def untrained_student(teacher: Package, technique: Distill, folder: Path) -> Package:
    """Write the package of the student to `folder`. Raises TrainableFormMissing or RecipeInvalid."""
    manifest = teacher.manifest
    if manifest.architecture is None or manifest.text is None:
        raise TrainableFormMissing("this version has no trainable form; take the version that it was made from")
    tokenizer = TextTokenizer.from_file(teacher.path(manifest.text.tokenizer), manifest.text.max_tokens)
    reference = manifest.architecture
    with torch.random.fork_rng(devices=[]):
        student = make_student(technique, reference.name, reference.config, load_module(teacher), tokenizer)
    return package_trained_model(
        folder,
        architecture=student.architecture,
        config=student.config,
        module=student.module,
        tokenizer=tokenizer,
        labels=manifest.labels,
        task=manifest.task,
    )

"""Puts changed weights back into a package like the one they came from."""

from pathlib import Path

from torch import nn

from maas_package.architectures import load_architecture
from maas_package.manifest import JsonObject, Storage
from maas_package.package import Package
from maas_package.text import TextTokenizer
from maas_package.trainable import TrainableFormMissing, package_trained_model


def repackage(
    source: Package,
    module: nn.Module,
    folder: Path,
    storage: Storage | None = None,
    config: JsonObject | None = None,
) -> Package:
    """Write the package of `module`, with everything else as in `source`.

    `config` is the module's where it is not the source's. Its weights are stored as float32 unless `storage` says
    otherwise. Raises TrainableFormMissing.
    """
    manifest = source.manifest
    if manifest.architecture is None or manifest.text is None:
        raise TrainableFormMissing("this version has no trainable form; take the version that it was made from")
    return package_trained_model(
        folder,
        architecture=load_architecture(manifest.architecture.name),
        config=manifest.architecture.config if config is None else config,
        module=module,
        tokenizer=TextTokenizer.from_file(source.path(manifest.text.tokenizer), manifest.text.max_tokens),
        labels=manifest.labels,
        storage=storage,
        task=manifest.task,
    )

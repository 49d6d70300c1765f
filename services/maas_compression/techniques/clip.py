"""clip: limits each weight matrix to the range that He's initialization would draw from."""

import math
from pathlib import Path

import torch
from torch import nn

from maas_compression.recipe import Clip
from maas_compression.techniques.repackage import repackage
from maas_package.package import Package
from maas_package.trainable import load_module


def apply_clip(source: Package, technique: Clip, folder: Path) -> Package:
    """Write the clipped package to `folder`, which must be new or empty. Raises TrainableFormMissing."""
    del technique  # one rule, no settings
    module = load_module(source)
    clip_weights(module)
    return repackage(source, module, folder)


def clip_weights(module: nn.Module) -> None:
    """Limit each matrix [outputs, fan_in] to [-b, b], b = sqrt(6 / fan_in), in place.

    b is the bound of the uniform initialization of He et al., 2015 (arXiv:1502.01852, section 2.2). Embeddings stay:
    a lookup has no fan-in. So do vectors.
    """
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2 and id(parameter) not in embeddings:
                bound = math.sqrt(6 / parameter.shape[1])
                parameter.clamp_(-bound, bound)

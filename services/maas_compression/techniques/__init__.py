"""All techniques: the one place that knows which function does which."""

from pathlib import Path

from maas_compression.materials import Materials
from maas_compression.recipe import (
    Bf16,
    Clip,
    Codebook,
    Compile,
    Distill,
    FixedPoint,
    Int4,
    Int8,
    LowRank,
    Prune,
    Qat,
    Technique,
    Vocabulary,
)
from maas_compression.techniques.bf16 import apply_bf16
from maas_compression.techniques.clip import apply_clip
from maas_compression.techniques.codebook import apply_codebook
from maas_compression.techniques.compile import apply_compile
from maas_compression.techniques.distill import apply_distill
from maas_compression.techniques.fixed_point import apply_fixed_point
from maas_compression.techniques.int4 import apply_int4
from maas_compression.techniques.int8 import apply_int8
from maas_compression.techniques.low_rank import apply_low_rank
from maas_compression.techniques.prune import apply_prune
from maas_compression.techniques.qat import apply_qat
from maas_compression.techniques.vocabulary import apply_vocabulary
from maas_package.package import Package


def apply_technique(source: Package, technique: Technique, folder: Path, materials: Materials) -> Package:
    """Write what the technique makes of the source to `folder`, which must be new or empty."""
    match technique:
        case Clip():
            return apply_clip(source, technique, folder)
        case FixedPoint():
            return apply_fixed_point(source, technique, folder)
        case Int8():
            return apply_int8(source, technique, folder, materials)
        case Bf16():
            return apply_bf16(source, technique, folder, materials)
        case Compile():
            return apply_compile(source, technique, folder, materials)
        case Int4():
            return apply_int4(source, technique, folder, materials)
        case Codebook():
            return apply_codebook(source, technique, folder, materials)
        case Distill():
            return apply_distill(source, technique, folder, materials)
        case LowRank():
            return apply_low_rank(source, technique, folder, materials)
        case Vocabulary():
            return apply_vocabulary(source, technique, folder, materials)
        case Qat():
            return apply_qat(source, technique, folder, materials)
        case Prune():
            return apply_prune(source, technique, folder, materials)

"""All techniques: the one place that knows which function does which."""

from pathlib import Path

from maas_compression.clip import apply_clip
from maas_compression.fixed_point import apply_fixed_point
from maas_compression.int8 import apply_int8
from maas_compression.recipe import Clip, FixedPoint, Int8, Technique
from maas_package.package import Package


def apply_technique(source: Package, technique: Technique, folder: Path) -> Package:
    """Write what the technique makes of the source to `folder`, which must be new or empty."""
    match technique:
        case Clip():
            return apply_clip(source, technique, folder)
        case FixedPoint():
            return apply_fixed_point(source, technique, folder)
        case Int8():
            return apply_int8(source, technique, folder)

"""What a compression job is asked to do."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

from maas.names import DatasetVersionName, VersionName
from maas_compression.recipe import Clip, FixedPoint, Int8, Technique
from maas_jobs.job import JsonObject

JUDGING_SPLIT = "test"
SOURCE_FOLDER = "source"
RESULT_FOLDER = "result"
"""Where in a job's folder the two packages lie."""


@dataclass(frozen=True, slots=True)
class CompressionSpec:
    """One recipe on one version, and the data that judges the result."""

    source_version: VersionName
    recipe: tuple[Technique, ...]
    dataset_version: DatasetVersionName

    def to_json(self) -> JsonObject:
        """Return the form that is stored."""
        return {
            "source_version": str(self.source_version),
            "recipe": [_technique_to_json(technique) for technique in self.recipe],
            "dataset_version": str(self.dataset_version),
        }

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """Read what `to_json` made."""
        return cls(
            VersionName.parse(value["source_version"]),
            tuple(_technique_from_json(technique) for technique in value["recipe"]),
            DatasetVersionName.parse(value["dataset_version"]),
        )


def recipe_text(recipe: Sequence[Technique]) -> list[str]:
    """Return the steps as a version shows them."""
    return [str(technique) for technique in recipe]


def _technique_to_json(technique: Technique) -> JsonObject:
    match technique:
        case Clip():
            return {"kind": "clip"}
        case FixedPoint():
            return {"kind": "fixed_point", **asdict(technique)}
        case Int8():
            return {"kind": "int8"}


def _technique_from_json(value: JsonObject) -> Technique:
    match value:
        case {"kind": "clip"}:
            return Clip()
        case {"kind": "fixed_point", "fractional_bits": int() as fractional_bits}:
            return FixedPoint(fractional_bits)
        case {"kind": "int8"}:
            return Int8()
    raise ValueError(f"no technique {value!r}")

"""What a compression job is asked to do."""

from dataclasses import asdict, dataclass
from typing import Self, TypeAlias

from maas.names import DatasetVersionName, VersionName
from maas_compression.limits import NO_LIMITS, Limits
from maas_compression.recipe import Recipe, parse_recipe, technique_text
from maas_jobs.dataset import LABELLED, TEXT_COLUMN
from maas_jobs.job import JsonObject
from maas_package.manifest import TEXT_CLASSIFICATION

JUDGING_SPLIT = "test"
CHOOSING_SPLIT = "validation"
LEARNING_SPLIT = "train"
SOURCE_FOLDER = "source"
RESULT_FOLDER = "result"
"""Where in a job's folder the two packages lie."""
UNLABELLED_FOLDER = "unlabelled"
"""Where in a job's folder the splits of the dataset without labels lie."""


@dataclass(frozen=True, slots=True)
class RecipeWork:
    """Apply techniques, in this order."""

    recipe: Recipe


@dataclass(frozen=True, slots=True)
class SearchWork:
    """Look for the recipe that meets the limits best. `workers` 0: as many as the host has cores."""

    objective: str = "fastest"
    time_budget_seconds: float = 900.0
    allow_training: bool = False
    most_trials: int = 100
    workers: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class AdviceWork:
    """Say which recipes promise what."""

    allow_training: bool = False


@dataclass(frozen=True, slots=True)
class SensitivityWork:
    """Measure what each layer loses by itself when its weights have so many bits."""

    bits: int = 8


Work: TypeAlias = RecipeWork | SearchWork | AdviceWork | SensitivityWork


@dataclass(frozen=True, slots=True)
class CompressionSpec:
    """One piece of work on one version, what its result has to keep to, and the data that judges it."""

    source_version: VersionName
    work: Work
    limits: Limits = NO_LIMITS
    dataset_version: DatasetVersionName | None = None
    """None for a source that takes no texts."""
    unlabelled_dataset_version: DatasetVersionName | None = None
    allow_no_gain: bool = False

    def to_json(self) -> JsonObject:
        """Return the form that is stored."""
        return {
            "source_version": str(self.source_version),
            "work": _work_to_json(self.work),
            "limits": self.limits.to_json(),
            "dataset_version": _name_to_json(self.dataset_version),
            "unlabelled_dataset_version": _name_to_json(self.unlabelled_dataset_version),
            "allow_no_gain": self.allow_no_gain,
        }

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """Read what `to_json` made."""
        return cls(
            VersionName.parse(value["source_version"]),
            _work_from_json(value["work"]),
            Limits.from_json(value["limits"]),
            _name_from_json(value["dataset_version"]),
            _name_from_json(value["unlabelled_dataset_version"]),
            value["allow_no_gain"],
        )


def judging_columns(task: str) -> tuple[str, ...]:
    """Return the columns that the data has to have which judges a model of this task."""
    return LABELLED if task == TEXT_CLASSIFICATION else (TEXT_COLUMN,)


def recipe_text(recipe: Recipe) -> list[str]:
    """Return the steps as a version shows them."""
    return [technique_text(technique) for technique in recipe]


def _work_to_json(work: Work) -> JsonObject:
    match work:
        case RecipeWork(recipe):
            return {"kind": "recipe", "recipe": recipe_text(recipe)}
        case SearchWork():
            return {"kind": "search", **asdict(work)}
        case AdviceWork():
            return {"kind": "advice", **asdict(work)}
        case SensitivityWork():
            return {"kind": "sensitivity", **asdict(work)}


def _work_from_json(value: JsonObject) -> Work:
    settings = {name: setting for name, setting in value.items() if name != "kind"}
    match value["kind"]:
        case "recipe":
            return RecipeWork(parse_recipe(settings["recipe"]))
        case "search":
            return SearchWork(**settings)
        case "advice":
            return AdviceWork(**settings)
        case "sensitivity":
            return SensitivityWork(**settings)
    raise ValueError(f"no work {value!r}")


def _name_to_json(name: DatasetVersionName | None) -> str | None:
    return None if name is None else str(name)


def _name_from_json(value: str | None) -> DatasetVersionName | None:
    return None if value is None else DatasetVersionName.parse(value)

"""Recipes: the techniques' settings, and which may follow which. Imports nothing that computes."""

from dataclasses import dataclass
from typing import TypeAlias

from maas_runtime.failures import FieldViolation, InvalidInput


class RecipeInvalid(InvalidInput):
    """A step cannot be applied where it stands."""

    reason = "RECIPE_INVALID"


@dataclass(frozen=True, slots=True)
class Clip:
    """Limit each weight matrix to ±sqrt(6 / fan_in); clip.py does it."""

    def __str__(self) -> str:
        return "clip(rule=fan_in)"


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Store each weight as round(w * 2^fractional_bits); fixed_point.py does it."""

    fractional_bits: int = 8
    """1 to 15."""

    def __str__(self) -> str:
        return f"fixed_point(fractional_bits={self.fractional_bits})"


@dataclass(frozen=True, slots=True)
class Int8:
    """Let onnxruntime multiply 8-bit integers; int8.py does it."""

    def __str__(self) -> str:
        return "int8"


Technique: TypeAlias = Clip | FixedPoint | Int8


def check_recipe(recipe: tuple[Technique, ...], *, has_trainable_form: bool) -> None:
    """Raise RecipeInvalid, naming the steps that cannot be applied.

    Every technique starts from trainable weights, and int8 leaves none.
    """
    trainable = has_trainable_form
    violations = []
    for index, technique in enumerate(recipe):
        if not trainable:
            before = f"after {recipe[index - 1]}" if index else "to a version without a trainable form"
            advice = "put int8 last" if index else "take the version that it was made from"
            violations.append(FieldViolation(f"recipe[{index}]", f"{technique} cannot be applied {before}: {advice}"))
        trainable = trainable and not isinstance(technique, Int8)
    if violations:
        raise RecipeInvalid("; ".join(violation.description for violation in violations), violations=tuple(violations))

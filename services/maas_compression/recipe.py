"""Recipes: the techniques' settings, and which may follow which. Imports nothing that computes.

A settings class has the fields of its message in protos/maas/compression/v1/technique.proto, and their defaults.
"""

from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from maas.compression.v1 import technique_pb2 as messages
from maas.recipes import parse_technique, technique_line
from maas_runtime.failures import FieldViolation, InvalidInput


class RecipeInvalid(InvalidInput):
    """A step cannot be applied where it stands."""

    reason = "RECIPE_INVALID"


@dataclass(frozen=True, slots=True)
class Clip:
    """Limit weights to [-b, b].

    `fan_in`: each matrix [outputs, fan_in] has b = sqrt(6 / fan_in), the bound of the uniform initialization of He et
    al., 2015 (arXiv:1502.01852, section 2.2). `absolute`: b = `bound`. `percentile`: b is that percentile of |w|.
    """

    rule: str = "fan_in"
    bound: float = 1.0
    percentile: float = 99.9


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Store each weight w as the integer round(w * 2^p), p = `fractional_bits`; the engine sees w' = integer / 2^p."""

    fractional_bits: int = 8


@dataclass(frozen=True, slots=True)
class Prune:
    """Take a `share` of the weights, or of the network's parts, away; train `recovery_epochs` afterwards.

    `weights`: those with the smallest |w| / root mean square of their matrix become 0; `two_of_four`: the two smaller
    of each four inputs of an output do. Both stay in the file, so size and speed are as before. `hidden_units`,
    `heads`, `channels` and `layers` leave the network, in the order of what their absence costs (Optimal Brain Surgeon
    on columns: prune_columns.py); what stays is fitted by least squares to what there was.
    """

    structure: str = "channels"
    share: float = 0.25
    recovery_epochs: int = 0


@dataclass(frozen=True, slots=True)
class Int8:
    """Let the engine multiply 8-bit integers: x = scale * (integer - zero point).

    `dynamic`: an activation's scale is found while running, from its own least and largest value. `static`: it is
    fixed beforehand on `calibration_rows` rows of training data (made-up ones for a model of tensors); `minmax` takes
    all that were seen, `percentile` leaves (100 - percentile) / 2 % out at either end, `entropy` cuts where the
    Kullback-Leibler divergence is least (Migacz, 2017). A weight has 7 of 8 bits and a scale for each output, or for
    the matrix without `per_channel`. `balance` is alpha of SmoothQuant (Xiao et al., 2023, arXiv:2211.10438), 0 to 1;
    0 is off. `keep`: layers that stay floats, by name or pattern; `keep_most_sensitive`: as many more, those that lose
    most. Convolutions are faster with `static`; LSTMs and embeddings are always dynamic.
    """

    mode: str = "dynamic"
    calibration: str = "minmax"
    calibration_rows: int = 256
    percentile: float = 99.99
    per_channel: bool = True
    balance: float = 0.0
    keep: tuple[str, ...] = ()
    keep_most_sensitive: int = 0
    engine: str = "onnxruntime"


@dataclass(frozen=True, slots=True)
class Int4:
    """Store weights as 4-bit integers with a scale for each `group_size` of them."""

    group_size: int = 32
    symmetric: bool = True
    parts: str = "all"
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bf16:
    """Store weights with 16 bits: as float16 (11 bits of precision), as bfloat16 (8) where one is beyond 65,504.

    Half the bytes; onnxruntime makes float32 of them when it loads the file and runs as fast as before. Where the
    processor multiplies bfloat16 itself (AVX-512 BF16, AMX), openvino serves the same file in that precision too.
    """


@dataclass(frozen=True, slots=True)
class Codebook:
    """Store each weight as the number of one of 2^`bits` values, found by k-means (Han et al., 2016,
    arXiv:1510.00149): w' = value[number] * row scale * column scale.
    """

    bits: int = 4
    parts: str = "all"
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LowRank:
    """Replace a matrix by two thinner ones: the r largest singular values that hold `energy` of the sum of squares."""

    energy: float = 0.95


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Drop words that the training data uses less than `minimum_count` times.

    `most_words`: only the most frequent stay; 0: no bound.
    """

    minimum_count: int = 1
    most_words: int = 0


@dataclass(frozen=True, slots=True)
class Distill:
    """Train a student to answer as the source does (Hinton et al., 2015, arXiv:1503.02531).

    loss = soft_weight * T^2 * KL(softmax(teacher / T), softmax(student / T)) + (1 - soft_weight) * cross-entropy +
    hint_weight * distance of hidden states.
    """

    student: str = ""
    layers: int = 0
    hidden_size: int = 0
    inner_size: int = 0
    epochs: int = 4
    temperature: float = 2.0
    soft_weight: float = 0.9
    hint_weight: float = 0.0
    learning_rate: float = 0.0
    batch_size: int = 32
    augmented_copies: int = 0


@dataclass(frozen=True, slots=True)
class Qat:
    """Train on with weights and activations rounded as int8 does (Jacob et al., 2018, arXiv:1712.05877).

    The loss is Distill's, with the source as the teacher.
    """

    epochs: int = 1
    learning_rate: float = 2e-5
    temperature: float = 2.0
    soft_weight: float = 0.9


@dataclass(frozen=True, slots=True)
class Compile:
    """Serve with this engine and precision; empty: the fastest that is close enough, measured on this host.

    The file stays as it is, without what the other engines would need. It runs on other hosts too, where another
    engine may be the fastest.
    """

    engine: str = ""
    precision: str = ""


Technique: TypeAlias = (
    Clip | FixedPoint | Prune | Int8 | Int4 | Bf16 | Codebook | LowRank | Vocabulary | Distill | Qat | Compile
)
Recipe: TypeAlias = tuple[Technique, ...]

TECHNIQUES: dict[str, type[Technique]] = {
    "clip": Clip,
    "fixed_point": FixedPoint,
    "prune": Prune,
    "int8": Int8,
    "int4": Int4,
    "bf16": Bf16,
    "codebook": Codebook,
    "low_rank": LowRank,
    "vocabulary": Vocabulary,
    "distill": Distill,
    "qat": Qat,
    "compile": Compile,
}
"""By the name that the contract gives each."""

GRAPH_TECHNIQUES = (Int8, Int4, Bf16, Codebook, Compile)
"""They rewrite the served graph, and leave no trainable form."""
TRAINABLE_ONLY = (Distill, Qat)
"""They need a trainable form. The others work on a bare graph too."""
REMOVING_STRUCTURES = ("hidden_units", "heads", "channels", "layers")
"""Of prune: only a trainable form says where these are."""


def technique_from_proto(message: messages.Technique) -> Technique:
    """Return the technique that the message chooses, defaults filled in."""
    name = message.WhichOneof("technique")
    if name is None:
        raise ValueError("a technique without a choice passed validation")
    given: dict[str, Any] = {
        field.name: tuple(value) if field.is_repeated else value for field, value in getattr(message, name).ListFields()
    }
    return TECHNIQUES[name](**given)


def technique_to_proto(technique: Technique) -> messages.Technique:
    """Return the message, with every setting in it."""
    name = technique_name(technique)
    message = messages.Technique()
    settings = getattr(message, name)
    settings.SetInParent()
    for field in fields(technique):
        value = getattr(technique, field.name)
        if isinstance(value, tuple):
            getattr(settings, field.name).extend(value)
        else:
            setattr(settings, field.name, value)
    return message


def technique_name(technique: Technique) -> str:
    """Return the contract's name of it."""
    return next(name for name, kind in TECHNIQUES.items() if isinstance(technique, kind))


def technique_text(technique: Technique) -> str:
    """Return the line that stands for it: its name and the settings that are not its defaults."""
    message = technique_to_proto(technique)
    settings = getattr(message, technique_name(technique))
    default = type(technique)()
    for field in fields(technique):
        if getattr(technique, field.name) == getattr(default, field.name):
            settings.ClearField(field.name)
    return technique_line(message)


def parse_recipe(lines: list[str]) -> Recipe:
    """Read what `technique_text` wrote."""
    return tuple(technique_from_proto(parse_technique(line)) for line in lines)


def check_recipe(recipe: Recipe, *, has_trainable_form: bool) -> None:
    """Raise RecipeInvalid, naming the steps that cannot be applied where they stand."""
    violations = [
        FieldViolation(f"recipe.techniques[{index}]", f"{technique_text(technique)} {problem}")
        for index, technique in enumerate(recipe)
        if (problem := _problem(technique, recipe[:index], has_trainable_form=has_trainable_form))
    ]
    if violations:
        raise RecipeInvalid("; ".join(violation.description for violation in violations), violations=tuple(violations))


def _problem(technique: Technique, before: Recipe, *, has_trainable_form: bool) -> str:
    """Return why the technique cannot follow what is before it; empty when it can."""
    last_graph = next((one for one in reversed(before) if isinstance(one, GRAPH_TECHNIQUES)), None)
    if last_graph is not None and not isinstance(technique, GRAPH_TECHNIQUES):
        return f"changes weights, which {technique_name(last_graph)} has left none of: put it before"
    if technique in before or (isinstance(technique, Int8) and any(isinstance(one, Int8) for one in before)):
        return "is there already, and doing it twice changes nothing: leave one out"
    if isinstance(technique, Distill) and technique.hint_weight and technique.student == "lstm-text-classifier":
        return "has no layers that could be like the teacher's: leave hint_weight out"
    if not has_trainable_form and _needs_trainable_form(technique):
        return "needs a trainable form, which this version lacks: take the version that it was made from"
    return ""


def _needs_trainable_form(technique: Technique) -> bool:
    if isinstance(technique, Prune):
        return technique.structure in REMOVING_STRUCTURES or technique.recovery_epochs > 0
    return isinstance(technique, TRAINABLE_ONLY)

"""Which recipes a search may try: sensible ones first, then what a sampler makes of the settings.

A recipe is chosen in three places: what is done to the trainable form, how embeddings are stored, and how the rest is
stored and computed. Settings are steps of a grid rather than any number, so that trials share what they begin with
(a student is trained once and then quantized many ways) and the same recipe is not tried twice under two names.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maas_compression.recipe import (
    Bf16,
    Codebook,
    Compile,
    Distill,
    Int4,
    Int8,
    LowRank,
    Prune,
    Qat,
    Recipe,
    RecipeInvalid,
    Technique,
    Vocabulary,
    check_recipe,
)
from maas_compression.searching.trials import Choices
from maas_package.manifest import TEXT_CLASSIFICATION, Manifest

if TYPE_CHECKING:
    from optuna.trial import Trial

_LSTM = "lstm-text-classifier"

_STRUCTURES = ("channels", "heads", "layers")
_FLOAT, _INT8, _STATIC, _OPENVINO_INT8, _INT4, _CODEBOOK, _BF16, _COMPILED = (
    "float",
    "int8",
    "static_int8",
    "openvino_int8",
    "int4",
    "codebook",
    "bf16",
    "compiled",
)

_DEFAULTS: Choices = {
    "change": "none",
    "minimum_count": 0,
    "recovery_epochs": 0,
    "qat_epochs": 0,
    "keep_most_sensitive": 0,
    "calibration": "minmax",
    "balance": 0.0,
    "group_size": 32,
    "bits": 4,
    "embeddings": "alike",
}
"""What a sensible recipe does not say otherwise. The sampler takes those that are asked for."""


@dataclass(frozen=True, slots=True)
class Model:
    """What decides which techniques apply. `layers`, and `channels` of each, are 0 where an architecture has none."""

    has_trainable_form: bool
    takes_texts: bool
    is_classifier: bool
    architecture: str = ""
    layers: int = 0
    channels: int = 0

    @classmethod
    def of(cls, manifest: Manifest) -> "Model":
        """Read it off a manifest."""
        reference = manifest.architecture
        config = {} if reference is None else reference.config
        channels = config.get("inner_size", 0)
        return cls(
            has_trainable_form=reference is not None,
            takes_texts=manifest.text is not None,
            is_classifier=manifest.task == TEXT_CLASSIFICATION,
            architecture="" if reference is None else reference.name,
            layers=int(config.get("layers", 0)),
            channels=max(channels) if isinstance(channels, list) else int(channels),
        )

    @property
    def is_transformer(self) -> bool:
        """Whether it has layers with heads and channels that can go."""
        return self.layers > 0

    @property
    def is_lstm(self) -> bool:
        """Whether it has hidden units that can go."""
        return self.architecture == _LSTM


@dataclass(frozen=True, slots=True)
class Space:
    """The recipes for one model, with or without those that train."""

    model: Model
    allow_training: bool

    def first_choices(self) -> Iterator[Choices]:
        """Yield what is tried first, the most promising before the others.

        Measured on the issue's two models, one thread: int8 by onnxruntime is the fastest for one row of a
        transformer and for every LSTM, openvino's bfloat16 the fastest in batches where the processor has it; half of
        a MiniLM's bytes, and nine tenths of the LSTM's, are word vectors, which int4 and a smaller vocabulary take.
        """
        for choices in self._promising():
            if self._is_valid(choices):
                yield choices

    def suggest(self, trial: "Trial") -> Choices:
        """Let the sampler choose; only what a choice before makes meaningful is asked for."""
        chosen: dict[str, Any] = {"change": trial.suggest_categorical("change", self._changes())}
        match chosen["change"]:
            case "student":
                chosen["student"] = trial.suggest_categorical("student", self._students())
                chosen["epochs"] = trial.suggest_categorical("epochs", (2, 4, 8))
            case "low_rank":
                chosen["energy"] = trial.suggest_float("energy", 0.8, 0.98, step=0.03)
            case "none":
                pass
            case _:
                chosen["share"] = trial.suggest_float("share", 0.1, 0.7 if self.allow_training else 0.3, step=0.1)
                if self.allow_training:
                    chosen["recovery_epochs"] = trial.suggest_categorical("recovery_epochs", (0, 1, 3))
        if self.model.has_trainable_form and self.model.takes_texts:
            chosen["minimum_count"] = trial.suggest_categorical("minimum_count", (0, 1, 2, 3, 5))
        storage = chosen["storage"] = trial.suggest_categorical("storage", self._storages())
        if self.allow_training and self.model.has_trainable_form and storage in (_INT8, _STATIC):
            chosen["qat_epochs"] = trial.suggest_categorical("qat_epochs", (0, 1))
        if storage in (_INT8, _STATIC, _OPENVINO_INT8):
            chosen["keep_most_sensitive"] = trial.suggest_categorical("keep_most_sensitive", (0, 1, 2, 4))
        if storage in (_STATIC, _OPENVINO_INT8):
            chosen["calibration"] = trial.suggest_categorical("calibration", ("minmax", "percentile", "entropy"))
            chosen["balance"] = trial.suggest_categorical("balance", (0.0, 0.5, 0.7))
        if storage == _INT4:
            chosen["group_size"] = trial.suggest_categorical("group_size", (32, 64, 128))
        if storage == _CODEBOOK:
            chosen["bits"] = trial.suggest_int("bits", 3, 6)
        if storage in (_INT8, _STATIC) and self.model.takes_texts:
            chosen["embeddings"] = trial.suggest_categorical("embeddings", ("alike", _INT4, _CODEBOOK))
        return chosen

    def recipe(self, choices: Choices) -> Recipe:
        """Return the techniques that were chosen, in their order; none when nothing was."""
        return (*self._changed(choices), *_stored(choices))

    def _changed(self, choices: Choices) -> Iterator[Technique]:
        """Yield what changes the trainable form. Training comes before the vocabulary, since it sees all words."""
        match choices["change"]:
            case "student":
                yield self._distill(choices)
            case "low_rank":
                yield LowRank(energy=round(choices["energy"], 2))
            case "none":
                pass
            case structure:
                yield Prune(structure, round(choices["share"], 2), choices.get("recovery_epochs", 0))
        if choices.get("minimum_count"):
            yield Vocabulary(minimum_count=choices["minimum_count"])
        if choices.get("qat_epochs"):
            yield Qat(epochs=choices["qat_epochs"])

    def _distill(self, choices: Choices) -> Distill:
        match choices["student"]:
            case "lstm":
                return Distill(student=_LSTM, epochs=choices["epochs"])
            case "narrow":
                return Distill(
                    layers=_half(self.model.layers), hidden_size=128, inner_size=512, epochs=choices["epochs"]
                )
            case "slim":
                return Distill(
                    layers=_half(self.model.layers),
                    inner_size=_half(self.model.channels),
                    epochs=choices["epochs"],
                    hint_weight=1.0,
                )
            case "third":
                return Distill(layers=max(1, self.model.layers // 3), epochs=choices["epochs"], hint_weight=1.0)
            case "half":
                return Distill(layers=_half(self.model.layers), epochs=choices["epochs"], hint_weight=1.0)
        raise ValueError(f"no student {choices['student']!r}")

    def _changes(self) -> tuple[str, ...]:
        changes = ["none", "low_rank"]
        if self.model.is_transformer:
            changes += _STRUCTURES
        if self.model.is_lstm:
            changes.append("hidden_units")
        if self.allow_training and self._students():
            changes.append("student")
        return tuple(changes)

    def _students(self) -> tuple[str, ...]:
        if not self.model.has_trainable_form or not self.model.is_transformer:
            return ()
        return ("half", "slim", "third", *(("narrow", "lstm") if self.model.is_classifier else ()))

    def _storages(self) -> tuple[str, ...]:
        return (_INT8, _STATIC, _OPENVINO_INT8, _COMPILED, _INT4, _CODEBOOK, _BF16)

    def _promising(self) -> Iterator[Choices]:
        has_words = self.model.has_trainable_form and self.model.takes_texts
        words: tuple[int, ...] = (1, 2) if has_words else (0,)
        yield _choices(storage=_INT8)
        if has_words:
            yield _choices(storage=_INT8, minimum_count=1, embeddings=_INT4)
        yield _choices(storage=_COMPILED)
        if has_words:
            yield _choices(storage=_INT8, minimum_count=1)
        yield _choices(storage=_STATIC)
        yield _choices(storage=_OPENVINO_INT8)
        if has_words:
            yield _choices(storage=_INT8, minimum_count=2, embeddings=_INT4)
        if self.allow_training:
            yield from self._promising_with_training(words)
        yield _choices(storage=_INT8, keep_most_sensitive=2, minimum_count=words[0], embeddings=_INT4)
        yield _choices(storage=_STATIC, balance=0.5, minimum_count=words[0])
        yield _choices(storage=_COMPILED, minimum_count=words[0])
        yield _choices(storage=_INT4, minimum_count=words[-1])
        yield _choices(storage=_CODEBOOK, minimum_count=words[-1])
        if self.model.is_transformer:
            yield _choices(change="channels", share=0.2, storage=_INT8, minimum_count=words[0], embeddings=_INT4)
            yield _choices(change="heads", share=0.2, storage=_INT8, minimum_count=words[0], embeddings=_INT4)
        if self.model.is_lstm:
            yield _choices(change="hidden_units", share=0.2, storage=_INT8, minimum_count=1, embeddings=_INT4)
        yield _choices(storage=_BF16)

    def _promising_with_training(self, words: tuple[int, ...]) -> Iterator[Choices]:
        ending: dict[str, Any] = {"storage": _INT8, "minimum_count": words[0], "embeddings": _INT4}
        for student in self._students():
            yield _choices(change="student", student=student, epochs=4, **ending)
        if self.model.is_transformer:
            yield _choices(change="channels", share=0.5, recovery_epochs=1, **ending)
            yield _choices(change="layers", share=0.5, recovery_epochs=1, **ending)
        if self.model.is_lstm:
            yield _choices(change="hidden_units", share=0.5, recovery_epochs=3, **ending)

    def _is_valid(self, choices: Choices) -> bool:
        recipe = self.recipe(choices)
        try:
            check_recipe(recipe, has_trainable_form=self.model.has_trainable_form)
        except RecipeInvalid:
            return False
        return bool(recipe)


def trains(technique: Technique) -> bool:
    """Return whether it takes the time that training takes."""
    return isinstance(technique, Distill | Qat) or (isinstance(technique, Prune) and technique.recovery_epochs > 0)


def _stored(choices: Choices) -> Iterator[Technique]:
    """Yield how the weights are stored and computed."""
    match choices.get("embeddings"):
        case "int4":
            yield Int4(parts="embeddings")
        case "codebook":
            yield Codebook(parts="embeddings")
    sensitive = choices.get("keep_most_sensitive", 0)
    calibration, balance = choices.get("calibration", "minmax"), choices.get("balance", 0.0)
    match choices["storage"]:
        case "int8":
            yield Int8(keep_most_sensitive=sensitive)
        case "static_int8":
            yield Int8(mode="static", calibration=calibration, balance=balance, keep_most_sensitive=sensitive)
        case "openvino_int8":
            yield Int8(
                mode="static",
                calibration=calibration,
                balance=balance,
                keep_most_sensitive=sensitive,
                engine="openvino",
            )
        case "int4":
            yield Int4(group_size=choices.get("group_size", 32))
        case "codebook":
            yield Codebook(bits=choices.get("bits", 4))
        case "bf16":
            yield Bf16()
        case "compiled":
            yield Compile()


def _choices(*, storage: str, **settings: Any) -> Choices:
    return {**_DEFAULTS, "storage": storage, **settings}


def _half(number: int) -> int:
    return max(1, number // 2)

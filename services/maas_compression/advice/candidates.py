"""Which recipes are worth a trial for these facts, and which techniques are not, with the reason. Computes nothing."""

from collections.abc import Iterator
from dataclasses import dataclass

from maas_compression.advice.host_facts import HostFacts
from maas_compression.advice.model_facts import EMBEDDINGS, RECURRENT, ModelFacts
from maas_compression.recipe import (
    Bf16,
    Codebook,
    Compile,
    Distill,
    FixedPoint,
    Int4,
    Int8,
    LowRank,
    Prune,
    Recipe,
    RecipeInvalid,
    Vocabulary,
    check_recipe,
)

LSTM_CLASSIFIER = "lstm-text-classifier"
_TRANSFORMERS = ("bert-text-classifier", "bert-sentence-encoder")

_WORTH_DROPPING = 0.05
"""Share of the weights that belong to words which the data does not use, from which dropping them is worth a trial."""
_MANY_BYTES = 0.15
"""Share of the weights from which a technique for embeddings alone is worth a trial."""
_THIN = 0.8
"""Share of the weights that two thinner matrices have, up to which they are worth a trial."""


@dataclass(frozen=True, slots=True)
class WordUse:
    """How much of a vocabulary some texts use."""

    vocabulary: int
    used: int
    texts: int

    @property
    def unused_share(self) -> float:
        """Share of the words that no text has."""
        return 1 - self.used / self.vocabulary


@dataclass(frozen=True, slots=True)
class Situation:
    """All that decides which recipes are tried. `architecture`: of the trainable form, empty where there is none."""

    model: ModelFacts
    host: HostFacts
    architecture: str
    classifies: bool
    words: WordUse | None
    has_training_data: bool
    allow_training: bool

    @property
    def is_transformer(self) -> bool:
        """Whether the trainable form is an encoder of BERT's kind."""
        return self.architecture in _TRANSFORMERS

    @property
    def is_recurrent(self) -> bool:
        """Whether there is an LSTM, a GRU or an RNN in it."""
        return self.model.parts[RECURRENT].parameters > 0

    @property
    def dropped_by_vocabulary(self) -> float:
        """Share of the model's weights that belong to words which the data does not use."""
        return 0.0 if self.words is None else self.words.unused_share * self.model.share(EMBEDDINGS)

    def can_train(self) -> bool:
        """Return whether techniques that train may be advised, and can work."""
        return self.allow_training and self.has_training_data and bool(self.architecture)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recipe and why it may suit. `trains`: its trial leaves the training out, so its quality is not known."""

    recipe: Recipe
    reason: str
    trains: bool = False


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A technique that is not advised, and why."""

    technique: str
    reason: str


def candidates(situation: Situation) -> list[Candidate]:
    """Return what is worth a trial, the most promising first: a slow host has no time for the last ones."""
    trainable = bool(situation.architecture)
    return [candidate for candidate in _candidates(situation) if _fits(candidate.recipe, has_trainable_form=trainable)]


def exclusions(situation: Situation) -> list[Exclusion]:
    """Return the techniques of which no candidate is made, each with the reason."""
    return list(_exclusions(situation))


def _fits(recipe: Recipe, *, has_trainable_form: bool) -> bool:
    try:
        check_recipe(recipe, has_trainable_form=has_trainable_form)
    except RecipeInvalid:
        return False
    return True


def _candidates(it: Situation) -> Iterator[Candidate]:
    model = it.model
    integers = (
        "multiplies 8-bit integers by itself" if it.host.multiplies_integers else "adds up 8-bit products by AVX2"
    )
    yield Candidate((Int8(),), f"a quarter of the bytes, no training, no data needed; this processor {integers}")
    words = it.words
    if it.architecture and words is not None and it.dropped_by_vocabulary >= _WORTH_DROPPING:
        yield Candidate(
            (Vocabulary(), Int8()),
            f"the data uses {words.used:,} of {words.vocabulary:,} words, and word vectors are "
            f"{model.share(EMBEDDINGS):.0%} of the weights: the others' vectors go, the rest becomes 8-bit integers",
        )
    if model.share(EMBEDDINGS) >= _MANY_BYTES:
        yield Candidate(
            (Int4(parts="embeddings"), Int8()),
            f"word vectors are {model.share(EMBEDDINGS):.0%} of the weights and are only looked up: 4 bits for them "
            "cost no time, 8 bits for the matrices win it",
        )
    if it.host.multiplies_bf16:
        yield Candidate(
            (Bf16(),), "this processor multiplies bfloat16 by itself: half of the bytes, nearly the same answers"
        )
    if it.can_train():
        yield from _with_training(it)
    if it.is_transformer and it.has_training_data:
        yield Candidate(
            (Int8(mode="static"),),
            "ranges of the activations are found beforehand on training texts, which saves finding them while it runs",
        )
    if model.spread is not None and model.spread.low_rank_weights <= _THIN:
        yield Candidate(
            (LowRank(), Int8()),
            f"95 % of the matrices' energy is in {model.spread.low_rank_weights:.0%} of their weights",
        )
    yield Candidate((Int4(),), "an eighth of the bytes; the products are computed as floats, so speed is not the point")
    yield Candidate((Codebook(),), "an eighth of the bytes; read back as floats when it is loaded: as fast as before")
    yield Candidate((Compile(),), "another engine may compute the same floats faster on this host; nothing is rounded")
    yield Candidate(
        (FixedPoint(),), "half of the bytes or less, and it can be trained on; computed as floats: as fast as before"
    )


def _with_training(it: Situation) -> Iterator[Candidate]:
    if it.is_transformer:
        yield Candidate(
            (Distill(), Int8()),
            "a student with half of the layers learns the answers of this model: half of the products go, the rest "
            "becomes 8-bit integers",
            trains=True,
        )
        if it.classifies:
            yield Candidate(
                (Distill(student=LSTM_CLASSIFIER), Int8()),
                "a student of another kind, an LSTM, learns this model's answers: the smallest and fastest, and the "
                "most that can be lost",
                trains=True,
            )
        yield Candidate(
            (Prune(structure="channels", share=0.5, recovery_epochs=1), Int8()),
            "half of the feed-forward channels go, those that matter least, and training mends the rest",
            trains=True,
        )
    if it.architecture == LSTM_CLASSIFIER:
        yield Candidate(
            (Prune(structure="hidden_units", share=0.5, recovery_epochs=2), Int8()),
            "half of the hidden units go, a quarter of the recurrent products is left, and training mends the rest",
            trains=True,
        )


def _exclusions(it: Situation) -> Iterator[Exclusion]:
    spread = it.model.spread
    beyond = "" if spread is None else f"; it would change {spread.beyond_fan_in:.1%} of the matrices' weights"
    yield Exclusion("clip", f"neither smaller nor faster by itself: it narrows ranges for a step after it{beyond}")
    yield Exclusion(
        "prune(structure=weights)",
        "zeros keep their place in the file and in the products: no engine here computes faster for them",
    )
    if not it.host.multiplies_bf16:
        has = ", ".join(it.host.extensions) or "none of its kind"
        yield Exclusion("bf16", f"this processor does not multiply bfloat16 by itself (it has {has})")
    yield from _vocabulary_exclusion(it)
    if it.model.share(EMBEDDINGS) < _MANY_BYTES:
        yield Exclusion(
            "int4(parts=embeddings)", f"embeddings are only {it.model.share(EMBEDDINGS):.0%} of the weights"
        )
    if spread is None:
        yield Exclusion("low_rank", "there is no matrix to cut")
    elif spread.low_rank_weights > _THIN:
        yield Exclusion(
            "low_rank",
            f"95 % of the matrices' energy needs {spread.low_rank_weights:.0%} of their weights: nothing is won",
        )
    yield from _training_exclusions(it)


def _vocabulary_exclusion(it: Situation) -> Iterator[Exclusion]:
    if it.words is None:
        yield Exclusion("vocabulary", "no texts and word vectors, so there are no words to drop")
    elif not it.architecture:
        yield Exclusion("vocabulary", "needs a trainable form; take the version that this one was made from")
    elif it.dropped_by_vocabulary < _WORTH_DROPPING:
        yield Exclusion(
            "vocabulary",
            f"the {it.words.texts:,} texts use {it.words.used:,} of {it.words.vocabulary:,} words: dropping the others "
            f"saves {it.dropped_by_vocabulary:.1%}",
        )


def _training_exclusions(it: Situation) -> Iterator[Exclusion]:
    if it.can_train():
        if not it.is_transformer and it.architecture != LSTM_CLASSIFIER:
            yield Exclusion("distill, prune(structure=...)", f"not known how to do it with {it.architecture}")
        return
    if not it.architecture:
        why = "need a trainable form, which a plain graph or an int8 version has not; take the version it was made from"
    elif not it.has_training_data:
        why = "learn from data, and there is no split train; name a dataset"
    else:
        why = "train for minutes or more, which was not allowed: --allow-training"
    yield Exclusion("distill, qat, prune(recovery_epochs=...)", why)

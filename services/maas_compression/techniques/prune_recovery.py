"""Training after pruning: the network that was left learns what the whole one answers, and the labels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maas_compression.materials import Materials, TrainingDataMissing
from maas_jobs.labelled_rows import LabelledSplit
from maas_learning.checkpoint import Checkpoints
from maas_learning.encoded_rows import Batch, EncodedRows, encode_rows
from maas_learning.loop import EpochMoment, LearningSettings, learn
from maas_learning.objectives import Accuracy
from maas_package.architectures.lstm_text_classifier import LstmTextClassifier
from maas_package.manifest import TEXT_CLASSIFICATION
from maas_package.package import Package
from maas_package.text import TextTokenizer

_BATCH_ROWS = 32
_EVALUATION_ROWS = 128
_TEACHER_SHARE = 0.5
_TEMPERATURE = 2.0
_SEED = 0
RECOVER_BEGINS, RECOVER_ENDS = 0.3, 0.95
"""As shares of the technique's work."""


def recover(
    source: Package,
    whole: nn.Module,
    smaller: nn.Module,
    masks: Mapping[str, Tensor],
    epochs: int,
    materials: Materials,
) -> None:
    """Train `smaller` in place and leave it with its best weights on the split validation, the old ones among them.

    The loss of a classifier is half cross-entropy, half Hinton's T^2 KL to the whole network (arXiv:1503.02531) with
    T = 2; that of an encoder is the squared distance to the whole network's vectors. What `masks` says is zero stays
    zero. Raises TrainingDataMissing.
    """
    if materials.validation is None:
        raise TrainingDataMissing("recovery_epochs needs data to choose the best epoch on: a split validation")
    text = source.manifest.text
    assert text is not None, "a trainable form has a tokenizer"
    tokenizer = TextTokenizer.from_file(source.path(text.tokenizer), text.max_tokens)

    def encode(split: LabelledSplit) -> EncodedRows:
        return encode_rows(materials.scratch / f"{split.path.stem}.ids", tokenizer, split.rows())

    is_classifier = source.manifest.task == TEXT_CLASSIFICATION
    with encode(materials.require_train()) as rows, encode(materials.validation) as validation:
        score = Accuracy(validation) if is_classifier else _Closeness(whole, validation)
        before = {name: tensor.clone() for name, tensor in smaller.state_dict().items()}
        with torch.inference_mode():
            score_before = score(smaller)
        state = learn(
            smaller,
            rows,
            _Objective(whole, is_classifier, masks),
            _MaskedScore(score, masks),
            _settings(smaller, epochs),
            Checkpoints(materials.scratch / "checkpoints"),
            _Narrator(materials),
        )
        _apply(masks, smaller)
        materials.log(f"recovery: {score_before:.4f} -> {state.best_score:.4f} on validation, epoch {state.best_epoch}")
        if state.best_score < score_before:
            smaller.load_state_dict(before)


@dataclass(frozen=True, slots=True)
class _Objective:
    whole: nn.Module
    is_classifier: bool
    masks: Mapping[str, Tensor]

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        _apply(self.masks, module)
        with torch.no_grad():
            wanted = self.whole(batch.tokens)
        answers = module(batch.tokens)
        if not self.is_classifier:
            distance: Tensor = (answers - wanted).square().sum(dim=1).mean()
            return distance
        soft = nn.functional.kl_div(
            (answers / _TEMPERATURE).log_softmax(1),
            (wanted / _TEMPERATURE).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        hard = nn.functional.cross_entropy(answers, batch.labels)
        return _TEACHER_SHARE * _TEMPERATURE**2 * soft + (1 - _TEACHER_SHARE) * hard


@dataclass(frozen=True, slots=True)
class _Closeness:
    """Minus the mean squared distance to the whole network's vectors."""

    whole: nn.Module
    rows: EncodedRows

    def __call__(self, module: nn.Module) -> float:
        distance = 0.0
        for batch in self.rows.batches_by_length(_EVALUATION_ROWS):
            distance += (module(batch.tokens) - self.whole(batch.tokens)).square().sum().item()
        return -distance / len(self.rows)


@dataclass(frozen=True, slots=True)
class _MaskedScore:
    score: Callable[[nn.Module], float]
    masks: Mapping[str, Tensor]

    def __call__(self, module: nn.Module) -> float:
        _apply(self.masks, module)
        return self.score(module)


@dataclass(frozen=True, slots=True)
class _Narrator:
    materials: Materials

    def __call__(self, moment: EpochMoment) -> None:
        if moment.score is not None:
            self.materials.log(f"recovery epoch {moment.epoch}: loss {moment.loss:.4f}, validation {moment.score:.4f}")
        self.materials.progress(RECOVER_BEGINS + (RECOVER_ENDS - RECOVER_BEGINS) * moment.done, "recover")


def _settings(module: nn.Module, epochs: int) -> LearningSettings:
    if isinstance(module, LstmTextClassifier):
        return LearningSettings(epochs, _BATCH_ROWS, 1e-3, patience=epochs, seed=_SEED)
    return LearningSettings(epochs, _BATCH_ROWS, 5e-5, patience=epochs, seed=_SEED, weight_decay=0.01, warm_up=0.1)


def _apply(masks: Mapping[str, Tensor], module: nn.Module) -> None:
    with torch.no_grad():
        for name, mask in masks.items():
            module.get_parameter(name).mul_(mask)

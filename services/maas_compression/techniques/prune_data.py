"""The texts that decide what can go, and what the network's answer asks of its insides on them."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from maas_compression.materials import Materials
from maas_package.manifest import TEXT_CLASSIFICATION
from maas_package.package import Package
from maas_package.text import TextTokenizer

BATCH_ROWS = 32


def calibration_batches(source: Package, materials: Materials, rows: int) -> list[Tensor]:
    """Return word ids int64 [BATCH_ROWS, T] of some texts, spread over the first part of the data.

    Labels are not looked at, so unlabelled texts do as well. Raises TrainingDataMissing.
    """
    text = source.manifest.text
    assert text is not None, "a trainable form has a tokenizer"
    tokenizer = TextTokenizer.from_file(source.path(text.tokenizer), text.max_tokens)
    texts = (materials.unlabelled if materials.train is None else None) or materials.require_train()
    found = texts.first_texts()
    chosen = np.unique(np.linspace(0, len(found) - 1, min(rows, len(found)), dtype=np.int64))
    # Of like lengths together, so that there is little padding.
    by_length = sorted((found[index] for index in chosen), key=len)
    return [
        torch.from_numpy(tokenizer.encode(by_length[begin : begin + BATCH_ROWS]))
        for begin in range(0, len(by_length), BATCH_ROWS)
    ]


def answers_to_derive(
    source: Package, answer: Callable[[Tensor], Tensor], batches: list[Tensor], seed: int
) -> Iterator[Tensor]:
    """Yield a number for each batch: the mean square of its gradient is what a change of the answers costs.

    For a classifier it is the cross-entropy with labels drawn from its own answers: the true Fisher information. For
    vectors it is their product with random ones: the Gauss-Newton matrix of the squared distance. Both need no labels.
    """
    generator = torch.Generator().manual_seed(seed)
    for tokens in batches:
        answers = answer(tokens)
        if source.manifest.task == TEXT_CLASSIFICATION:
            drawn = torch.multinomial(answers.detach().softmax(1), 1, generator=generator).squeeze(1)
            yield nn.functional.cross_entropy(answers, drawn, reduction="sum")
        else:
            yield (answers * torch.randn(answers.shape, generator=generator)).sum()


def divergence(source: Package, wanted: Tensor, answers: Tensor) -> float:
    """Return how far answers are from the wanted ones, summed over the rows: KL(wanted || answers) of a classifier's
    shares, the squared distance of vectors.
    """
    if source.manifest.task == TEXT_CLASSIFICATION:
        log_shares = (answers.log_softmax(1), wanted.log_softmax(1))
        return nn.functional.kl_div(*log_shares, reduction="sum", log_target=True).item()
    return (answers - wanted).square().sum().item()

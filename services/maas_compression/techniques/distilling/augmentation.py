"""More texts for the teacher to answer: those of the training data, changed at random.

Tang et al., 2019 (arXiv:1903.12136, section 3.2): a word is left out with probability 0.1 (there: masked) or replaced
with 0.1 (there: by one of the same kind, which needs a tagger; here by any word of the text before), and of a quarter
of the texts only 1 to 5 words in a row stay. What the words mean together does not matter: the teacher says it.
"""

from collections.abc import Iterable, Iterator

import numpy as np

_LEFT_OUT, _REPLACED, _CUT_OUT = 0.1, 0.1, 0.25
_MOST_WORDS = 5


def augmented(texts: Iterable[str], copies: int, seed: int) -> Iterator[str]:
    """Yield `copies` changed forms of each text, the same for the same seed; each has a word at least."""
    generator = np.random.default_rng(seed)
    before: list[str] = []
    for text in texts:
        words = text.split()
        for _ in range(copies if words else 0):
            yield " ".join(_changed(words, before or words, generator))
        before = words or before


def _changed(words: list[str], others: list[str], generator: np.random.Generator) -> list[str]:
    draws = generator.random(len(words))
    kept = [
        others[int(generator.integers(len(others)))] if draw < _LEFT_OUT + _REPLACED else word
        for word, draw in zip(words, draws, strict=True)
        if draw >= _LEFT_OUT
    ] or [words[int(generator.integers(len(words)))]]
    if generator.random() < _CUT_OUT:
        length = int(generator.integers(1, _MOST_WORDS + 1))
        begin = int(generator.integers(max(len(kept) - length, 0) + 1))
        return kept[begin : begin + length]
    return kept

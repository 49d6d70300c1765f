"""Made-up rows to run a model with: to warm it up, to measure it, to compare two forms of it."""

from collections.abc import Mapping

import numpy as np

from maas_engine.engine import InputsRefused
from maas_engine.predictor import Predictor
from maas_package.manifest import TensorSpec
from maas_package.tensors import Array, numpy_type

_TOKENS = 24
# What models of pictures and of vectors may need where a size is free, beside a text's length.
_FREE_SIZES = (_TOKENS, 64, 224, 1)


class Examples:
    """Rows that a predictor can run: a step's own, or random ones.

    Random are word ids of the vocabulary, small numbers, or short texts. A free size is the first of a few with which
    the model runs; finding it runs the model. Raises InputsRefused when it runs with none.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._specs = predictor.package.manifest.inputs
        self._vocabulary_size = predictor.preparer.vocabulary_size
        text = predictor.package.manifest.text
        self._free_size = _TOKENS if text is None else min(_TOKENS, text.max_tokens)
        if self._vocabulary_size is None and any(-1 in spec.shape[1:] for spec in self._specs):
            self._free_size = self._find_free_size()

    def batch(self, rows: int, seed: int) -> Mapping[str, Array]:
        """Return prepared inputs. Where a first dimension is fixed, `rows` does not change it."""
        examples = self.predictor.steps.examples(rows)
        if examples is not None:
            return self.predictor.preparer.prepare(examples)
        generator = np.random.default_rng(seed)
        return {spec.name: self._tensor(spec, rows, generator) for spec in self._specs}

    def _find_free_size(self) -> int:
        refused: InputsRefused | None = None
        for size in _FREE_SIZES:
            self._free_size = size
            try:
                self.predictor.compute(self.batch(1, seed=0))
            except InputsRefused as error:
                refused = refused or error
            else:
                return size
        assert refused is not None
        raise refused

    def _tensor(self, spec: TensorSpec, rows: int, generator: np.random.Generator) -> Array:
        sizes = (rows, *(self._free_size for _ in spec.shape[1:]))
        shape = tuple(free if size == -1 else size for size, free in zip(spec.shape, sizes, strict=False))
        if spec.datatype == "BYTES":
            return np.full(shape, b"example", np.object_)
        if spec.datatype.startswith("FP"):
            return generator.standard_normal(shape).astype(numpy_type(spec.datatype))
        # Word ids from 1: id 0 is padding, and a row of nothing but padding is not what a server sees.
        least, end = (1, max(self._vocabulary_size, 2)) if self._vocabulary_size else (0, 2)
        return generator.integers(least, end, shape).astype(numpy_type(spec.datatype))

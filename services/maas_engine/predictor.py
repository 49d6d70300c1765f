"""One package on one engine: from what a caller sends to what the caller gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maas_engine.engine import Engine, choose_servable, open_engine
from maas_engine.steps import Steps
from maas_package.inputs import InputPreparer
from maas_package.manifest import TEXT_CLASSIFICATION, Manifest, Servable
from maas_package.package import Package
from maas_package.tensors import Array, numpy_type
from maas_runtime.failures import DataCorrupt


class OutputsWrong(DataCorrupt):
    """The model answers otherwise than its manifest says: another tensor, type, or number of rows."""

    reason = "OUTPUTS_WRONG"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The outputs of one batch of N rows; for a classifier of C classes also what they mean."""

    outputs: Mapping[str, Array]
    logits: NDArray[np.floating] | None = None

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The class of each row: int64 [N]. Only for classifiers."""
        return predicted_classes(self._require_logits())

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """float32 [N, C], each row adding up to 1. Only for classifiers."""
        return softmax(self._require_logits())

    def _require_logits(self) -> NDArray[np.floating]:
        if self.logits is None:
            raise TypeError("only a classifier's prediction has classes")
        return self.logits


class Predictor:
    """Answers batches, one at a time."""

    def __init__(self, package: Package, engine: Engine) -> None:
        self.package = package
        self.preparer = InputPreparer(package)
        self.steps = Steps(package.manifest)
        self._engine = engine
        self._outputs = [(spec.name, numpy_type(spec.datatype), len(spec.shape)) for spec in package.manifest.outputs]
        self._joins_rows = package.manifest.joins_rows

    def predict(self, inputs: Mapping[str, Array]) -> Prediction:
        """Answer one batch of the text input or of the tensor inputs.

        Raises what InputPreparer.prepare raises, and InputsRefused.
        """
        return self.run(self.preparer.prepare(inputs))

    def predict_texts(self, texts: Sequence[str]) -> Prediction:
        """Answer one batch of texts."""
        return self.run(self.preparer.prepare_texts(texts))

    def run(self, prepared: Mapping[str, Array]) -> Prediction:
        """Answer one batch that the preparer has made. Raises what `compute` raises, and OutputsWrong."""
        outputs = self.compute(prepared)
        self._check_outputs(prepared, outputs)
        return interpret(self.package.manifest, outputs)

    def compute(self, prepared: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return what engine and steps give, unchecked. Raises InputsRefused, StepRefused or StepFailed."""
        return self.steps.run(prepared, self._engine.run)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def _check_outputs(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        # An answer of other rows than were asked would be given to other callers.
        rows = next(iter(inputs.values())).shape[:1] if self._joins_rows else ()
        for name, dtype, dimensions in self._outputs:
            tensor = outputs.get(name)
            if not isinstance(tensor, np.ndarray):
                raise OutputsWrong(f"the model gives {', '.join(outputs) or 'nothing'}, and no {name}", name=name)
            if tensor.dtype != dtype or tensor.ndim != dimensions or tensor.shape[: len(rows)] != rows:
                raise OutputsWrong(
                    f"the model gives {name} as {tensor.dtype} {list(tensor.shape)} for {sum(rows)} rows, which is "
                    "not what its manifest says",
                    name=name,
                )


def open_predictor(package: Package, servable: Servable | None = None, threads: int = 1) -> Predictor:
    """Load the servable, or the one that choose_servable takes. Raises what it, open_engine and the steps raise."""
    engine = open_engine(package, servable or choose_servable(package), threads)
    try:
        return Predictor(package, engine)
    except BaseException:
        engine.close()
        raise


def interpret(manifest: Manifest, outputs: Mapping[str, Array]) -> Prediction:
    """Say what an engine's outputs mean for the manifest's task."""
    if manifest.task != TEXT_CLASSIFICATION:
        return Prediction(outputs)
    return Prediction(outputs, outputs[manifest.outputs[0].name].astype(np.float32, copy=False))


def predicted_classes(logits: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the class with the largest logit of each row, the first of equals: int64 [N]."""
    classes: NDArray[np.int64] = logits.argmax(axis=1).astype(np.int64, copy=False)
    return classes


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return each row's probabilities: float32 [N, C]."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares

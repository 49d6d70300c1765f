"""What a caller sends, checked against the manifest and turned into the tensors that an engine takes.

Needs no engine: the process that queues requests can refuse bad ones before they meet others in a batch.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from maas_package.manifest import TensorSpec
from maas_package.package import Package
from maas_package.tensors import Array, numpy_type
from maas_package.text import TextTokenizer, decode_texts
from maas_runtime.failures import FieldViolation, InvalidInput


class InputNameInvalid(InvalidInput):
    """An input is missing, unknown, or sent beside the text that stands for it."""

    reason = "INPUT_NAME_INVALID"


class InputDatatypeInvalid(InvalidInput):
    """An input has another datatype than the manifest says."""

    reason = "INPUT_DATATYPE_INVALID"


class InputShapeInvalid(InvalidInput):
    """An input has another shape than the manifest allows, or no rows."""

    reason = "INPUT_SHAPE_INVALID"


class InputValueInvalid(InvalidInput):
    """A number in an input is outside what the model knows, as a word id beyond the vocabulary."""

    reason = "INPUT_VALUE_INVALID"


class InputPreparer:
    """Checks and prepares the inputs of one package; safe to be used by several threads."""

    def __init__(self, package: Package) -> None:
        manifest = package.manifest
        self._specs = {spec.name: spec for spec in manifest.inputs}
        self._joins_rows = manifest.joins_rows
        self._text = manifest.text
        self._tokenizer = (
            None
            if manifest.text is None
            else TextTokenizer.from_file(package.path(manifest.text.tokenizer), manifest.text.max_tokens)
        )

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """What a caller may send: the text input first, which stands for all others, then the tensors."""
        text = () if self._text is None else (TensorSpec(self._text.input, "BYTES", (-1,)),)
        return (*text, *self._specs.values())

    @property
    def vocabulary_size(self) -> int | None:
        """How many word ids there are; None for a package without text."""
        return None if self._tokenizer is None else self._tokenizer.vocabulary_size

    @property
    def padding_id(self) -> int:
        """The word id that fills rows up; 0 for a package without text."""
        return 0 if self._tokenizer is None else self._tokenizer.padding_id

    def prepare(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the tensors for the engine, from either the text input or all tensor inputs.

        Raises InputNameInvalid, InputDatatypeInvalid, InputShapeInvalid, InputValueInvalid, TextEmpty or
        TextNotUnicode.
        """
        if self._text is not None and self._text.input in inputs:
            if len(inputs) > 1:
                raise InputNameInvalid(f"send either {self._text.input} or {', '.join(self._specs)}, not both")
            return self.prepare_texts(_read_texts(inputs[self._text.input], self._text.input))
        self._check_names(inputs)
        prepared = {name: _check_tensor(inputs[name], spec) for name, spec in self._specs.items()}
        rows = {tensor.shape[0] for tensor in prepared.values() if tensor.ndim}
        if self._joins_rows and len(rows) > 1:
            raise InputShapeInvalid(f"the inputs have different numbers of rows: {sorted(rows)}")
        if self._text is not None and self._tokenizer is not None:
            _check_word_ids(prepared[self._text.feeds], self._text.feeds, self._tokenizer.vocabulary_size)
        return prepared

    def prepare_texts(self, texts: Sequence[str]) -> dict[str, Array]:
        """Return the tensors for these texts. Raises InputNameInvalid when the package takes no text, TextEmpty or
        TextNotUnicode.
        """
        if self._text is None or self._tokenizer is None:
            raise InputNameInvalid(f"this model takes no text; send {', '.join(self._specs)}")
        if not texts:
            raise _shape_violation(self._text.input, "has no rows")
        return {self._text.feeds: self._tokenizer.encode(texts)}

    def _check_names(self, inputs: Mapping[str, Array]) -> None:
        unknown = sorted(set(inputs) - set(self._specs))
        missing = sorted(set(self._specs) - set(inputs))
        if unknown or missing:
            takes = ", ".join(spec.name for spec in self.specs)
            what = f"no input {unknown[0]}" if unknown else f"the input {missing[0]} is missing"
            raise InputNameInvalid(
                f"{what}; this model takes: {takes}",
                violations=(FieldViolation((unknown or missing)[0], "is not known" if unknown else "is missing"),),
            )


def _read_texts(tensor: Array, name: str) -> list[str]:
    """Return the texts of a BYTES tensor [N] or [N, 1]."""
    values = np.asarray(tensor)
    if values.dtype.kind not in "OSU" or not all(isinstance(value, bytes | str) for value in values.flat):
        raise _datatype_violation(name, "BYTES", str(values.dtype))
    if values.ndim not in (1, 2) or values.size == 0 or (values.ndim == 2 and values.shape[1] != 1):
        raise _shape_violation(name, f"has shape {list(values.shape)} instead of [-1]")
    return decode_texts(values.ravel().tolist())


def _check_tensor(tensor: Array, spec: TensorSpec) -> Array:
    if tensor.dtype != numpy_type(spec.datatype):
        raise _datatype_violation(spec.name, spec.datatype, str(tensor.dtype))
    fits = tensor.ndim == len(spec.shape) and all(
        size > 0 and expected in (-1, size) for size, expected in zip(tensor.shape, spec.shape, strict=True)
    )
    if not fits:
        raise _shape_violation(spec.name, f"has shape {list(tensor.shape)} instead of {list(spec.shape)}")
    return tensor


def _check_word_ids(tokens: Array, name: str, vocabulary_size: int) -> None:
    # A single bad id would fail the whole batch that it is put into.
    if tokens.min() < 0 or tokens.max() >= vocabulary_size:
        description = f"has word ids outside 0 to {vocabulary_size - 1}"
        raise InputValueInvalid(f"{name} {description}", violations=(FieldViolation(name, description),))


def _datatype_violation(name: str, expected: str, actual: str) -> InputDatatypeInvalid:
    description = f"has the datatype {actual} instead of {expected}"
    return InputDatatypeInvalid(f"{name} {description}", violations=(FieldViolation(name, description),))


def _shape_violation(name: str, description: str) -> InputShapeInvalid:
    return InputShapeInvalid(f"{name} {description}", violations=(FieldViolation(name, description),))

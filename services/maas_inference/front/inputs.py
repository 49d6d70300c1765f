"""Checks of what a caller sent against what the version takes. Whatever passes here has the right number of bytes."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from maas_inference.datatypes import BYTES, ELEMENT_SIZES, join_elements, split_elements
from maas_inference.front.failures import (
    ContentsWrong,
    DatatypeWrong,
    OutputTwice,
    OutputUnknown,
    ShapeWrong,
    TensorMissing,
    TensorUnknown,
    TextBlank,
    TextNotTaken,
    TextNotUtf8,
    TextTooLong,
    TooManyRows,
)
from maas_inference.front.question import Group
from maas_inference.table import ServedVersion, Tensor
from maas_runtime.failures import FieldViolation

MAX_ROWS = 1024
"""Rows of one request."""
MAX_BYTES_ELEMENTS = 1 << 18
"""Elements of one BYTES tensor, which are looked at one by one."""
MAX_TEXT_BYTES = 1 << 20
"""Bytes of one text. The tokenizer keeps a text's beginning only, as many words as the model was trained with."""


class SentTensor(NamedTuple):
    """An input as it was sent: `raw` in the protocol's raw form."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | memoryview


class CheckedInputs(NamedTuple):
    """Inputs that fit: what they can be batched with, their rows, and their bytes in the group's order."""

    group: Group
    rows: int
    parts: list[bytes | memoryview]
    width: int = 0
    """The length that the group leaves open; 0 when it leaves none."""


def check_tensors(served: ServedVersion, sent: Sequence[SentTensor]) -> CheckedInputs:
    """Return the inputs in the signature's order. Raises the InvalidInput that says what does not fit."""
    if len(sent) == 1 and sent[0].name == served.text_input and served.text_input:
        return _check_text_tensor(served, sent[0])
    specs = served.inputs
    if len(sent) == 1 and len(specs) == 1 and sent[0].name == specs[0].name:
        ordered: Sequence[SentTensor] = sent
    else:
        ordered = _in_order(served, sent)
    rows = ordered[0].shape[0] if ordered[0].shape else 0
    group = []
    parts: list[bytes | memoryview] = []
    width = 0
    for spec, tensor in zip(specs, ordered, strict=True):
        _check_tensor(spec, tensor)
        if tensor.shape[0] != rows and served.joins_rows:
            raise _shape_wrong(spec, f"{spec.name} has {tensor.shape[0]} rows, another input {rows}")
        row_shape = tensor.shape[1:]
        if spec.name == served.padded_input and served.pads_rows:
            width, row_shape = row_shape[0], (-1,)
        group.append((spec.name, spec.datatype, row_shape))
        parts.append(tensor.raw)
    _check_rows(rows)
    return CheckedInputs(tuple(group), rows, parts, width)


def check_texts(served: ServedVersion, texts: Sequence[str]) -> CheckedInputs:
    """Return texts as the version's BYTES input. Raises the InvalidInput that says what does not fit."""
    if not served.text_input:
        raise TextNotTaken(f"this model takes tensors, not text: {_spell(served.inputs)}; use /v2/models/NAME/infer")
    _check_rows(len(texts))
    try:
        elements = [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise TextNotUtf8("a text has characters that are not Unicode (lone surrogates)") from error
    _check_elements(served.text_input, elements)
    return CheckedInputs(((served.text_input, BYTES, ()),), len(elements), [join_elements(elements)])


def check_outputs(served: ServedVersion, names: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of the requested outputs, in the order asked for. Raises OutputUnknown, OutputTwice."""
    known = {tensor.name: index for index, tensor in enumerate(served.outputs)}
    if len(set(names)) != len(names):
        raise OutputTwice("an output is asked for twice", violations=(FieldViolation("outputs", "one is there twice"),))
    for name in names:
        if name not in known:
            raise OutputUnknown(
                f"the model has no output {name[:80]!r}; it has {', '.join(known)}",
                violations=(FieldViolation("outputs", f"no output {name[:80]!r}"),),
            )
    return tuple([known[name] for name in names])


def _check_text_tensor(served: ServedVersion, tensor: SentTensor) -> CheckedInputs:
    spec = Tensor(served.text_input, BYTES, (-1,))
    if tensor.datatype != BYTES:
        raise _datatype_wrong(spec, tensor.datatype)
    shape = tensor.shape
    # [N, 1] is what clients with a batch dimension send.
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)) or shape[0] < 1:
        raise _shape_wrong(spec, f"{spec.name} has shape {list(shape)[:8]}, the model takes [-1] or [-1, 1]")
    _check_rows(shape[0])
    elements = _elements(spec.name, tensor.raw, shape[0])
    if len(elements) != shape[0]:
        raise _contents_wrong(spec.name, f"{len(elements)} elements for shape {list(shape)}")
    for element in elements:
        try:
            element.decode()
        except UnicodeDecodeError as error:
            raise TextNotUtf8(
                f"a text is not UTF-8 at byte {error.start}",
                violations=(FieldViolation(spec.name, f"not UTF-8 at byte {error.start}"),),
            ) from error
    _check_elements(spec.name, elements)
    return CheckedInputs(((spec.name, BYTES, ()),), shape[0], [tensor.raw])


def _in_order(served: ServedVersion, sent: Sequence[SentTensor]) -> list[SentTensor]:
    by_name = {tensor.name: tensor for tensor in sent}
    known = {spec.name for spec in served.inputs}
    for name in by_name:
        if name not in known:
            raise TensorUnknown(
                f"the model has no input {name[:80]!r}; it takes {_spell_inputs(served)}",
                violations=(FieldViolation("inputs", f"no input {name[:80]!r}"),),
            )
    missing = [spec.name for spec in served.inputs if spec.name not in by_name]
    if missing or len(by_name) != len(sent):
        what = f"{', '.join(missing)} is missing" if missing else "an input is there twice"
        raise TensorMissing(
            f"{what}; the model takes {_spell_inputs(served)}", violations=(FieldViolation("inputs", what),)
        )
    return [by_name[spec.name] for spec in served.inputs]


def _check_tensor(spec: Tensor, tensor: SentTensor) -> None:
    if tensor.datatype != spec.datatype:
        raise _datatype_wrong(spec, tensor.datatype)
    shape = tensor.shape
    fits = len(shape) == len(spec.shape)
    if fits:
        for sent, taken in zip(shape, spec.shape, strict=True):
            if sent < 1 or (sent != taken and taken != -1):
                fits = False
    if not fits or not shape:
        raise _shape_wrong(spec, f"{spec.name} has shape {list(shape)[:8]}, the model takes {list(spec.shape)}")
    if spec.datatype == BYTES:
        wanted = prod(shape)
        if wanted > MAX_BYTES_ELEMENTS:
            raise _shape_wrong(spec, f"{spec.name} has {wanted} elements, the bound of BYTES is {MAX_BYTES_ELEMENTS}")
        if (count := len(_elements(spec.name, tensor.raw, wanted))) != wanted:
            raise _contents_wrong(spec.name, f"{count} elements for shape {list(shape)}")
    elif (size_bytes := prod(shape) * ELEMENT_SIZES[spec.datatype]) != len(tensor.raw):
        raise _contents_wrong(
            spec.name, f"{len(tensor.raw)} bytes; {spec.datatype} of shape {list(shape)} has {size_bytes}"
        )


def _elements(name: str, raw: bytes | memoryview, at_most: int) -> list[bytes]:
    try:
        return split_elements(raw, at_most)
    except ValueError as error:
        raise _contents_wrong(name, str(error)) from error


def _check_elements(name: str, elements: Sequence[bytes]) -> None:
    for index, element in enumerate(elements):
        if len(element) > MAX_TEXT_BYTES:
            raise TextTooLong(
                f"a text has {len(element)} bytes, the bound is {MAX_TEXT_BYTES}",
                violations=(FieldViolation(f"{name}[{index}]", f"longer than {MAX_TEXT_BYTES} bytes"),),
            )
        if not element.strip():
            raise TextBlank(
                "a text is empty; send at least one word",
                violations=(FieldViolation(f"{name}[{index}]", "must have at least one word"),),
            )


def _check_rows(rows: int) -> None:
    if rows < 1:
        raise ShapeWrong("there are no rows; send at least one")
    if rows > MAX_ROWS:
        raise TooManyRows(f"{rows} rows in one request, the bound is {MAX_ROWS}; send several requests")


def _datatype_wrong(spec: Tensor, sent: str) -> DatatypeWrong:
    message = f"{spec.name} is sent as {sent[:20]!r}, the model takes {spec.datatype}"
    return DatatypeWrong(message, violations=(FieldViolation(spec.name, message),))


def _shape_wrong(spec: Tensor, message: str) -> ShapeWrong:
    return ShapeWrong(message, violations=(FieldViolation(spec.name, message),))


def _contents_wrong(name: str, what: str) -> ContentsWrong:
    return ContentsWrong(f"{name} has {what}", violations=(FieldViolation(name, what),))


def _spell_inputs(served: ServedVersion) -> str:
    text = f", or {served.text_input} BYTES [-1]" if served.text_input else ""
    return _spell(served.inputs) + text


def _spell(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in tensors)

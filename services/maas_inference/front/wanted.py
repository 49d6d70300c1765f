"""Which outputs a request wants, in which order, and as what: tensors, or the names of their largest elements."""

import heapq
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final, NamedTuple

from maas_inference.datatypes import BYTES, join_elements, unpack
from maas_inference.front.inputs import check_outputs
from maas_inference.front.options import integer_parameter, parameter_invalid
from maas_inference.front.question import Answer
from maas_inference.table import ServedVersion
from maas_inference.wire import TensorHeader

CLASSIFICATION: Final = "classification"


class Wanted(NamedTuple):
    """Indices of the outputs that were asked for, in that order; empty for all."""

    indices: tuple[int, ...]
    classes: tuple[int, ...] = ()
    """For each of them how many of its largest elements are wanted instead of the tensor, 0 for the tensor; empty when
    tensors are wanted only."""


ALL_OUTPUTS: Final = Wanted(())


def check_wanted(served: ServedVersion, outputs: Sequence[tuple[str, Mapping[str, Any]]]) -> Wanted:
    """Return what outputs with parameters ask for. Raises OutputUnknown, OutputTwice, ParameterInvalid."""
    indices = check_outputs(served, [name for name, _ in outputs])
    classes = tuple([integer_parameter(parameters, CLASSIFICATION) for _, parameters in outputs])
    if not any(classes):
        return Wanted(indices)
    for index, count in zip(indices, classes, strict=True):
        if count and served.outputs[index].datatype == BYTES:
            raise parameter_invalid(CLASSIFICATION, "for an output of numbers")
    return Wanted(indices, classes)


def classified(served: ServedVersion, wanted: Wanted, answer: Answer) -> Answer:
    """Return the answer with those outputs replaced of which classes are wanted: BYTES [rows, classes].

    An element is `value:index`, with `:label` where the model has labels, and the largest value comes first.
    """
    tensors, shapes, raws = list(answer.tensors), list(answer.shapes), list(answer.raws)
    for index, count in zip(wanted.indices, wanted.classes, strict=True):
        if count:
            tensor, shape = tensors[index], shapes[index]
            rows = shape[0] if served.joins_rows else 1
            columns = prod(shape) // rows if rows else 0
            values = unpack(tensor.datatype, raws[index])
            elements = [
                _spelled(values[begin + column], column, served.labels)
                for begin in range(0, len(values), columns or 1)
                for column in heapq.nlargest(count, range(columns), key=values[begin : begin + columns].__getitem__)
            ]
            shapes[index] = (rows, min(count, columns))
            raws[index] = join_elements(elements)
            tensors[index] = TensorHeader(tensor.name, BYTES, shapes[index], len(raws[index]))
    return Answer(tuple(tensors), tuple(shapes), raws)


def _spelled(value: float, column: int, labels: Sequence[str]) -> bytes:
    label = f":{labels[column]}" if column < len(labels) else ""
    return f"{value:f}:{column}{label}".encode()

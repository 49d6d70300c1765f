from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maas_package.inputs import (
    InputDatatypeInvalid,
    InputNameInvalid,
    InputPreparer,
    InputShapeInvalid,
    InputValueInvalid,
)
from maas_package.manifest import TensorSpec
from maas_package.package import read_package
from maas_package.text import TextEmpty, TextNotUnicode


@pytest.fixture
def preparer(tiny_package_folder: Path) -> InputPreparer:
    return InputPreparer(read_package(tiny_package_folder))


def test_text_and_tensors_are_what_may_be_sent(preparer: InputPreparer) -> None:
    assert preparer.specs == (TensorSpec("text", "BYTES", (-1,)), TensorSpec("tokens", "INT64", (-1, -1)))


@pytest.mark.parametrize(
    "texts",
    [
        np.array([b"a great story", b"bore"], object),
        np.array(["a great story", "bore"], object),
        np.array([["a great story"], ["bore"]], object),
        np.array(["a great story", "bore"]),
    ],
)
def test_text_becomes_word_ids(preparer: InputPreparer, texts: Any) -> None:
    prepared = preparer.prepare({"text": texts})
    assert prepared["tokens"].shape == (2, 3)
    assert prepared["tokens"].tolist() == preparer.prepare_texts(["a great story", "bore"])["tokens"].tolist()


def test_tensors_pass_through(preparer: InputPreparer) -> None:
    tokens = np.array([[2, 3, 0]], np.int64)
    assert preparer.prepare({"tokens": tokens})["tokens"] is tokens


@pytest.mark.parametrize(
    ("inputs", "failure"),
    [
        ({}, InputNameInvalid),
        ({"words": np.zeros((1, 1), np.int64)}, InputNameInvalid),
        ({"tokens": np.ones((1, 1), np.int64), "more": np.ones(1)}, InputNameInvalid),
        ({"text": np.array([b"a"], object), "tokens": np.ones((1, 1), np.int64)}, InputNameInvalid),
        ({"tokens": np.ones((1, 1), np.int32)}, InputDatatypeInvalid),
        ({"tokens": np.ones((1, 1))}, InputDatatypeInvalid),
        ({"tokens": np.ones(3, np.int64)}, InputShapeInvalid),
        ({"tokens": np.ones((0, 3), np.int64)}, InputShapeInvalid),
        ({"tokens": np.ones((3, 0), np.int64)}, InputShapeInvalid),
        ({"tokens": np.full((1, 3), 40, np.int64)}, InputValueInvalid),
        ({"tokens": np.full((1, 3), -1, np.int64)}, InputValueInvalid),
        ({"text": np.array([1, 2], np.int64)}, InputDatatypeInvalid),
        ({"text": np.array([b"a", 1], object)}, InputDatatypeInvalid),
        ({"text": np.array([], object)}, InputShapeInvalid),
        ({"text": np.array([[b"a", b"b"]], object)}, InputShapeInvalid),
        ({"text": np.array(b"a", object)}, InputShapeInvalid),
        ({"text": np.array([b"a", b""], object)}, TextEmpty),
        ({"text": np.array([b"\xff"], object)}, TextNotUnicode),
    ],
)
def test_wrong_inputs_are_refused_with_a_reason(
    preparer: InputPreparer, inputs: dict[str, Any], failure: type[Exception]
) -> None:
    with pytest.raises(failure):
        preparer.prepare(inputs)


def test_no_texts_are_refused(preparer: InputPreparer) -> None:
    with pytest.raises(InputShapeInvalid):
        preparer.prepare_texts([])

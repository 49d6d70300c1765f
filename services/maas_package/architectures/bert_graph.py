"""BERT's encoder as an ONNX graph that computes nothing for padding; bert.py says what the network is.

Shapes: N texts of a batch, T tokens of the longest, M tokens of all texts without padding, H hidden_size, A the heads'
sizes together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

if TYPE_CHECKING:
    import onnx

    from maas_package.architectures.bert import BertConfig, BertEncoder, BertLayer

_OPERATOR_SET, _IR_VERSION = 20, 10  # the first with Gelu


class BertGraph:
    """The graph being written: `encode`, then `pool`, then whatever a model has on top, then `finish`.

    Made for batches of texts of different lengths: of 16 reviews, 44 % of the places are padding, of 32, 48 %. A row of
    the states is one word of one text, and only attention sees texts: it gathers a head's row for each place, where
    padding repeats its text's first word (`unseen` hides it), and gathers the words' rows back. So nothing is
    transposed either. Where the first word's state is all that is asked for, the last layer computes no other.

    Measured against torch's export on all-MiniLM-L6-v2: see docs/decisions/0018-integers.md.
    """

    def __init__(self, encoder: BertEncoder, config: BertConfig) -> None:
        self._encoder = encoder
        self._config = config
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, NDArray[np.generic]] = {}
        self._indices: dict[int, tuple[list[str], str]] = {}

    def add(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output, called as the node; return it."""
        from onnx import helper

        self._nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: object, dtype: type[np.generic] = np.int64) -> str:
        """Return the name of a constant, which is added once."""
        self._weights.setdefault(name, np.ascontiguousarray(np.asarray(value, dtype)))
        return name

    def linear(self, states: str, layer: nn.Module, name: str, outputs: slice = slice(None), part: str = "") -> str:
        """states · weight^T + bias, of the chosen outputs; `part` tells their node from others of the layer.

        A layer of a stated rank (factored.py) is two, one behind the other.
        """
        if isinstance(layer, nn.Sequential):
            first, layer = layer
            assert isinstance(first, nn.Linear)
            thin = self.constant(f"{name}.first_weight", _array(first.weight).T, np.float32)
            states = self.add("MatMul", [states, thin], f"{name}.first{part}")
        assert isinstance(layer, nn.Linear)
        weight = self.constant(f"{name}.weight{part}", _array(layer.weight)[outputs].T, np.float32)
        bias = self.constant(f"{name}.bias{part}", _array(layer.bias)[outputs], np.float32)
        return self.add("Add", [self.add("MatMul", [states, weight], f"{name}{part}"), bias], f"{name}{part}.biased")

    def activated(self, states: str, activation: str, name: str) -> str:
        """Apply a function of bert.py's table."""
        match activation:
            case "gelu" | "gelu_tanh":
                approximate = "tanh" if activation == "gelu_tanh" else "none"
                return self.add("Gelu", [states], name, approximate=approximate)
            case "relu":
                return self.add("Relu", [states], name)
            case "tanh":
                return self.add("Tanh", [states], name)
        raise ValueError(f"no activation {activation!r}")

    def encode(self, tokens: str, *, first_only: bool) -> str:
        """`tokens`: int64 [N, T]; returns the states float32 [M, H], or [N, H] of the first words."""
        self._place(tokens, self._config.padding_id)
        embedded = self.add(
            "Add",
            [
                self.add("Gather", [self._weight("encoder.word"), "words"], "encoder.word"),
                self.add("Gather", [self._weight("encoder.position"), "positions"], "encoder.position"),
            ],
            "embedded",
        )
        states = self._normed(embedded, "encoder.norm")
        for index, layer in enumerate(cast("Sequence[BertLayer]", self._encoder.layers)):
            is_last = index == len(self._encoder.layers) - 1
            states = self._layer(states, layer, f"encoder.layers.{index}", first_only=first_only and is_last)
        if first_only and not len(self._encoder.layers):
            states = self.add("Gather", [states, "first_places"], "first_states")
        return states

    def mean(self, states: str) -> str:
        """`states`: float32 [M, H]; returns the mean of each text's words: float32 [N, H]."""
        seen = self.add(
            "Unsqueeze", [self.add("Cast", ["is_word"], "seen", to=1), self.constant("minus_one", [-1])], "seen_3d"
        )
        padded = self.add("Mul", [self.add("Gather", [states, "places"], "padded_states"), seen], "seen_states")
        total = self.add("ReduceSum", [padded, self.constant("axis_1", [1])], "total", keepdims=0)
        count = self.add("ReduceSum", [seen, "axis_1"], "word_count", keepdims=0)
        least = self.add("Max", [count, self.constant("one_word", 1.0, np.float32)], "least_count")
        return self.add("Div", [total, least], "mean")

    def normalized(self, vectors: str, least_length: float) -> str:
        """Divide each vector by its length, or by `least_length` if that is more."""
        length = self.add("ReduceL2", [vectors, self.constant("axis_1", [1])], "length", keepdims=1)
        least = self.constant("least_length", least_length, np.float32)
        return self.add("Div", [vectors, self.add("Max", [length, least], "length_or_least")], "normalized")

    def rename_last(self, output: str, name: str) -> None:
        """Call the output of the node that was added last otherwise."""
        assert list(self._nodes[-1].output) == [output]
        self._nodes[-1].output[0] = name

    def finish(self, name: str, tokens: str, output: str, size: int) -> onnx.ModelProto:
        """Return the model of one input and one output float32 [N, size]."""
        from onnx import TensorProto, helper, numpy_helper

        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(tokens, TensorProto.INT64, ["rows", "tokens"])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows", size])],
            [numpy_helper.from_array(value, key) for key, value in self._weights.items()],
        )
        opset = helper.make_opsetid("", _OPERATOR_SET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)

    def _place(self, tokens: str, padding_id: int) -> None:
        """Say where each word's row is: `places` [N, T] in the states, `kept` [M] in the batch."""
        self.add("Not", [self.add("Equal", [tokens, self.constant("padding_id", padding_id)], "is_padding")], "is_word")
        self.add("Shape", [tokens], "batch_shape")
        self.add("Gather", ["batch_shape", self.constant("one", 1)], "token_count")
        self.add("Range", [self.constant("zero", 0), "token_count", "one"], "token_range")
        # A text's first place is kept whatever is there: what has no words has an answer too, of its own.
        self.add("Or", ["is_word", self.add("Equal", ["token_range", "zero"], "is_first")], "is_kept")
        all_rows = self.constant("all_rows", [-1])
        flat = self.add("Reshape", [self.add("Cast", ["is_kept"], "kept_as_numbers", to=7), all_rows], "kept_flat")
        counted = self.add("CumSum", [flat, "zero"], "counted")
        place = self.add("Reshape", [self.add("Sub", [counted, "one"], "place_flat"), "batch_shape"], "place")
        self.add("Gather", [place, self.constant("first_column", [0])], "first_place", axis=1)
        self.add("Where", ["is_kept", place, "first_place"], "places")
        self.add("Reshape", ["first_place", all_rows], "first_places")
        self.add("Reshape", [self.add("NonZero", [flat], "kept_2d"), all_rows], "kept")
        self.add("Gather", [self.add("Reshape", [tokens, all_rows], "tokens_flat"), "kept"], "words")
        self.add("Mod", ["kept", "token_count"], "positions")
        hidden = float(np.finfo(np.float32).min / 2)
        unseen = self.add(
            "Where",
            ["is_word", self.constant("shown", 0.0, np.float32), self.constant("hidden", hidden, np.float32)],
            "unseen_2d",
        )
        self.add("Unsqueeze", [unseen, self.constant("axes_1_2", [1, 2])], "unseen")

    def _layer(self, states: str, layer: BertLayer, name: str, *, first_only: bool) -> str:
        asked = self.add("Gather", [states, "first_places"], f"{name}.first_states") if first_only else states
        if layer.heads:
            attended = self._attended(states, asked, layer, name, first_only=first_only)
            output = self.linear(attended, layer.attention_output, f"{name}.attention_output")
            asked = self.add("Add", [asked, output], f"{name}.attention_sum")
        asked = self._normed(asked, f"{name}.attention_norm")
        if layer.inner_size:
            inner = self.linear(asked, layer.inner, f"{name}.inner")
            activated = self.activated(inner, self._config.activation, f"{name}.activation")
            output = self.linear(activated, layer.inner_output, f"{name}.inner_output")
            asked = self.add("Add", [asked, output], f"{name}.output_sum")
        return self._normed(asked, f"{name}.output_norm")

    def _attended(self, states: str, asked: str, layer: BertLayer, name: str, *, first_only: bool) -> str:
        """Return what the heads make of each row that is asked for: float32 [M, A] or [N, A]."""
        heads, size = layer.heads, layer.head_size
        width = heads * size
        dense = f"{name}.query_key_value"
        row = self.constant(f"row_of_{size}", [-1, size])
        if first_only:
            query_rows = self.linear(asked, layer.query_key_value, dense, slice(0, width), ".query")
            query = self.add(
                "Reshape",
                [query_rows, self.constant(f"one_by_head_{heads}_{size}", [-1, heads, 1, size])],
                f"{name}.query",
            )
            pair = self.linear(states, layer.query_key_value, dense, slice(width, None), ".key_value")
            head_rows = self.add("Reshape", [pair, row], f"{name}.head_rows")
            (key_index, value_index), _ = self._head_indices(heads, 2)
        else:
            triple = self.linear(states, layer.query_key_value, dense)
            head_rows = self.add("Reshape", [triple, row], f"{name}.head_rows")
            (query_index, key_index, value_index), back = self._head_indices(heads, 3)
            query = self.add("Gather", [head_rows, query_index], f"{name}.query")
        key = self.add("Gather", [head_rows, key_index], f"{name}.key")
        value = self.add("Gather", [head_rows, value_index], f"{name}.value")
        turned = self.add("Transpose", [key], f"{name}.key_turned", perm=[0, 1, 3, 2])
        scale = self.constant(f"scale_{size}", 1 / math.sqrt(size), np.float32)
        products = self.add("Mul", [self.add("MatMul", [query, turned], f"{name}.products"), scale], f"{name}.scores")
        shown = self.add("Add", [products, "unseen"], f"{name}.shown_scores")
        shares = self.add("Softmax", [shown], f"{name}.shares", axis=-1)
        seen = self.add("MatMul", [shares, value], f"{name}.seen")
        if not first_only:
            seen = self.add(
                "Gather", [self.add("Reshape", [seen, row], f"{name}.seen_rows"), back], f"{name}.seen_back"
            )
        return self.add("Reshape", [seen, self.constant(f"row_of_{width}", [-1, width])], f"{name}.attended")

    def _head_indices(self, heads: int, parts: int) -> tuple[list[str], str]:
        """Return the rows of each part for each place, int64 [N, heads, T], and those of each word's heads, [M, heads].

        A word's rows are its parts' (query, key, value), each with its heads', one after the other.
        """
        key = heads * 4 + parts
        if key in self._indices:
            return self._indices[key]
        name = f"of_{heads}_heads_in_{parts}"
        by_head = self.add("Unsqueeze", ["places", self.constant("axis_1", [1])], f"places_{name}")
        begin = self.add("Mul", [by_head, self.constant(f"rows_{name}", heads * parts)], f"begin_{name}")
        indices = [
            self.add(
                "Add",
                [
                    begin,
                    self.constant(
                        f"part_{part}_{name}", np.arange(part * heads, (part + 1) * heads).reshape(1, heads, 1)
                    ),
                ],
                f"index_{part}_{name}",
            )
            for part in range(parts)
        ]
        # Back: the row of head h of the word at place t of text n is (n * heads + h) * T + t.
        text = self.add("Div", ["kept", "token_count"], f"text_{name}")
        first = self.add("Mul", [text, self.constant(f"heads_{name}", heads)], f"first_{name}")
        head = self.add(
            "Add",
            [
                self.add("Unsqueeze", [first, "minus_one_axis"], f"first_2d_{name}"),
                self.constant(f"range_{name}", np.arange(heads)),
            ],
            f"head_{name}",
        )
        positions = self.add("Unsqueeze", ["positions", "minus_one_axis"], f"positions_2d_{name}")
        back = self.add("Add", [self.add("Mul", [head, "token_count"], f"row_{name}"), positions], f"back_{name}")
        self.constant("minus_one_axis", [-1])
        self._indices[key] = indices, back
        return self._indices[key]

    def _normed(self, states: str, name: str) -> str:
        norm = self._encoder.get_submodule(name.removeprefix("encoder."))
        assert isinstance(norm, nn.LayerNorm)
        weight = self.constant(f"{name}.weight", _array(norm.weight), np.float32)
        bias = self.constant(f"{name}.bias", _array(norm.bias), np.float32)
        return self.add("LayerNormalization", [states, weight, bias], name, axis=-1, epsilon=norm.eps)

    def _weight(self, name: str) -> str:
        part = self._encoder.get_submodule(name.removeprefix("encoder."))
        assert isinstance(part, nn.Embedding)
        return self.constant(f"{name}.weight", _array(part.weight), np.float32)


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().cpu().float().numpy()
    return array

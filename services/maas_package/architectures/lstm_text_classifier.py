"""The seed's text classifier: embedding, one LSTM, a linear layer.

Shapes: N texts of a batch, T tokens, E embedding_size, H hidden_size, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maas_package.architectures import ArchitectureConfigInvalid
from maas_package.manifest import JsonObject, TensorSpec

if TYPE_CHECKING:
    import onnx

PADDING_ID = 0


@dataclass(frozen=True, slots=True)
class LstmTextClassifierConfig:
    """The sizes of the layers, and the shares that training drops."""

    vocabulary_size: int = 10_000
    embedding_size: int = 100
    hidden_size: int = 256
    classes: int = 2
    dropout: float = 0.5


class LstmTextClassifier(nn.Module):
    """Word ids to logits; a row's answer is taken at its last real token, so padding never changes it."""

    def __init__(self, config: LstmTextClassifierConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_size, padding_idx=PADDING_ID)
        self.lstm = nn.LSTM(config.embedding_size, config.hidden_size, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.hidden_size, config.classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens`: int64 [N, T], right-padded with PADDING_ID; returns logits: float32 [N, C]."""
        embedded = self.dropout(self.embedding(tokens))
        states, _ = self.lstm(embedded)
        last = (tokens != PADDING_ID).sum(dim=1).clamp(min=1) - 1
        last_states = states.gather(1, last.view(-1, 1, 1).expand(-1, 1, states.shape[2])).squeeze(1)
        logits: Tensor = self.output(self.dropout(last_states))
        return logits


class LstmTextClassifierArchitecture:
    """How LstmTextClassifier is configured and built."""

    name = "lstm-text-classifier"

    @property
    def default_config(self) -> JsonObject:
        """The seed's sizes."""
        return asdict(LstmTextClassifierConfig())

    def parse_config(self, config: Mapping[str, object]) -> JsonObject:
        """Return the whole configuration, defaults filled in. Raises ArchitectureConfigInvalid."""
        return asdict(_parse(config))

    def build(self, config: Mapping[str, object]) -> nn.Module:
        """Return a fresh module; torch's global generator decides its weights."""
        return LstmTextClassifier(_parse(config))

    def inputs(self, config: Mapping[str, object]) -> tuple[TensorSpec, ...]:
        """One tensor of word ids."""
        _parse(config)
        return (TensorSpec("tokens", "INT64", (-1, -1)),)

    def outputs(self, config: Mapping[str, object]) -> tuple[TensorSpec, ...]:
        """One tensor of logits."""
        return (TensorSpec("logits", "FP32", (-1, _parse(config).classes)),)

    def onnx_model(self, module: nn.Module, config: Mapping[str, object]) -> onnx.ModelProto:
        """Write the graph by hand, since torch's exporters know neither lengths nor constant weights here.

        Measured with torch 2.13.0 and onnxruntime 1.32.0, one thread, seed's sizes, one row of 20 tokens and 32 rows
        of 1 to 24 tokens (milliseconds a call, float32; int8 after quantize_dynamic):

                                    nodes   1 row       32 rows     int8 file
            dynamo=True             43      0.31 0.31   6.0  6.0    2.51 MB: the LSTM's weights are cut and joined
                                                                    at run time, so it stays float32
            dynamo=False            52      0.31 0.12   5.9  2.2    1.38 MB; deprecated, with an If for the batch
            this graph              10      0.30 0.10   5.0  1.65   1.38 MB; the LSTM gets each row's length and
                                                                    stops there
        """
        # Here, since a process that only runs the module needs no onnx.
        from onnx import TensorProto, helper, numpy_helper

        del config
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}
        hidden_size = weights["lstm.weight_hh_l0"].shape[1]
        constants = {
            "padding": np.array(PADDING_ID, np.int64),
            "time_axis": np.array([1], np.int64),
            "one": np.array(1, np.int32),
            "direction_axis": np.array([0], np.int64),
            "embedding": weights["embedding.weight"],
            "lstm_input": _onnx_gates(weights["lstm.weight_ih_l0"]),
            "lstm_recurrent": _onnx_gates(weights["lstm.weight_hh_l0"]),
            "lstm_bias": np.concatenate(
                [_onnx_gates(weights["lstm.bias_ih_l0"]), _onnx_gates(weights["lstm.bias_hh_l0"])], axis=1
            ),
            "output_weight": weights["output.weight"],
            "output_bias": weights["output.bias"],
        }
        nodes = [
            helper.make_node("Equal", ["tokens", "padding"], ["is_padding"]),
            helper.make_node("Not", ["is_padding"], ["is_word"]),
            helper.make_node("Cast", ["is_word"], ["words"], to=TensorProto.INT32),
            helper.make_node("ReduceSum", ["words", "time_axis"], ["word_count"], keepdims=0),
            helper.make_node("Max", ["word_count", "one"], ["lengths"]),
            # ONNX's LSTM has time first; ids are turned rather than the vectors that they stand for.
            helper.make_node("Transpose", ["tokens"], ["tokens_by_time"], perm=[1, 0]),
            helper.make_node("Gather", ["embedding", "tokens_by_time"], ["embedded"]),
            helper.make_node(
                "LSTM",
                ["embedded", "lstm_input", "lstm_recurrent", "lstm_bias", "lengths"],
                ["", "last_state_by_direction"],
                hidden_size=hidden_size,
            ),
            helper.make_node("Squeeze", ["last_state_by_direction", "direction_axis"], ["last_state"]),
            helper.make_node("Gemm", ["last_state", "output_weight", "output_bias"], ["logits"], transB=1),
        ]
        classes = weights["output.bias"].shape[0]
        graph = helper.make_graph(
            nodes,
            self.name,
            [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["rows", "time"])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", classes])],
            [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
        )
        # Operator set 17 with IR 8: what onnxruntime's dynamic quantization and older servers also read.
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def example_inputs(self, config: Mapping[str, object], rows: int, seed: int) -> dict[str, Tensor]:
        """Return random word ids [rows, 4 to 40]; all but the first row end in padding."""
        generator = torch.Generator().manual_seed(seed)
        time = int(torch.randint(4, 41, (1,), generator=generator))
        tokens = torch.randint(1, _parse(config).vocabulary_size, (rows, time), generator=generator)
        lengths = torch.randint(1, time + 1, (rows, 1), generator=generator)
        lengths[0] = time
        return {"tokens": torch.where(torch.arange(time) < lengths, tokens, PADDING_ID)}


ARCHITECTURE = LstmTextClassifierArchitecture()


def _onnx_gates(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return torch's gates (input, forget, cell, output) in ONNX's order (input, output, forget, cell): [1, 4H, …]."""
    gate_input, gate_forget, gate_cell, gate_output = np.split(weight, 4)
    return np.concatenate([gate_input, gate_output, gate_forget, gate_cell])[np.newaxis]


def _parse(config: Mapping[str, object]) -> LstmTextClassifierConfig:
    known = {field.name for field in fields(LstmTextClassifierConfig)}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ArchitectureConfigInvalid(f"lstm-text-classifier has no setting {', '.join(unknown)}")
    parsed = LstmTextClassifierConfig(**config)  # type: ignore[arg-type]  # checked right below
    bounds = {"vocabulary_size": (2, 1_000_000), "embedding_size": (1, 4096), "hidden_size": (1, 8192)}
    for name, (least, most) in (bounds | {"classes": (2, 10_000)}).items():
        value = getattr(parsed, name)
        if type(value) is not int or not least <= value <= most:
            raise ArchitectureConfigInvalid(f"{name} is a whole number from {least} to {most}, not {value!r}")
    if type(parsed.dropout) not in (int, float) or not 0 <= parsed.dropout < 1:
        raise ArchitectureConfigInvalid(f"dropout is at least 0 and less than 1, not {parsed.dropout!r}")
    return parsed

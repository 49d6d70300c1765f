"""Intel Neural Compressor's accuracy-aware tuning of an ONNX file; runs in that peer's own environment.

    python inc_tune.py MODEL.onnx INPUT ROWS.npz OUT.onnx MAX_LOSS SECONDS static|dynamic

ROWS.npz has `calibration_ids`, `ids` (rows behind one another), their lengths, and `labels` of `ids`. Prints one JSON
object: what came out, after how many trials.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from neural_compressor import PostTrainingQuantConfig, quantization
from neural_compressor.config import AccuracyCriterion, TuningCriterion

BATCH_ROWS = 32


def main() -> None:
    """Tune, and write the first model that loses no more than it may: the search ends there."""
    model, name, rows, out, max_loss, seconds, approach = sys.argv[1:]
    data = np.load(rows)
    calibration, ids = _split(data, "calibration"), _split(data, "")
    labels = data["labels"]
    seen: list[float] = []

    def accuracy(candidate: object) -> float:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            candidate.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        order, right = sorted(range(len(ids)), key=lambda row: len(ids[row])), 0
        for begin in range(0, len(order), BATCH_ROWS):
            chosen = order[begin : begin + BATCH_ROWS]
            logits = session.run(None, {name: _padded([ids[row] for row in chosen])})[0]
            right += int((logits.argmax(1) == labels[chosen]).sum())
        seen.append(right / len(ids))
        return seen[-1]

    network = onnx.load(model)
    # torch's exporter notes the shapes of weights too, which the tool transposes and does not note anew.
    del network.graph.value_info[:]
    config = PostTrainingQuantConfig(
        approach=approach,
        # The form of its own choice, operators on integers, fails on this graph: an Add of int8 and uint8.
        quant_format="QDQ" if approach == "static" else "default",
        calibration_sampling_size=[len(calibration)],
        accuracy_criterion=AccuracyCriterion(criterion="absolute", tolerable_loss=float(max_loss)),
        tuning_criterion=TuningCriterion(timeout=int(float(seconds)), max_trials=100),
    )
    begun = time.monotonic()
    found = quantization.fit(network, config, calib_dataloader=_Loader(calibration, name), eval_func=accuracy)
    if found is not None:
        found.save(out)
    result = {"found": Path(out).exists(), "trials": max(0, len(seen) - 1), "accuracies": seen}
    print(json.dumps(result | {"seconds": time.monotonic() - begun}))


class _Loader:
    """Gives one row at a time, as the library's own loaders do: inputs and a label that it does not look at."""

    batch_size = 1

    def __init__(self, rows: list[np.ndarray], name: str) -> None:
        self._rows, self._name = rows, name

    def __iter__(self) -> object:
        for row in self._rows:
            yield {self._name: row[None]}, 0

    def __len__(self) -> int:
        return len(self._rows)


def _split(data: object, kind: str) -> list[np.ndarray]:
    prefix = f"{kind}_" if kind else ""
    ends = np.cumsum(data[f"{prefix}lengths"])
    return np.split(data[f"{prefix}ids"], ends[:-1])


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = row
    return tokens


if __name__ == "__main__":
    main()

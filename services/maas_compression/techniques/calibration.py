"""What activations a model has on calibration rows: their ranges, and the size of each channel."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from itertools import islice

import numpy as np
import onnx
from numpy.typing import NDArray

from maas_compression.materials import Materials
from maas_engine.engine import open_engine
from maas_engine.examples import Examples
from maas_engine.predictor import open_predictor
from maas_package.package import Package
from maas_package.tensors import Array

_BATCH_ROWS = 16
_BINS = 2048
_LEVELS = 256

Batches = Sequence[Mapping[str, Array]]
Range = tuple[float, float]


def calibration_batches(source: Package, rows: int, materials: Materials) -> Batches:
    """Return what the graph gets for so many rows: texts to learn from, or made-up tensors for a model of those.

    The texts are spread evenly over the split. Raises TrainingDataMissing.
    """
    predictor = open_predictor(source, threads=materials.threads)
    try:
        if source.manifest.text is None:
            examples = Examples(predictor)
            prepared = [examples.batch(_BATCH_ROWS, seed) for seed in range(max(1, rows // _BATCH_ROWS))]
        else:
            split = materials.texts or materials.require_train()
            texts = list(islice(split.texts(), 0, None, max(1, len(split) // rows)))[:rows]
            prepared = [
                predictor.preparer.prepare_texts(texts[first : first + _BATCH_ROWS])
                for first in range(0, len(texts), _BATCH_ROWS)
            ]
        steps, servable = predictor.steps, source.manifest.servables[0]
    finally:
        predictor.close()
    if not source.manifest.steps:
        return prepared
    # A step stands between: the graph gets what it makes.
    engine = open_engine(source, servable, materials.threads)
    seen: list[Mapping[str, Array]] = []

    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        seen.append(inputs)
        return engine.run(inputs)

    try:
        for batch in prepared:
            steps.run(batch, run)
    finally:
        engine.close()
    return seen


def activation_ranges(
    model: onnx.ModelProto, names: Collection[str], batches: Batches, *, method: str, percentile: float
) -> dict[str, Range]:
    """Return the least and the largest value that integers are to stand for, 0 among them, of each tensor.

    `minmax`: all that were seen. `percentile`: without (100 - percentile) / 2 % of them at either end. `entropy`: the
    symmetric cut whose 256 levels lose least information about the values, by the Kullback-Leibler divergence
    (Migacz, 8-bit Inference with TensorRT, 2017). The last two by onnxruntime's collector, over 2,048 bins; a batch at
    a time, so that memory holds the activations of one.
    """
    ranges: dict[str, Range] = {}
    if method == "minmax":
        for values in activations(model, names, batches):
            for name, value in values.items():
                low, high = ranges.get(name, (0.0, 0.0))
                ranges[name] = min(low, float(value.min(initial=0))), max(high, float(value.max(initial=0)))
        return ranges
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        method=method,
        symmetric=False,
        num_bins=_BINS,
        num_quantized_bins=_LEVELS,
        percentile=percentile,
        scenario="same",
    )
    with redirect_stdout(StringIO()):  # it prints what it does
        for values in activations(model, names, batches):
            collector.collect({name: [value] for name, value in values.items() if value.size})
        found = collector.compute_collection_result() if names else {}
    return {name: (min(0.0, float(low)), max(0.0, float(high))) for name, (low, high, *_) in found.items()}


def channel_sizes(model: onnx.ModelProto, names: Collection[str], batches: Batches) -> dict[str, NDArray[np.float32]]:
    """Return the largest absolute value of each channel, the last axis, of each tensor."""
    sizes: dict[str, NDArray[np.float32]] = {}
    for values in activations(model, names, batches):
        for name, value in values.items():
            largest = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0, initial=0)
            sizes[name] = np.maximum(sizes[name], largest) if name in sizes else largest
    return sizes


def activations(model: onnx.ModelProto, names: Collection[str], batches: Batches) -> Iterator[dict[str, Array]]:
    """Yield the tensors of these names that the graph computes for each batch."""
    import onnxruntime

    wanted = sorted(names)
    if not wanted:
        return
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    outputs = {value.name for value in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for batch in batches:
        yield dict(zip(wanted, session.run(wanted, dict(batch)), strict=True))

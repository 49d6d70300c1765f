"""The servables of a package: what other engines can run it, each checked, and measured on this hardware."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from maas_engine.engine import BF16, can_run, open_engine
from maas_engine.measure import MeasurementFailed, measure
from maas_package.architectures import load_architecture
from maas_package.manifest import ArchitectureRef, Servable
from maas_package.package import Package, write_package
from maas_package.tensors import Array
from maas_runtime.failures import Failure

logger = logging.getLogger(__name__)

FP32_TOLERANCE = 1e-4
"""float32 sums in another order."""
BF16_TOLERANCE = 0.03
"""bfloat16 keeps 8 bits of a number."""

_CHECK_ROWS = (1, 8, 9, 10, 11)
_MEASURE_SECONDS = 0.5
_MEASURE_ROUNDS = 10
_CALLS_PER_ROUND = 10

Log = Callable[[str], None]
Batches = Sequence[Mapping[str, Array]]


def publish_servables(package: Package, texts: Sequence[str] = (), log: Log = logger.info) -> Package:
    """Write the package anew with a servable for each engine that can run it here, all of them measured in turn.

    A servable that differs too much from the trainable form, or does not run, is left out, and `log` is told why;
    those that the package has are kept. Without a trainable form, or where that is served already (published before,
    or compiled for torch), they are only measured. Takes about a second for each, and what loading its library takes
    twice.
    """
    manifest = package.manifest
    servables = manifest.servables
    is_published = any(one.engine == "torch" for one in servables)
    if manifest.architecture is not None and manifest.weights is not None and not is_published:
        onnx = servables[0]
        trainable = Servable("torch", onnx.precision, manifest.weights.path, tolerance=0.0, max_difference=0.0)
        candidates = (replace(trainable, precision=BF16), *openvino_candidates(onnx))
        batches = architecture_examples(manifest.architecture)
        servables += (trainable, *agreeing(package, candidates, trainable, batches, log))
    measured = with_measurements(package, servables, texts, log)
    return write_package(package.folder, replace(manifest, servables=measured, files=()))


def openvino_candidates(onnx: Servable) -> tuple[Servable, ...]:
    """Return what openvino could make of an ONNX file that onnxruntime runs."""
    return (Servable("openvino", onnx.precision, onnx.path), Servable("openvino", BF16, onnx.path))


def agreeing(
    package: Package, candidates: Sequence[Servable], reference: Servable, batches: Batches, log: Log
) -> Iterator[Servable]:
    """Yield the candidates whose outputs are within tolerance of the reference's, with what was measured of it.

    A tolerance is a share of the largest output, or of 1 if that is more. `log` is told of each candidate left out.
    """
    expected = _answers(package, reference, batches)
    largest = max((_size(tensor) for answer in expected for tensor in answer.values()), default=0.0)
    for candidate in candidates:
        name = f"{candidate.engine} {candidate.precision}"
        if not can_run(candidate):
            log(f"{name} is left out: this host cannot run it")
            continue
        try:
            difference = largest_difference(expected, _answers(package, candidate, batches))
        except Failure as failure:
            log(f"{name} is left out: {failure.message}")
            continue
        tolerance = (BF16_TOLERANCE if candidate.precision == BF16 else FP32_TOLERANCE) * max(largest, 1.0)
        if difference <= tolerance:  # which NaN is not
            yield replace(candidate, tolerance=tolerance, max_difference=difference)
        else:
            log(f"{name} is left out: it differs by {difference:.2g}, more than {tolerance:.2g}")


def with_measurements(
    package: Package, servables: Sequence[Servable], texts: Sequence[str], log: Log
) -> tuple[Servable, ...]:
    """Return the servables with what this hardware makes of them, measured in turn; those it cannot run as they are."""
    here = [servable for servable in servables if can_run(servable)]
    try:
        measurements = measure(
            [(package, servable) for servable in here],
            texts,
            rounds=_MEASURE_ROUNDS,
            calls_per_round=_CALLS_PER_ROUND,
            seconds=_MEASURE_SECONDS,
        )
    except MeasurementFailed as failure:
        log(f"nothing is measured: {failure.message}")
        return tuple(servables)
    for servable, one in zip(here, measurements, strict=True):
        log(
            f"{servable.engine} {servable.precision}: {one.rows_per_second:,.0f} rows/s, "
            f"{one.p50_seconds * 1000:.2f} ms for one row, {one.peak_memory_bytes / 1e6:.0f} MB"
        )
    measured = {id(servable): one for servable, one in zip(here, measurements, strict=True)}
    return tuple(replace(one, measurements=(measured[id(one)],)) if id(one) in measured else one for one in servables)


def architecture_examples(reference: ArchitectureRef) -> Batches:
    """Return one row, and batches with padding."""
    architecture = load_architecture(reference.name)
    return [
        {name: tensor.numpy() for name, tensor in architecture.example_inputs(reference.config, rows, seed).items()}
        for seed, rows in enumerate(_CHECK_ROWS)
    ]


def _answers(package: Package, servable: Servable, batches: Batches) -> Batches:
    engine = open_engine(package, servable)
    try:
        return [engine.run(batch) for batch in batches]
    finally:
        engine.close()


def _size(tensor: Array) -> float:
    return float(np.abs(tensor.astype(np.float64)).max()) if tensor.dtype.kind == "f" else 0.0


def largest_difference(expected: Batches, actual: Batches) -> float:
    """Return how far any output of any batch is from its counterpart; infinity for another shape, NaN for NaN."""
    differences = [
        _difference(tensor, other[name])
        for one, other in zip(expected, actual, strict=True)
        for name, tensor in one.items()
    ]
    return float(np.max(differences))


def _difference(one: Array, other: Array) -> float:
    if one.shape != other.shape:
        return float("inf")
    if one.dtype.kind in "OSU":
        return 0.0 if (one == other).all() else float("inf")
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max(initial=0.0))

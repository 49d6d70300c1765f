"""The servables of a package, made where its trainable form is: other engines for the same model, each checked and
measured on this hardware.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from maas_engine.engine import BF16, can_run, open_engine
from maas_engine.measure import MeasurementFailed, measure
from maas_package.architectures import load_architecture
from maas_package.manifest import Manifest, Servable
from maas_package.package import Package, write_package
from maas_package.tensors import Array
from maas_runtime.failures import InvalidInput

logger = logging.getLogger(__name__)

FP32_TOLERANCE = 1e-4
"""float32 sums in another order."""
BF16_SHARE = 0.03
"""bfloat16 keeps 8 bits of a number: an output may differ by this share of the largest, or by this, if that is more."""

_CHECK_ROWS = (1, 8, 9, 10, 11)
_MEASURE_SECONDS = 0.5
_MEASURE_ROUNDS = 10
_CALLS_PER_ROUND = 10

Log = Callable[[str], None]
Answers = Sequence[Mapping[str, Array]]


def publish_servables(package: Package, texts: Sequence[str] = (), log: Log = logger.info) -> Package:
    """Write the package anew with a servable for each engine that can run it here, all of them measured in turn.

    A servable that differs too much from the trainable form, or does not run, is left out, and `log` is told why;
    those that the package has are kept. Without a trainable form they are only measured. Takes about a second for
    each, and what loading its library takes twice.
    """
    servables = list(package.manifest.servables)
    for candidate, failure in _checked(package):
        if failure:
            log(f"{candidate.engine} {candidate.precision} is left out: {failure}")
        else:
            servables.append(candidate)
    measured = _measured(package, servables, texts, log)
    return write_package(package.folder, replace(package.manifest, servables=tuple(measured), files=()))


def _checked(package: Package) -> Iterator[tuple[Servable, str]]:
    """Yield each servable that the package could have besides, and why it is not to be taken."""
    trainable = _trainable_form(package.manifest)
    if trainable is None:
        return
    batches = _batches(package)
    expected = _answers(package, trainable, batches)
    yield replace(trainable, tolerance=0.0, max_difference=0.0), ""
    largest = max(float(np.abs(tensor).max()) for answer in expected for tensor in answer.values())
    tolerances = {BF16: BF16_SHARE * max(largest, 1.0)}
    for candidate in _candidates(package.manifest, trainable):
        tolerance = tolerances.get(candidate.precision, FP32_TOLERANCE)
        if not can_run(candidate):
            yield candidate, "this host cannot run it"
            continue
        try:
            difference = _largest_difference(expected, _answers(package, candidate, batches))
        except InvalidInput as error:
            yield candidate, error.message
            continue
        checked = replace(candidate, tolerance=tolerance, max_difference=difference)
        # NaN is not within a tolerance either.
        failure = "" if difference <= tolerance else f"it differs by {difference:.2g}, more than {tolerance:.2g}"
        yield checked, failure


def _trainable_form(manifest: Manifest) -> Servable | None:
    if manifest.weights is None or manifest.architecture is None or not manifest.servables:
        return None
    servable = Servable("torch", manifest.servables[0].precision, manifest.weights.path)
    return servable if can_run(servable) else None


def _candidates(manifest: Manifest, trainable: Servable) -> tuple[Servable, ...]:
    onnx = manifest.servables[0]
    return (
        replace(trainable, precision=BF16),
        Servable("openvino", onnx.precision, onnx.path),
        Servable("openvino", BF16, onnx.path),
    )


def _batches(package: Package) -> list[dict[str, Array]]:
    """Return the architecture's examples: one row, and batches with padding."""
    reference = package.manifest.architecture
    assert reference is not None
    architecture = load_architecture(reference.name)
    return [
        {name: tensor.numpy() for name, tensor in architecture.example_inputs(reference.config, rows, seed).items()}
        for seed, rows in enumerate(_CHECK_ROWS)
    ]


def _answers(package: Package, servable: Servable, batches: Sequence[Mapping[str, Array]]) -> Answers:
    engine = open_engine(package, servable)
    try:
        return [engine.run(batch) for batch in batches]
    finally:
        engine.close()


def _largest_difference(expected: Answers, actual: Answers) -> float:
    differences = [
        np.abs(one[name].astype(np.float64) - other[name].astype(np.float64)).max()
        for one, other in zip(expected, actual, strict=True)
        for name in one
    ]
    return float(np.max(differences))


def _measured(package: Package, servables: Sequence[Servable], texts: Sequence[str], log: Log) -> list[Servable]:
    candidates = [(package, servable) for servable in servables if can_run(servable)]
    try:
        measurements = measure(
            candidates, texts, rounds=_MEASURE_ROUNDS, calls_per_round=_CALLS_PER_ROUND, seconds=_MEASURE_SECONDS
        )
    except MeasurementFailed as error:
        log(f"nothing is measured: {error.message}")
        return list(servables)
    found = {id(servable): one for (_, servable), one in zip(candidates, measurements, strict=True)}
    for _, servable in candidates:
        one = found[id(servable)]
        log(
            f"{servable.engine} {servable.precision}: {one.rows_per_second:,.0f} rows/s, "
            f"{one.p50_seconds * 1000:.2f} ms for one, {one.peak_memory_bytes / 1e6:.0f} MB"
        )
    return [
        replace(servable, measurements=(found[id(servable)],)) if id(servable) in found else servable
        for servable in servables
    ]

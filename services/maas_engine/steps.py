"""Custom code before and after the engine: entry points of the group `maas.steps`, named by a package's manifest.

Steps run in the worker, never in the front. On the way in they run in the manifest's order, on the way out in the
reverse; the first takes what the manifest's inputs say, and what the first gives back is what its outputs say.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from maas_engine.engine import first_line
from maas_package.manifest import JsonObject, Manifest, StepRef
from maas_package.tensors import Array
from maas_runtime.failures import DataCorrupt, InvalidInput

ENTRY_POINT_GROUP = "maas.steps"


class StepUnknown(InvalidInput):
    """No installed distribution has a step of this name."""

    reason = "STEP_UNKNOWN"


class StepConfigInvalid(InvalidInput):
    """The step cannot be made with the configuration in the manifest."""

    reason = "STEP_CONFIG_INVALID"


class StepRefused(InvalidInput):
    """A step says that the rows are wrong."""

    reason = "STEP_REFUSED"


class StepFailed(DataCorrupt):
    """A step broke, or gave another number of rows than it got: not the caller's fault."""

    reason = "STEP_FAILED"


class Step(Protocol):
    """What is done to the rows of a batch around the engine. A row stays a row, and keeps its place.

    Either raises maas_runtime.failures.InvalidInput, or ValueError, to tell a caller what is wrong with the rows.
    """

    def before(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return what the engine, or the next step, takes."""

    def after(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return what the caller, or the step before this one, gets; `inputs` are those that `before` was given."""


@runtime_checkable
class GivesExamples(Protocol):
    """A first step that cannot take random tensors says what a worker is to be warmed up with."""

    def examples(self, rows: int) -> Mapping[str, Array]:
        """Return so many rows as a caller could send them."""


MakeStep: TypeAlias = Callable[[JsonObject], Step]
"""What an entry point names: makes a step from its configuration."""


class Steps:
    """The steps of one package."""

    def __init__(self, manifest: Manifest) -> None:
        self._steps = [(reference.name, _make_step(reference)) for reference in manifest.steps]
        self._joins_rows = manifest.joins_rows

    def run(
        self, inputs: Mapping[str, Array], compute: Callable[[Mapping[str, Array]], Mapping[str, Array]]
    ) -> Mapping[str, Array]:
        """Return what `compute` gives, with all steps around it. Raises StepRefused, StepFailed, and what it raises."""
        return self._run_from(0, inputs, compute)

    def examples(self, rows: int) -> Mapping[str, Array] | None:
        """Return rows to warm up with, or None where random ones do."""
        first = self._steps[0][1] if self._steps else None
        return first.examples(rows) if isinstance(first, GivesExamples) else None

    def _run_from(
        self,
        index: int,
        inputs: Mapping[str, Array],
        compute: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    ) -> Mapping[str, Array]:
        if index == len(self._steps):
            return compute(inputs)
        name, step = self._steps[index]
        taken = _call(name, lambda: step.before(inputs))
        self._check_rows(name, inputs, taken)
        outputs = self._run_from(index + 1, taken, compute)
        given = _call(name, lambda: step.after(inputs, outputs))
        self._check_rows(name, inputs, given)
        return given

    def _check_rows(self, name: str, inputs: Mapping[str, Array], tensors: Mapping[str, Array]) -> None:
        if not self._joins_rows:
            return
        rows = next(iter(inputs.values())).shape[0]
        for key, tensor in tensors.items():
            if tensor.shape[:1] != (rows,):
                raise StepFailed(
                    f"the step {name} made {key} of shape {list(tensor.shape)} from {rows} rows", name=name
                )


def _make_step(reference: StepRef) -> Step:
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if reference.name not in found:
        raise StepUnknown(
            f"no step {reference.name!r} is installed here; there are: {', '.join(sorted(found)) or 'none'}",
            name=reference.name,
        )
    try:
        make: MakeStep = found[reference.name].load()
    except Exception as error:
        raise StepUnknown(f"the step {reference.name} cannot be imported: {first_line(error)}") from error
    try:
        return make(reference.config)
    except Exception as error:
        raise StepConfigInvalid(f"the step {reference.name} cannot be made: {first_line(error)}") from error


def _call(name: str, function: Callable[[], Mapping[str, Array]]) -> Mapping[str, Array]:
    try:
        tensors = function()
    except InvalidInput:
        raise
    except ValueError as error:
        raise StepRefused(f"the step {name} cannot take these rows: {first_line(error)}") from error
    # Somebody else's code: whatever it raises fails these rows, and nothing else.
    except Exception as error:
        raise StepFailed(f"the step {name} failed: {type(error).__name__}: {first_line(error)}", name=name) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(one, np.ndarray) for one in tensors.values()):
        raise StepFailed(f"the step {name} gives something else than numpy arrays by name", name=name)
    return tensors

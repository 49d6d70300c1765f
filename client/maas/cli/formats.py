"""Models from elsewhere made into packages, by a program of its own: the client itself knows no engine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from maas.cli.progress import waiting
from maas.errors import InvalidInputError, MaasError

_MOST_SECONDS = 1800.0


def run_formats(doing: str, command: str, source: Path, *options: str) -> dict[str, Any]:
    """Run `python -m maas_formats command source options` and return what it says it made. Raises MaasError."""
    arguments = [sys.executable, "-m", "maas_formats", command, str(source), *options]
    try:
        with waiting(f"{doing} {source.name}"):
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=_MOST_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise MaasError(f"{doing} {source.name} took more than {_MOST_SECONDS:g} s", reason="FORMATS_FAILED") from None
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise MaasError(_why(doing, source, done), reason="FORMATS_FAILED") from None
    if "failure" in result:
        raise InvalidInputError(result["failure"], code="INVALID_ARGUMENT", reason=result["reason"])
    return result


def _why(doing: str, source: Path, done: "subprocess.CompletedProcess[str]") -> str:
    lines = done.stderr.strip().splitlines()
    if any("No module named" in line for line in lines):
        return f"{doing} a model needs more on this machine ({lines[-1]}): pip install 'maas[formats]'"
    return f"{doing} {source.name} ended with status {done.returncode}: {lines[-1][:300] if lines else 'no message'}"

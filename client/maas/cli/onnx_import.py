"""An ONNX file made into a package, by the engine's own program: the client itself knows no engine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from maas.cli.progress import waiting
from maas.errors import InvalidInputError, MaasError

_MOST_SECONDS = 1800.0


def package_of(
    file: Path, folder: Path, tokenizer: Path | None, *, text_feeds: str, max_tokens: int, labels: str
) -> dict[str, Any]:
    """Make the package in `folder` and return what it takes, gives and is served by. Raises MaasError."""
    command = [sys.executable, "-m", "maas_engine.onnx_import", str(file), f"--out={folder}", f"--labels={labels}"]
    if tokenizer is not None:
        command += [f"--tokenizer={tokenizer}", f"--text-feeds={text_feeds}", f"--max-tokens={max_tokens}"]
    try:
        with waiting(f"checking and measuring {file.name}"):
            done = subprocess.run(command, capture_output=True, text=True, timeout=_MOST_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise MaasError(f"{file.name} was not imported within {_MOST_SECONDS:g} s", reason="IMPORT_FAILED") from None
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise MaasError(_why(file, done), reason="IMPORT_FAILED") from None
    if "failure" in result:
        raise InvalidInputError(result["failure"], code="INVALID_ARGUMENT", reason=result["reason"])
    return result


def _why(file: Path, done: "subprocess.CompletedProcess[str]") -> str:
    if "No module named 'maas_engine'" in done.stderr or "No module named maas_engine" in done.stderr:
        return "importing needs the engine on this machine: pip install 'maas[engine]' onnx"
    lines = done.stderr.strip().splitlines()
    return f"{file.name} could not be imported (status {done.returncode}): {lines[-1][:300] if lines else 'no message'}"

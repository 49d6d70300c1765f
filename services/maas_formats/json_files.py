"""JSON files of formats from elsewhere: bounded, and what is wrong with one is said in its format's own failure."""

import json
from pathlib import Path
from typing import Any

from maas_runtime.failures import InvalidInput


def read_json(folder: Path, name: str, expected: type[Any], most_bytes: int, invalid: type[InvalidInput]) -> Any:
    """Return the content of a file, a dict or a list as `expected`. Raises `invalid`."""
    location = folder / name
    try:
        if location.stat().st_size > most_bytes:
            raise invalid(f"{name} is larger than {most_bytes} bytes")
        value = json.loads(location.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise invalid(f"{name} cannot be read: {error}") from error
    if not isinstance(value, expected):
        raise invalid(f"{name} is no JSON {'object' if expected is dict else 'list'}")
    return value

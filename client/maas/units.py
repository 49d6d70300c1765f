"""Quantities as people write them: `6MB`, `2ms`, `15m`, `0.5%`."""

import math
import re

from maas.errors import InvalidInputError

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z%/]*)\s*", re.ASCII)
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SHARES = {"": 1.0, "%": 0.01}
_RATES = {"": 1.0, "/s": 1.0}
_MOST = 1e15


class QuantityInvalid(InvalidInputError):
    """A text is no quantity of its kind, or none that a limit can be."""

    def __init__(self, text: str, kind: str, example: str) -> None:
        super().__init__(f"{text[:50]!r} is no {kind}: write {example}", reason="QUANTITY_INVALID")


def parse_bytes(text: str) -> int:
    """Read a size of at least 1 byte; kB, MB and GB are powers of 1000, KiB, MiB and GiB of 1024."""
    size = _parse(text, _BYTES, "size", "6MB, 500kB or 6000000")
    if size < 1:
        raise QuantityInvalid(text, "size of at least 1 byte", "6MB, 500kB or 6000000")
    return int(size)


def parse_seconds(text: str) -> float:
    """Read a duration of more than 0, with its unit: us, ms, s, m (minutes) or h."""
    return _positive(text, _SECONDS, "duration", "2ms, 1.5s, 15m or 1h")


def parse_rate(text: str) -> float:
    """Read a number of rows a second, more than 0."""
    return _positive(text, _RATES, "number of rows a second", "500 or 500/s")


def parse_share(text: str) -> float:
    """Read a share from 0 to 1: `0.01` and `1%` are the same."""
    share = _parse(text, _SHARES, "share", "0.01 or 1%, which are one point")
    if share > 1:
        raise QuantityInvalid(text, "share from 0 to 1", "0.01 or 1%, which are one point")
    return share


def _positive(text: str, units: dict[str, float], kind: str, example: str) -> float:
    value = _parse(text, units, kind, example)
    if value <= 0:
        raise QuantityInvalid(text, f"{kind} of more than 0", example)
    return value


def _parse(text: str, units: "dict[str, float] | dict[str, int]", kind: str, example: str) -> float:
    found = _NUMBER.fullmatch(text)
    unit = None if found is None else units.get(found[2].lower())
    if found is None or unit is None:
        raise QuantityInvalid(text, kind, example)
    value = float(found[1]) * unit
    if not math.isfinite(value) or value > _MOST:
        raise QuantityInvalid(text, f"{kind} that can be kept", example)
    return value

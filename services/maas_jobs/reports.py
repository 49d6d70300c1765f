"""What a step's process says of its work: JSON lines on its standard output, read by the service."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from maas_jobs.job import MAX_LOG_CHARACTERS, JobError, JsonObject


@dataclass(frozen=True, slots=True)
class Progress:
    """The finished share of the step, 0 to 1, and what is being done."""

    share: float
    phase: str


@dataclass(frozen=True, slots=True)
class Metrics:
    """The newest values of what the step measures."""

    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Log:
    """A line for people."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The step's last word: what it made."""

    result: JsonObject


@dataclass(frozen=True, slots=True)
class Failed:
    """The step's last word: why it made nothing."""

    error: JobError


Report: TypeAlias = Progress | Metrics | Log | Done | Failed


def encode_report(report: Report) -> str:
    """Return a report as one line without its end."""
    match report:
        case Progress(share, phase):
            value: JsonObject = {"progress": share, "phase": phase}
        case Metrics(values):
            value = {"metrics": dict(values)}
        case Log(text):
            value = {"log": text[:MAX_LOG_CHARACTERS]}
        case Done(result):
            value = {"result": result}
        case Failed(error):
            value = {"failed": {"code": error.code, "reason": error.reason, "message": error.message}}
    return json.dumps(value)


def decode_report(line: str) -> Report:
    """Read one line. Whatever is not a report (a library that prints) is a line of the log."""
    try:
        match json.loads(line):
            case {"progress": float() | int() as share, "phase": str() as phase}:
                return Progress(share, phase)
            case {"metrics": dict() as values}:
                return Metrics({str(name): float(value) for name, value in values.items()})
            case {"log": str() as text}:
                return Log(text)
            case {"result": dict() as result}:
                return Done(result)
            case {"failed": {"code": str() as code, "reason": str() as reason, "message": str() as message}}:
                return Failed(JobError(code, reason, message))
    except (ValueError, TypeError):
        pass
    return Log(line[:MAX_LOG_CHARACTERS])

"""Settings from the environment, with all bad values reported at once."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from maas_runtime.failures import FieldViolation, InvalidInput

ParsedT = TypeVar("ParsedT")

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class SettingsInvalid(InvalidInput):
    """One or more variables are missing or wrong."""

    reason = "SETTINGS_INVALID"


class Environment:
    """Reads variables and collects what is wrong with them; `check` raises it all.

    A reader returns a value of its type even for a wrong variable, so that reading goes on to the next.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._violations: list[FieldViolation] = []

    def text(self, name: str, default: str | None = None) -> str:
        """Return the variable; without a default it has to be set and not empty."""
        value = self._variables.get(name) or default
        if value is None:
            self._wrong(name, "is not set")
            return ""
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """Return the variable, which is one of `choices`."""
        value = self.text(name, default)
        if value not in choices:
            self._wrong(name, f"is {value!r}; use one of {', '.join(choices)}")
        return value

    def integer(self, name: str, default: int, *, low: int, high: int) -> int:
        """Return the variable as a whole number from `low` to `high`."""
        value = self._variables.get(name)
        if not value:
            return default
        try:
            number = int(value)
        except ValueError:
            self._wrong(name, f"is {value!r}; use a whole number")
            return default
        if not low <= number <= high:
            self._wrong(name, f"is {number}; use {low} to {high}")
        return number

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """Return the variable as a number from `low` to `high`."""
        value = self._variables.get(name)
        if not value:
            return default
        try:
            number = float(value)
        except ValueError:
            self._wrong(name, f"is {value!r}; use a number")
            return default
        if not low <= number <= high:
            self._wrong(name, f"is {number}; use {low} to {high}")
        return number

    def parsed(self, name: str, parse: Callable[[str], ParsedT], default: ParsedT) -> ParsedT:
        """Return what `parse` makes of the variable; what its ValueError says is reported, never the value itself."""
        value = self._variables.get(name)
        if not value:
            return default
        try:
            return parse(value)
        except ValueError as error:
            self._wrong(name, str(error))
            return default

    def folder(self, name: str) -> Path:
        """Return the variable as an absolute folder, which is made if it is not there."""
        path = Path(self.text(name)).absolute()
        if not self._variables.get(name):
            return path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._wrong(name, f"is {path}, which cannot be made: {error.strerror}")
            return path
        if not os.access(path, os.W_OK):
            self._wrong(name, f"is {path}, which cannot be written to")
        return path

    def address(self, name: str, default: str | None = None) -> str:
        """Return the variable as a gRPC address: `unix:/path` or `host:port`."""
        value = self.text(name, default)
        if value.startswith("unix:"):
            # The kernel keeps 108 bytes for the path, the last of them zero.
            if len(value.removeprefix("unix:").encode()) > 107:
                self._wrong(name, f"is {value}: a socket's path has at most 107 bytes; choose a shorter folder")
            return value
        host, _, port = value.rpartition(":")
        if value and not (host and port.isdigit() and int(port) <= 65535):
            self._wrong(name, f"is {value!r}; use host:port or unix:/path")
        return value

    def check(self) -> None:
        """Raise SettingsInvalid if any variable was wrong."""
        if self._violations:
            wrong = "; ".join(f"{violation.field} {violation.description}" for violation in self._violations)
            raise SettingsInvalid(f"settings: {wrong}", violations=tuple(self._violations))

    def _wrong(self, name: str, description: str) -> None:
        self._violations.append(FieldViolation(name, description))


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What every process is told."""

    home: Path
    """Folder of all state; a process writes to the folder of its own name in it."""
    listen: str
    """Where gRPC is served: `unix:/path` or `host:port`."""
    metrics_listen: str
    """Where HTTP /metrics is served."""
    log_level: str
    drain_seconds: float
    """How long calls may go on after SIGTERM."""

    @classmethod
    def read(cls, environment: Environment) -> Self:
        """Read the variables that every process has."""
        return cls(
            home=environment.folder("MAAS_HOME"),
            listen=environment.address("MAAS_LISTEN"),
            metrics_listen=environment.address("MAAS_METRICS_LISTEN"),
            log_level=environment.choice("MAAS_LOG_LEVEL", LOG_LEVELS, "INFO"),
            drain_seconds=environment.number("MAAS_DRAIN_SECONDS", 5.0, low=0, high=600),
        )

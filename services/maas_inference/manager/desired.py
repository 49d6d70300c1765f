"""What rollout wants to be served, and what was last agreed to answer; both outlive the manager on disk."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from maas.names import DeploymentName, VersionName
from maas_inference.table import ServingSettings

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class WeightedVersion:
    """A version and its share of the requests."""

    version: VersionName
    weight: int


Targets = tuple[WeightedVersion, ...]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How the workers of a deployment are run, where its owner says so. 0 and an empty text: the manager decides."""

    on_demand: bool = False
    engine: str = ""
    """NAME or NAME:PRECISION."""
    memory_bytes: int = 0
    compute_timeout_seconds: float = 0.0
    trusted_keys: tuple[str, ...] = ()
    """Public keys in PEM form; when there is any, only what one of them signed is loaded."""


@dataclass(frozen=True, slots=True)
class WantedDeployment:
    """The versions that are to answer under a name, and how."""

    targets: Targets
    serving: ServingSettings = field(default_factory=ServingSettings)
    workers: WorkerSettings = field(default_factory=WorkerSettings)


@dataclass(frozen=True, slots=True)
class Desired:
    """What is wanted, and the token with which a watch goes on from here."""

    deployments: Mapping[DeploymentName, WantedDeployment] = field(default_factory=dict)
    resume_token: str = ""

    def changed(
        self,
        *,
        is_snapshot: bool,
        deployments: Mapping[DeploymentName, WantedDeployment],
        deleted: Iterable[DeploymentName],
        resume_token: str,
    ) -> "Desired":
        """Return what is wanted after a message of the watch."""
        gone = set(deleted)
        kept = {} if is_snapshot else {name: old for name, old in self.deployments.items() if name not in gone}
        return replace(self, deployments={**kept, **deployments}, resume_token=resume_token)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the manager takes up again after a restart."""

    desired: Desired = field(default_factory=Desired)
    answering: Mapping[DeploymentName, Targets] = field(default_factory=dict)
    """Who answered."""
    unloaded: frozenset[DeploymentName] = frozenset()
    """Whose workers somebody has ended, until they are loaded again or rollout changes them."""


class DesiredFile:
    """Keeps the memory in one file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Remembered:
        """Return what was saved; nothing when there is no file or it is of another format."""
        try:
            stored = msgspec.json.decode(self._path.read_bytes(), type=_Stored)
        except (FileNotFoundError, msgspec.DecodeError):
            return Remembered()
        if stored.format_version != _FORMAT:
            return Remembered()
        targets = _targets_from(stored.deployments)
        return Remembered(
            Desired(
                {
                    name: WantedDeployment(
                        targets[name],
                        stored.serving.get(str(name), ServingSettings()),
                        stored.workers.get(str(name), WorkerSettings()),
                    )
                    for name in targets
                },
                stored.resume_token,
            ),
            _targets_from(stored.answering),
            frozenset(DeploymentName.parse(name) for name in stored.unloaded),
        )

    def save(self, remembered: Remembered) -> None:
        """Replace the file."""
        deployments = remembered.desired.deployments
        stored = _Stored(
            _FORMAT,
            remembered.desired.resume_token,
            _targets_to({name: wanted.targets for name, wanted in deployments.items()}),
            _targets_to(remembered.answering),
            {str(name): wanted.serving for name, wanted in deployments.items()},
            {str(name): wanted.workers for name, wanted in deployments.items()},
            sorted(map(str, remembered.unloaded)),
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(stored))
        os.replace(partial, self._path)


class _Stored(msgspec.Struct):
    format_version: int
    resume_token: str
    deployments: dict[str, list[tuple[str, int]]]
    answering: dict[str, list[tuple[str, int]]]
    # What the first release did not write.
    serving: dict[str, ServingSettings] = {}
    workers: dict[str, WorkerSettings] = {}
    unloaded: list[str] = []


def _targets_to(deployments: Mapping[DeploymentName, Targets]) -> dict[str, list[tuple[str, int]]]:
    return {
        str(name): [(str(target.version), target.weight) for target in targets] for name, targets in deployments.items()
    }


def _targets_from(stored: Mapping[str, list[tuple[str, int]]]) -> dict[DeploymentName, Targets]:
    return {
        DeploymentName.parse(name): tuple(
            WeightedVersion(VersionName.parse(version), weight) for version, weight in targets
        )
        for name, targets in stored.items()
    }

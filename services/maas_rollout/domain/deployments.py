"""A deployment, as a value, and what its targets have to be."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from maas.names import AliasName, DeploymentName, VersionName
from maas.signatures import PublicKey
from maas_rollout.domain.serving import DEFAULT_SERVING, ServingSettings
from maas_runtime.failures import FieldViolation, InvalidInput


class TargetsInvalid(InvalidInput):
    """The targets are of two models, name a version twice, or have no weight above 0."""

    reason = "TARGETS_INVALID"


class DeploymentState(Enum):
    """PENDING -> LOADING; LOADING -> READY | FAILED; READY | FAILED -> LOADING. A report may skip LOADING."""

    PENDING = "pending"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Target:
    """A version, and its share of the requests: weight / sum of weights."""

    version: VersionName
    weight: int


@dataclass(frozen=True, slots=True)
class WantedTarget:
    """A target as somebody asks for it: the version may be named by an alias."""

    name: VersionName | AliasName
    weight: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a deployment is in its life, and why; the message is empty when it is READY."""

    state: DeploymentState
    message: str = ""


PENDING = Standing(DeploymentState.PENDING, "no inference replica has reported on it yet")


@dataclass(frozen=True, slots=True)
class Deployment:
    """What should be served under a name. `standing` is the last that was known, for the time after a restart."""

    name: DeploymentName
    targets: tuple[Target, ...]
    standing: Standing
    create_time: datetime
    update_time: datetime
    serving: ServingSettings = DEFAULT_SERVING
    trusted_keys: tuple[PublicKey, ...] = ()
    """When there is any, each target is signed by one of them."""
    revision: int = 0
    """Of all changes of all deployments, the number of the last one of this deployment; 0 before it is stored."""

    @property
    def etag(self) -> str:
        """Changes whenever targets, serving settings or trusted keys do, and never comes back."""
        return str(self.revision)


class Action(Enum):
    """What an event tells of."""

    CREATED = "created"
    UPDATED = "updated"
    CONFIGURED = "configured"
    """Only the serving settings or the trusted keys changed."""
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the record of what changed traffic."""

    deployment: DeploymentName
    time: datetime
    action: Action
    targets_before: tuple[Target, ...]
    targets_after: tuple[Target, ...]
    actor: str
    reason: str
    trusted_before: tuple[str, ...] = ()
    """Fingerprints of keys."""
    trusted_after: tuple[str, ...] = ()
    number: int = 0
    """Its place in the record; 0 before it is stored."""


def check_wanted(wanted: Sequence[WantedTarget]) -> None:
    """Raise TargetsInvalid, with all that is wrong as far as the names tell."""
    violations = []
    models = sorted({str(target.name.model) for target in wanted})
    if len(models) > 1:
        violations.append(FieldViolation("deployment.targets", f"are of several models: {', '.join(models)}"))
    if not any(target.weight > 0 for target in wanted):
        violations.append(FieldViolation("deployment.targets", "have no weight above 0"))
    _raise_any(violations)


def check_targets(targets: Sequence[Target]) -> None:
    """Raise TargetsInvalid when a version is there twice, which two names may have hidden."""
    counts = Counter(target.version for target in targets)
    _raise_any(
        [
            FieldViolation("deployment.targets", f"name {version} {count} times")
            for version, count in counts.items()
            if count > 1
        ]
    )


def _raise_any(violations: Sequence[FieldViolation]) -> None:
    if violations:
        text = "; ".join(f"the targets {violation.description}" for violation in violations)
        raise TargetsInvalid(text, violations=tuple(violations))

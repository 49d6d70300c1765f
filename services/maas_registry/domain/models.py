"""Models, aliases and holds, as values, and what may be wrong with a request about them."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from maas.names import AliasName, DeploymentName, ModelName, VersionName
from maas_registry.domain.details import Deletion, ModelDetails
from maas_runtime.failures import AlreadyExists, Conflict, InvalidInput, NotAllowedNow, NotFound

MAX_ALIASES = 100
MAX_FINDINGS = 100
"""Evaluations that a version may have been given later, and measurements."""
KEPT_AFTER_DELETION = timedelta(days=30)


class ModelNotFound(NotFound):
    """There is no such model."""

    reason = "MODEL_NOT_FOUND"


class VersionNotFound(NotFound):
    """The model has no such version."""

    reason = "VERSION_NOT_FOUND"


class AliasNotFound(NotFound):
    """The model has no such alias."""

    reason = "ALIAS_NOT_FOUND"


class ModelExists(AlreadyExists):
    """There is a model of that name, or was one."""

    reason = "MODEL_EXISTS"


class VersionOfOtherModel(InvalidInput):
    """A parent or an alias's version is of another model."""

    reason = "VERSION_OF_OTHER_MODEL"


class TooManyAliases(NotAllowedNow):
    """The model has as many aliases as a model may have."""

    reason = "TOO_MANY_ALIASES"


class TooManyFindings(NotAllowedNow):
    """The version has as many evaluations or measurements as a version may have."""

    reason = "TOO_MANY_FINDINGS"


class RecordChanged(Conflict):
    """Somebody else changed it since it was read."""

    reason = "RECORD_CHANGED"


class ModelDeleted(NotAllowedNow):
    """The model is deleted."""

    reason = "MODEL_DELETED"


class VersionDeleted(NotAllowedNow):
    """The version is deleted."""

    reason = "VERSION_DELETED"


class NotDeleted(NotAllowedNow):
    """What is not deleted cannot be brought back."""

    reason = "NOT_DELETED"


class DeletionExpired(NotAllowedNow):
    """It was deleted too long ago to be brought back."""

    reason = "DELETION_EXPIRED"


class StateTransitionIllegal(NotAllowedNow):
    """A version cannot come into this state from the one that it is in."""

    reason = "STATE_TRANSITION_ILLEGAL"


class VersionInUse(NotAllowedNow):
    """The version, or one of the model, is a parent, has an alias, or is deployed."""

    reason = "VERSION_IN_USE"


class VersionNotDeployable(NotAllowedNow):
    """Only a version that is ready may be deployed."""

    reason = "VERSION_NOT_DEPLOYABLE"


@dataclass(frozen=True, slots=True)
class Model:
    """A line of versions. Versions count from 1 and their records stay, so a count is also the newest number."""

    name: ModelName
    details: ModelDetails
    create_time: datetime
    update_time: datetime
    revision: int
    """Number of the change that made it what it is."""
    version_count: int = 0
    latest_version: VersionName | None = None
    """The newest version that can be deployed; None while there is none."""

    @property
    def etag(self) -> str:
        """Changes with each change of the model, and never comes back."""
        return str(self.revision)


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that points to a version of its model."""

    name: AliasName
    version: VersionName
    update_time: datetime
    revision: int

    @property
    def etag(self) -> str:
        """Changes with each move, and never comes back."""
        return str(self.revision)


@dataclass(frozen=True, slots=True, order=True)
class Hold:
    """A deployment serves a version, which has to stay meanwhile."""

    holder: DeploymentName
    version: VersionName

    def __str__(self) -> str:
        return f"{self.holder} {self.version}"

    @classmethod
    def parse(cls, text: str) -> "Hold":
        """Raises NameInvalid."""
        holder, _, version = text.partition(" ")
        return cls(DeploymentName.parse(holder), VersionName.parse(version))


def deletion_at(now: datetime) -> Deletion:
    """Return the deletion of what is deleted now."""
    return Deletion(now, now + KEPT_AFTER_DELETION)


def check_etag(subject: Model | Alias, etag: str) -> None:
    """Raise RecordChanged when an etag is given that is not the present one."""
    if etag and etag != subject.etag:
        raise record_changed(str(subject.name))


def record_changed(name: str) -> RecordChanged:
    """Return the failure of a change that is based on what is no more."""
    return RecordChanged(f"{name} was changed by somebody else: read it again, then change it")


def check_can_come_back(name: ModelName | VersionName, deletion: Deletion | None, now: datetime) -> None:
    """Raise NotDeleted or DeletionExpired."""
    if deletion is None:
        raise NotDeleted(f"{name} is not deleted", name=str(name))
    if deletion.expire_time <= now or deletion.purge_time is not None:
        raise DeletionExpired(
            f"{name} was deleted more than {KEPT_AFTER_DELETION.days} days ago: store it again", name=str(name)
        )

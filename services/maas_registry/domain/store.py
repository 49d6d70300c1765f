"""Where models, versions, aliases and holds are kept, as the rules need it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from maas.names import AliasName, DeploymentName, ModelName, VersionName
from maas_registry.domain.changes import Author, ChangeKind
from maas_registry.domain.details import ModelDetails, VersionDetails
from maas_registry.domain.models import Alias, Hold, Model
from maas_registry.domain.versions import Version, VersionContent

ResultT = TypeVar("ResultT")


class ModelWriter(Protocol):
    """One transaction, alone. Each change becomes an entry of the log, by the author who asked for it."""

    now: datetime
    """When its changes take effect; not before any change that is stored."""

    async def get_model(self, name: ModelName) -> Model | None:
        """Return the model, also a deleted one; None when there is none."""
        ...

    async def put_model(self, name: ModelName, details: ModelDetails, kind: ChangeKind) -> Model:
        """Store a new model, or what changed of one."""
        ...

    async def get_version(self, name: VersionName) -> Version | None:
        """Return the version, also a deleted one; None when there is none."""
        ...

    async def get_version_of_request(self, model: ModelName, request_id: str) -> Version | None:
        """Return the version that was made with the request id; None when there is none."""
        ...

    async def add_version(
        self, model: ModelName, content: VersionContent, details: VersionDetails, request_id: str
    ) -> Version:
        """Store a version with the next number."""
        ...

    async def put_version(self, name: VersionName, details: VersionDetails, kind: ChangeKind) -> Version:
        """Store what changed of a version."""
        ...

    async def get_alias(self, name: AliasName) -> Alias | None:
        """Return the alias; None when there is none."""
        ...

    async def put_alias(self, name: AliasName, version: VersionName) -> Alias:
        """Store or move an alias."""
        ...

    async def delete_alias(self, name: AliasName) -> None:
        """Remove an alias."""
        ...

    async def count_aliases(self, model: ModelName) -> int:
        """Return how many aliases the model has."""
        ...

    async def alias_of(self, name: ModelName | VersionName) -> AliasName | None:
        """Return an alias of the version, or of any version of the model; None when there is none."""
        ...

    async def hold_of(self, model: ModelName) -> Hold | None:
        """Return a hold of any version of the model; None when there is none."""
        ...

    async def child_of(self, name: VersionName) -> VersionName | None:
        """Return a version that was made of this one and is not deleted; None when there is none."""
        ...

    async def versions_held_by(self, holder: DeploymentName) -> Sequence[VersionName]:
        """Return the versions that a deployment holds, ordered by name."""
        ...

    async def expired_versions(self) -> Sequence[Version]:
        """Return the versions whose files may go now, because they or their model expired, and have not gone."""
        ...


class ModelStore(Protocol):
    """Where models are kept. `at` asks for what was known at a time; None is now."""

    async def write(self, author: Author, work: Callable[[ModelWriter], Awaitable[ResultT]]) -> ResultT:
        """Return what `work` returns in one transaction; by then it is on disk. An exception undoes all of it."""
        ...

    async def get_model(self, name: ModelName, at: datetime | None = None) -> Model | None:
        """Return the model, also a deleted one; None when there is none."""
        ...

    async def list_models(
        self, after: ModelName | None, limit: int, *, descending: bool = False, at: datetime | None = None
    ) -> Sequence[Model]:
        """Return the first models behind `after`, also deleted ones, by name."""
        ...

    async def get_version(self, name: VersionName | AliasName, at: datetime | None = None) -> Version | None:
        """Return the version, or the one that the alias points to, also a deleted one; None when there is none."""
        ...

    async def get_version_of_request(self, model: ModelName, request_id: str) -> Version | None:
        """Return the version that was made with the request id; None when there is none."""
        ...

    async def list_versions(
        self,
        model: ModelName,
        after: VersionName | None,
        limit: int,
        *,
        descending: bool = True,
        wanted: Mapping[str, str] | None = None,
        at: datetime | None = None,
    ) -> Sequence[Version]:
        """Return the first versions behind `after`, also deleted ones, by number.

        Only those with the `wanted` texts need be among them: `state` and `parent_version`.
        """
        ...

    async def get_alias(self, name: AliasName, at: datetime | None = None) -> Alias | None:
        """Return the alias; None when there is none."""
        ...

    async def list_aliases(
        self, model: ModelName, after: AliasName | None, limit: int, at: datetime | None = None
    ) -> Sequence[Alias]:
        """Return the first aliases behind `after`, ordered by name."""
        ...

    async def list_holds(self, after: Hold | None, limit: int) -> Sequence[Hold]:
        """Return the first holds behind `after`, ordered by holder and version."""
        ...

"""Models, their versions, and aliases that point to versions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeAlias

from maas.names import AliasName, ModelName, VersionName
from maas_registry.domain.blobs import Blobs
from maas_registry.domain.package_check import check_package
from maas_registry.domain.versions import Version, VersionContent, VersionDraft
from maas_runtime.failures import AlreadyExists, InvalidInput, NotAllowedNow, NotFound

MAX_ALIASES = 100

Clock: TypeAlias = Callable[[], datetime]


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
    """There is a model of that name."""

    reason = "MODEL_EXISTS"


class VersionOfOtherModel(InvalidInput):
    """A parent or an alias's version is of another model."""

    reason = "VERSION_OF_OTHER_MODEL"


class TooManyAliases(NotAllowedNow):
    """The model has as many aliases as a model may have."""

    reason = "TOO_MANY_ALIASES"


@dataclass(frozen=True, slots=True)
class Model:
    """A line of versions. Versions count from 1 and are never removed, so their number is also how many there are."""

    name: ModelName
    description: str
    create_time: datetime
    tags: dict[str, str] = field(default_factory=dict)
    version_count: int = 0

    @property
    def latest_version(self) -> VersionName | None:
        """The newest version; None while there is none."""
        return VersionName(self.name.model_id, self.version_count) if self.version_count else None


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that points to a version of its model."""

    name: AliasName
    version: VersionName
    update_time: datetime


class ModelStore(Protocol):
    """Where models are kept. Each method is one transaction; what it returned is on disk."""

    async def add_model(self, model: Model) -> bool:
        """Store a model without versions; False, and nothing stored, when there is one of that name."""
        ...

    async def get_model(self, name: ModelName) -> Model | None:
        """Return the model; None when there is none."""
        ...

    async def list_models(self, after: ModelName | None, limit: int) -> Sequence[Model]:
        """Return the first models behind `after`, ordered by name."""
        ...

    async def add_version(
        self, model: ModelName, content: VersionContent, create_time: datetime, request_id: str
    ) -> Version:
        """Store a version with the next number; with a request id that made one before, return that one."""
        ...

    async def get_version(self, name: VersionName) -> Version | None:
        """Return the version; None when there is none."""
        ...

    async def get_version_of_alias(self, name: AliasName) -> Version | None:
        """Return the version that the alias points to; None when there is no such alias."""
        ...

    async def get_version_of_request(self, model: ModelName, request_id: str) -> Version | None:
        """Return the version that was made with the request id; None when there is none."""
        ...

    async def list_versions(self, model: ModelName, before: VersionName | None, limit: int) -> Sequence[Version]:
        """Return the newest versions older than `before`, newest first."""
        ...

    async def set_alias(self, alias: Alias, max_aliases: int) -> bool:
        """Store or move an alias; False, and nothing stored, when it would be one too many for its model."""
        ...

    async def list_aliases(self, model: ModelName, after: AliasName | None, limit: int) -> Sequence[Alias]:
        """Return the first aliases behind `after`, ordered by name."""
        ...

    async def delete_alias(self, name: AliasName) -> bool:
        """Remove an alias; False when there is none."""
        ...


class Models:
    """The rules of models, versions and aliases."""

    def __init__(self, store: ModelStore, blobs: Blobs, clock: Clock) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock

    async def create(self, name: ModelName, description: str, tags: dict[str, str]) -> Model:
        """Store a model without versions. Raises ModelExists."""
        model = Model(name, description, self._clock(), tags)
        if not await self._store.add_model(model):
            raise ModelExists(f"{name} is there already", name=str(name))
        return model

    async def get(self, name: ModelName) -> Model:
        """Return the model. Raises ModelNotFound."""
        model = await self._store.get_model(name)
        if model is None:
            raise ModelNotFound(f"there is no {name}: `maas models ls` shows those there are", name=str(name))
        return model

    async def list(self, after: ModelName | None, limit: int) -> Sequence[Model]:
        """Return the first models behind `after`, ordered by name."""
        return await self._store.list_models(after, limit)

    async def create_version(self, model: ModelName, draft: VersionDraft, request_id: str) -> Version:
        """Check the package and store it with the next number; a request id that was seen returns its version.

        Raises ModelNotFound, VersionNotFound, VersionOfOtherModel, BlobNotFound, or what is wrong with the package.
        """
        await self.get(model)
        if request_id and (made := await self._store.get_version_of_request(model, request_id)):
            return made
        parent = draft.provenance.parent_version
        if parent is not None:
            _check_same_model("version.parent_version", parent, model)
            await self.get_version(parent)
        files, signature = await check_package(draft, self._blobs)
        content = VersionContent(files, draft.provenance, signature)
        return await self._store.add_version(model, content, self._clock(), request_id)

    async def get_version(self, name: VersionName | AliasName) -> Version:
        """Return the version, or the one an alias points to.

        Raises ModelNotFound, VersionNotFound or AliasNotFound.
        """
        match name:
            case VersionName():
                version = await self._store.get_version(name)
            case AliasName():
                version = await self._store.get_version_of_alias(name)
        if version is not None:
            return version
        model = await self.get(name.model)
        raise _missing(name, model)

    async def list_versions(self, model: ModelName, before: VersionName | None, limit: int) -> Sequence[Version]:
        """Return the newest versions older than `before`, newest first. Raises ModelNotFound."""
        await self.get(model)
        return await self._store.list_versions(model, before, limit)

    async def set_alias(self, name: AliasName, version: VersionName) -> Alias:
        """Point an alias to a version of its model.

        Raises ModelNotFound, VersionNotFound, VersionOfOtherModel or TooManyAliases.
        """
        _check_same_model("version", version, name.model)
        await self.get_version(version)
        alias = Alias(name, version, self._clock())
        if not await self._store.set_alias(alias, MAX_ALIASES):
            raise TooManyAliases(
                f"{name.model} has {MAX_ALIASES} aliases: remove one that nobody uses", name=str(name.model)
            )
        return alias

    async def list_aliases(self, model: ModelName, after: AliasName | None, limit: int) -> Sequence[Alias]:
        """Return the first aliases behind `after`, ordered by name. Raises ModelNotFound."""
        await self.get(model)
        return await self._store.list_aliases(model, after, limit)

    async def delete_alias(self, name: AliasName) -> None:
        """Remove an alias; the version stays. Raises AliasNotFound."""
        if not await self._store.delete_alias(name):
            raise AliasNotFound(f"there is no {name}", name=str(name))


def _check_same_model(field_name: str, version: VersionName, model: ModelName) -> None:
    if version.model != model:
        raise VersionOfOtherModel(f"{field_name}: {version} is not a version of {model}")


def _missing(name: VersionName | AliasName, model: Model) -> NotFound:
    match name:
        case VersionName():
            newest = model.latest_version or "none yet"
            return VersionNotFound(f"there is no {name}; the newest is {newest}", name=str(name))
        case AliasName():
            return AliasNotFound(f"there is no {name}: `maas models alias` sets one", name=str(name))

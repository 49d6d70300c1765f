"""The rules of aliases, and of holds: what points to versions, and what keeps them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from maas.names import AliasName, DeploymentName, ModelName, VersionName
from maas_registry.domain.changes import Author, ChangeKind, Clock, check_read_time
from maas_registry.domain.model_rules import living_model, model_not_found
from maas_registry.domain.models import (
    MAX_ALIASES,
    Alias,
    AliasNotFound,
    Hold,
    TooManyAliases,
    VersionNotDeployable,
    check_etag,
    record_changed,
)
from maas_registry.domain.store import ModelStore, ModelWriter
from maas_registry.domain.version_rules import check_same_model, living_version, version_not_found


class Aliases:
    """Moves and finds aliases."""

    def __init__(self, store: ModelStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def set(
        self,
        name: AliasName,
        version: VersionName,
        author: Author,
        *,
        etag: str = "",
        expected: VersionName | None = None,
        expected_none: bool = False,
    ) -> Alias:
        """Point an alias to a version of its model. Where it points already leaves no trace.

        Raises ModelNotFound, ModelDeleted, VersionNotFound, VersionDeleted, VersionOfOtherModel, TooManyAliases, or
        RecordChanged when the alias is not what the caller expects.
        """
        check_same_model("version", version, name.model)

        async def set_alias(writer: ModelWriter) -> Alias:
            await living_model(writer, name.model)
            await living_version(writer, version)
            present = await writer.get_alias(name)
            if present is None:
                if etag or expected is not None:
                    raise record_changed(str(name))
                if await writer.count_aliases(name.model) >= MAX_ALIASES:
                    raise TooManyAliases(
                        f"{name.model} has {MAX_ALIASES} aliases: remove one that nobody uses", name=str(name.model)
                    )
                return await writer.put_alias(name, version)
            if present.version == version:
                return present  # also for whoever asks again, having missed the answer
            check_etag(present, etag)
            if expected_none or (expected is not None and present.version != expected):
                raise record_changed(str(name))
            return await writer.put_alias(name, version)

        return await self._store.write(author, set_alias)

    async def list(
        self, model: ModelName, after: AliasName | None, limit: int, at: datetime | None = None
    ) -> Sequence[Alias]:
        """Return the first aliases behind `after`, ordered by name. Raises ModelNotFound or ReadTimeInFuture."""
        check_read_time(at, self._clock)
        if await self._store.get_model(model, at) is None:
            raise model_not_found(model, at)
        return await self._store.list_aliases(model, after, limit, at)

    async def delete(self, name: AliasName, etag: str, author: Author) -> None:
        """Remove an alias; the version stays. Raises AliasNotFound or RecordChanged."""

        async def delete(writer: ModelWriter) -> None:
            present = await writer.get_alias(name)
            if present is None:
                raise AliasNotFound(f"there is no {name}", name=str(name))
            check_etag(present, etag)
            await writer.delete_alias(name)

        await self._store.write(author, delete)


class Holds:
    """Which deployments serve which versions. A version that is held is neither deleted nor archived."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    async def set(self, holder: DeploymentName, versions: Sequence[VersionName], author: Author) -> None:
        """Let a deployment hold these versions and no others.

        Raises VersionNotFound, ModelDeleted, VersionDeleted or VersionNotDeployable for one that it did not hold.
        """

        async def set_holds(writer: ModelWriter) -> None:
            present = set(await writer.versions_held_by(holder))
            for name in sorted(set(versions) - present):
                await living_model(writer, name.model)
                version = await living_version(writer, name)
                if not version.details.can_be_deployed:
                    raise VersionNotDeployable(
                        f"{name} is {version.details.state.value}: only what is ready may be deployed", name=str(name)
                    )
                held_by = tuple(sorted((*version.details.held_by, holder)))
                await writer.put_version(name, replace(version.details, held_by=held_by), ChangeKind.UPDATED)
            for name in sorted(present - set(versions)):
                held = await writer.get_version(name)
                if held is None:
                    raise version_not_found(name)
                held_by = tuple(one for one in held.details.held_by if one != holder)
                await writer.put_version(name, replace(held.details, held_by=held_by), ChangeKind.UPDATED)

        await self._store.write(author, set_holds)

    async def list(self, after: Hold | None, limit: int) -> Sequence[Hold]:
        """Return the first holds behind `after`, ordered by holder and version."""
        return await self._store.list_holds(after, limit)

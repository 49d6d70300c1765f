"""Tables are made and changed by alembic migrations only, a file each; no other code knows how they come about."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, inspect

from maas_runtime.database.failures import DatabaseOfOtherRelease

HEAD = "head"
BASE = "base"


@dataclass(frozen=True, slots=True)
class Migrations:
    """One line of files, each of which says which one it follows and how to go on from there and back."""

    folder: Path

    def upgrade(self, connection: Connection, shown: str, revision: str = HEAD) -> None:
        """Bring the tables to a revision, in the transaction of `connection`.

        Raises DatabaseOfOtherRelease, and leaves everything as it is, when they are of a revision that is not among
        these, or when there are tables that no migration made.
        """
        script = self._script()
        found = _revision_of(connection)
        if found is None and set(inspect(connection).get_table_names()) - {"alembic_version"}:
            raise DatabaseOfOtherRelease(
                f"{shown} has tables that no release of this program made: choose an empty database", name=shown
            )
        if found == script.get_current_head():
            return
        if found is not None and not _knows(script, found):
            raise DatabaseOfOtherRelease(
                f"{shown} has tables of revision {found}, this program knows up to {script.get_current_head()}: run "
                "the release that made them, or choose another database",
                name=shown,
            )
        _run(connection, script, lambda revisions, _: script._upgrade_revs(revision, revisions))

    def downgrade(self, connection: Connection, revision: str = BASE) -> None:
        """Bring the tables back to an older revision."""
        script = self._script()
        _run(connection, script, lambda revisions, _: script._downgrade_revs(revision, revisions))

    def _script(self) -> ScriptDirectory:
        return ScriptDirectory(str(self.folder), version_locations=[str(self.folder)])


def _knows(script: ScriptDirectory, revision: str) -> bool:
    try:
        return script.get_revision(revision) is not None
    except CommandError:
        return False


def _revision_of(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _run(connection: Connection, script: ScriptDirectory, steps: Callable[[Any, Any], Any]) -> None:
    context = MigrationContext.configure(connection, opts={"script": script, "fn": steps, "transactional_ddl": True})
    with Operations.context(context):
        context.run_migrations()

"""`maas registry`: the whole registry of this machine, checked, cleaned or moved."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from maas.cli.options import DEFAULT_HOME, Home, Json
from maas.cli.output import bytes_text, console, say, write_json
from maas.errors import MaasError, NotAllowedNowError


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="The whole registry of this machine: check it, clean it, move it.", no_args_is_help=True)
    group.command("verify")(verify)
    group.command("migrate")(migrate)
    group.command("gc")(collect)
    app.add_typer(group, name="registry")


def verify(
    hashing: Annotated[bool, typer.Option("--hash", help="Also read every blob and compare its SHA-256.")] = False,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Check every record against the others and against the blobs. Status 1 when something is wrong.

    Reads the stores themselves: those of the home folder, or those that MAAS_REGISTRY_DATABASE_URL and
    MAAS_REGISTRY_BLOBS_URL name. The registry may be running.
    """
    found = _upkeep(home, ["verify", *(["--hash"] if hashing else [])], "checking")
    if as_json:
        write_json(found)
    else:
        for problem in found["problems"]:
            console().print(f"{problem['name']}: {problem['problem']}", markup=False, highlight=False, soft_wrap=True)
        count = len(found["problems"])
        say(f"{_amounts(found)}: " + (f"{count} problem{'s' if count > 1 else ''}" if count else "all in order"))
    if found["problems"]:
        raise typer.Exit(1)


def migrate(
    to_database: Annotated[
        str, typer.Option("--to-database", help="Where to: postgresql://USER@HOST/DATABASE or sqlite:////FOLDER/FILE.")
    ],
    to_blobs: Annotated[str, typer.Option("--to-blobs", help="Where to: s3://BUCKET/PREFIX or file:///FOLDER.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Copy the whole registry to another database and another store of blobs, and check the copy.

    Stop the cluster before, so that nothing is registered in the old place meanwhile. The old place stays as it is.
    A move that broke goes on when it is begun again.
    """
    from maas.supervisor.home import Home as HomeFolder
    from maas.supervisor.home import running_state

    folder = home.expanduser().absolute()
    if running_state(HomeFolder(folder)) is not None:
        raise NotAllowedNowError(
            f"a cluster is running in {folder}: stop it first, with maas down --home {folder}", reason="CLUSTER_RUNNING"
        )
    arguments = ["migrate", f"--to-database={to_database}", f"--to-blobs={to_blobs}"]
    found = _upkeep(home, arguments, "moving")
    if as_json:
        write_json(found)
        return
    say(f"{_amounts(found)}: all is there, each row equal, each blob with its hash")
    say("the registry goes on there once MAAS_REGISTRY_DATABASE_URL and MAAS_REGISTRY_BLOBS_URL name it")


def collect(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and change nothing.")] = False,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Remove the blobs that no version and no dataset has needed for a day (MAAS_REGISTRY_GC_GRACE_SECONDS).

    The registry does so by itself, every hour. It may be running.
    """
    found = _upkeep(home, ["gc", *(["--dry-run"] if dry_run else [])], "collecting")
    if as_json:
        write_json(found)
        return
    unused = f"{found['unused']} of {found['blobs']} blobs unused ({bytes_text(found['unused_bytes'])})"
    went = "would go now" if dry_run else "removed"
    say(f"{unused}; {found['removed']} {went} ({bytes_text(found['removed_bytes'])})")
    if found["purged_versions"]:
        say(f"{found['purged_versions']} deleted versions gave up their files")
    if found["dropped_uploads"]:
        say(f"{found['dropped_uploads']} unfinished uploads given up")


def _upkeep(home: Path, arguments: list[str], doing: str) -> dict[str, Any]:
    """Run the registry's own program and return what it found, for the client knows no database. Raises MaasError."""
    from maas.cli.progress import amount

    command = [sys.executable, "-m", "maas_registry.upkeep", *arguments]
    environment = os.environ | {"MAAS_HOME": str(home.expanduser().absolute())}
    last: dict[str, Any] = {}
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=complaints, text=True) as program,
        amount(doing) as told,
    ):
        assert program.stdout is not None
        for line in program.stdout:
            last = json.loads(line)
            if progress := last.get("progress"):
                told(f"{doing} {progress['what']}", progress["done"], progress["total"])
        status = program.wait()
        complaints.seek(0)
        complaint = complaints.read()
    if "failure" in last:
        raise MaasError(last["failure"], reason=last["reason"])
    if "result" not in last:
        raise MaasError(_why(complaint, status), reason="UPKEEP_FAILED")
    found: dict[str, Any] = last["result"]
    return found


def _amounts(found: dict[str, Any]) -> str:
    rows = ", ".join(f"{count} {table.replace('_', ' ')}" for table, count in found["rows"].items())
    return f"{rows}; {found['blobs']} blobs of {bytes_text(found['blob_bytes'])}"


def _why(complaint: str, status: int) -> str:
    if "No module named 'maas_registry" in complaint or "No module named maas_registry" in complaint:
        return "this needs the registry on this machine: pip install 'maas[registry]'"
    lines = complaint.strip().splitlines()
    return f"the registry could not be worked on (status {status}): {lines[-1][:300] if lines else 'no message'}"

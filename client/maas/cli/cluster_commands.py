"""`maas up`, `down`, `status`, `logs`, `doctor`: the cluster on this machine."""

import os
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maas.cli.options import DEFAULT_HOME, DEFAULT_PORT, Endpoint, Home, Json, connected, endpoint_or_default
from maas.cli.output import (
    bytes_text,
    console,
    duration_text,
    last_segment,
    say,
    short_version,
    write_json,
    write_table,
)
from maas.errors import MaasError, NotFoundError

if TYPE_CHECKING:
    from maas.client import Client
    from maas.inference.v1.inference_service_pb2 import Replica
    from maas.rollout.v1.deployment_pb2 import Deployment
    from maas.supervisor.home import ClusterState

SERVICES = {
    "registry": "maas.registry.v1.RegistryService",
    "training": "maas.training.v1.TrainingService",
    "compression": "maas.compression.v1.CompressionService",
    "rollout": "maas.rollout.v1.RolloutService",
    "inference": "maas.inference.v1.InferenceService",
}


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(logs)
    app.command()(doctor)


def up(
    home: Home = DEFAULT_HOME,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to answer at; 0 chooses a free one.")
    ] = DEFAULT_PORT,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when all is ready, and leave it running.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start a cluster on this machine. Ctrl-C stops it."""
    from maas.supervisor.run import embedded_cluster, run_cluster, start_detached

    started = time.monotonic()
    # MAAS_ENDPOINT names some other cluster, and is no setting of this one.
    make_specs = embedded_cluster({name: value for name, value in os.environ.items() if name != "MAAS_ENDPOINT"})

    def ready(state: "ClusterState") -> None:
        seconds = time.monotonic() - started
        if as_json:
            write_json(
                {
                    "endpoint": state.endpoint,
                    "supervisor_pid": state.pid,
                    "seconds": round(seconds, 3),
                    "processes": [{"name": process.name, "pid": process.pid} for process in state.processes],
                }
            )
        else:
            say(f"ready at {state.endpoint} after {seconds:.1f} s, its state in {home.expanduser()}")

    if detach:
        from maas.cli.progress import waiting

        with waiting(f"starting a cluster in {home}"):
            state = start_detached(home, port)
        ready(state)
        if not as_json:
            say("stop it with: maas down" + ("" if home == DEFAULT_HOME else f" --home {home}"))
        return
    say(f"starting a cluster in {home.expanduser()}; Ctrl-C stops it")
    run_cluster(home, port, make_specs, say=say, on_ready=ready)
    say("stopped")


def down(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Stop the cluster on this machine and wait until all of it has ended."""
    from maas.cli.progress import waiting
    from maas.supervisor.run import stop_cluster

    started = time.monotonic()
    with waiting(f"stopping the cluster in {home}"):
        pid = stop_cluster(home)
    seconds = time.monotonic() - started
    if as_json:
        write_json({"pid": pid, "seconds": round(seconds, 3)})
    else:
        say(f"stopped after {seconds:.1f} s")


def status(home: Home = DEFAULT_HOME, endpoint: Endpoint = None, as_json: Json = False) -> None:
    """Show processes, deployments and loaded versions."""
    from maas.supervisor import home as home_folder

    local = home_folder.running_state(home_folder.Home(home.expanduser().absolute()))
    address = endpoint or (local.endpoint if local else endpoint_or_default(None))
    if local is not None and local.endpoint != address:
        local = None
    health: dict[str, bool] = {}
    deployments: list[Deployment] = []
    replica: Replica | None = None
    try:
        with connected(address, retry_seconds=0.0) as client:
            health = {name: _is_serving(client, service) for name, service in SERVICES.items()}
            deployments = list(client.deployments())
            replica = client.replica()
    except MaasError as error:
        # Processes on this machine are seen without asking them; what they would say is not.
        if local is None and not health:
            raise
        say(f"not all is known: {error.message}")
    processes = _processes(local, health)
    if as_json:
        write_json(
            {
                "endpoint": address,
                "supervisor_pid": local.pid if local else 0,
                "processes": processes,
                "deployments": deployments,
                "loaded_versions": list(replica.loaded_versions) if replica else [],
                "memory_used_bytes": replica.memory_used_bytes if replica else 0,
                "memory_budget_bytes": replica.memory_budget_bytes if replica else 0,
            }
        )
        return
    console().print(f"cluster at {address}{f', supervisor {local.pid}' if local else ''}\n", highlight=False)
    _show_processes(processes)
    _show_deployments(deployments)
    _show_loaded(replica)


def logs(
    process: Annotated[str | None, typer.Argument(help="registry, inference, ...; all when left out.")] = None,
    home: Home = DEFAULT_HOME,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines of each.")] = 20,
) -> None:
    """Show what the processes of the cluster on this machine wrote."""
    folder = home.expanduser() / "logs"
    names = [process] if process else sorted(path.stem for path in folder.glob("*.log"))
    files = {name: folder / f"{name}.log" for name in names}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing or not files:
        there = ", ".join(sorted(path.stem for path in folder.glob("*.log"))) or "none"
        raise NotFoundError(f"no log {', '.join(missing)} in {folder}; there are: {there}", reason="LOG_NOT_FOUND")
    positions = {}
    for name, path in files.items():
        with path.open("rb") as file:
            for line in deque(file, maxlen=lines):
                _write_line(name if len(files) > 1 else "", line)
            positions[name] = file.tell()
    while follow:
        time.sleep(0.2)
        for name, path in files.items():
            positions[name] = _write_new_lines(name if len(files) > 1 else "", path, positions[name])


def doctor(
    home: Home = DEFAULT_HOME,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that a cluster would answer at.")] = DEFAULT_PORT,
    as_json: Json = False,
) -> None:
    """Check whether a cluster can run on this machine, and say what to do where it cannot."""
    from maas.cli.doctor import examine

    findings = examine(home.expanduser().absolute(), port)
    if as_json:
        write_json([{"check": f.check, "ok": f.ok, "found": f.found, "advice": f.advice} for f in findings])
    else:
        for finding in findings:
            mark = "[green]ok[/]  " if finding.ok else "[red]no[/]  "
            console().print(mark, end="")
            console().print(f"{finding.check:<16} {finding.found}", markup=False, highlight=False)
            if finding.advice:
                console().print(f"      -> {finding.advice}", markup=False, highlight=False, style="yellow")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _is_serving(client: "Client", service: str) -> bool:
    try:
        return client.is_serving(service)
    except NotFoundError:  # the gateway knows no such service
        return False


def _processes(local: "ClusterState | None", health: dict[str, bool]) -> list[dict[str, Any]]:
    """Return each process with what its supervisor and itself say of it; of another machine only the latter."""
    if local is None:
        return [{"name": name, "healthy": healthy} for name, healthy in health.items()]
    return [
        {
            "name": process.name,
            "healthy": process.state == "ready" and health.get(process.name, process.name not in SERVICES),
            "state": process.state,
            "pid": process.pid,
            "restarts": process.restarts,
            "seconds": round(time.time() - process.since, 1),
            "message": process.message,
        }
        for process in local.processes
    ]


def _show_processes(processes: list[dict[str, Any]]) -> None:
    write_table(
        ("PROCESS", "HEALTH", "STATE", ">SINCE", ">PID", ">RESTARTS", "MESSAGE"),
        (
            (
                process["name"],
                "healthy" if process["healthy"] else "not healthy",
                process.get("state", ""),
                duration_text(process["seconds"]) if "seconds" in process else "",
                process.get("pid") or "",
                process.get("restarts", ""),
                process.get("message", ""),
            )
            for process in processes
        ),
    )


def _show_deployments(deployments: "list[Deployment]") -> None:
    from maas.cli.deployment_commands import write_deployments

    console().print()
    write_deployments(deployments)


def _show_loaded(replica: "Replica | None") -> None:
    if replica is None or not replica.loaded_versions:
        return
    console().print()
    write_table(
        ("LOADED", "DEPLOYMENT", "STATE", "ENGINE", ">MEMORY", ">LOADED IN", ">RESTARTS", ">PID", "MESSAGE"),
        (
            (
                short_version(loaded.version),
                last_segment(loaded.deployment),
                loaded.state,
                f"{loaded.engine} {loaded.precision}".strip(),
                bytes_text(loaded.memory_bytes),
                duration_text(loaded.load_seconds),
                loaded.restart_count,
                loaded.pid or "",
                loaded.message,
            )
            for loaded in replica.loaded_versions
        ),
    )
    used, budget = bytes_text(replica.memory_used_bytes), bytes_text(replica.memory_budget_bytes)
    console().print(f"\nworkers hold {used} of {budget}", highlight=False)


def _write_line(name: str, line: bytes) -> None:
    text = line.decode("utf-8", "replace").rstrip("\n")
    typer.echo(f"{name:<12} {text}" if name else text)


def _write_new_lines(name: str, path: Path, position: int) -> int:
    """Write the whole lines behind a position and return where they end."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < position:  # a new file took its place
            position = 0
        file.seek(position)
        for line in file:
            if not line.endswith(b"\n"):
                break
            _write_line(name, line)
            position += len(line)
    return position

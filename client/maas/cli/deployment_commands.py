"""`maas deploy`, `undeploy`, `deployments` and `predict`: what answers, and asking it."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maas.actor import this_user
from maas.cli import serving_options as serving
from maas.cli.options import Endpoint, Json, connected
from maas.cli.output import ago_text, last_segment, say, short_version, state_text, write_json, write_table
from maas.errors import InvalidInputError

if TYPE_CHECKING:
    from maas.client import Client, Prediction
    from maas.rollout.v1.deployment_pb2 import Deployment, DeploymentEvent, Target

_ROWS_A_REQUEST = 64

Name = Annotated[str, typer.Argument(metavar="NAME", help="The deployment: what callers use as the model's name.")]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(deploy)
    app.command()(undeploy)
    app.command()(predict)
    group = typer.Typer(help="Deployments and the record of what changed them.", no_args_is_help=True)
    group.command("ls")(ls)
    group.command("show")(show)
    group.command("events")(events)
    app.add_typer(group, name="deployments")


def deploy(
    name: Name,
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL[@VERSION|@ALIAS][=WEIGHT]...",
            help="What answers, the newest version when only MODEL. Weights share the requests out; 1 when left out.",
        ),
    ],
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return before the versions are loaded.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait until they are ready.")] = 120.0,
    max_batch_rows: serving.MaxBatchRows = None,
    max_queue_delay: serving.MaxQueueDelay = None,
    max_queue_rows: serving.MaxQueueRows = None,
    cache: serving.Cache = None,
    on_demand: serving.OnDemand = None,
    engine: serving.Engine = None,
    worker_memory: serving.WorkerMemory = None,
    compute_timeout: serving.ComputeTimeout = None,
    require_signature: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="PUBLIC_KEY",
            help="Load only versions that this key signed; may be repeated: one is enough. Stays until it is changed.",
        ),
    ] = None,
    allow_unsigned: Annotated[bool, typer.Option("--allow-unsigned", help="Ask for no signature any more.")] = False,
    reset_serving: Annotated[
        bool, typer.Option("--reset-serving", help="Begin with the default settings instead of those it has.")
    ] = False,
    reason: Reason = "",
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Let versions answer under a name. What answered before goes on until they are ready.

    A deployment that is there already keeps the serving settings that no option names; --reset-serving drops them. It
    also goes on to require the signatures that it did.
    """
    if require_signature and allow_unsigned:
        raise InvalidInputError(
            "either --require-signature or --allow-unsigned, not both", reason="SIGNATURE_OPTIONS_CONTRADICT"
        )
    settings = serving.serving_settings(
        max_batch_rows, max_queue_delay, max_queue_rows, cache, on_demand, engine, worker_memory, compute_timeout
    )
    with connected(endpoint) as client:
        deployment = client.deploy(
            name,
            targets,
            serving=settings,
            reset_serving=reset_serving,
            trusted_keys=[] if allow_unsigned else require_signature or None,
            actor=this_user(),
            reason=reason,
        )
        if not no_wait:
            deployment = _wait(client, name, timeout)
    if as_json:
        write_json(deployment)
    else:
        state = "will answer" if no_wait else "answers"
        say(f"{name} {state} with {_targets_text(deployment.targets)}")


def undeploy(name: Name, reason: Reason = "", endpoint: Endpoint = None, as_json: Json = False) -> None:
    """End a deployment. The record of what changed it stays."""
    with connected(endpoint) as client:
        client.undeploy(name, actor=this_user(), reason=reason)
    if as_json:
        write_json({"deleted": f"deployments/{name}"})
    else:
        say(f"{name} no longer answers")


def ls(endpoint: Endpoint = None, as_json: Json = False) -> None:
    """List deployments."""
    with connected(endpoint) as client:
        deployments = list(client.deployments())
    if as_json:
        write_json(deployments)
    else:
        write_deployments(deployments)


def show(name: Name, endpoint: Endpoint = None, as_json: Json = False) -> None:
    """Show one deployment, and what each replica says of its versions."""
    with connected(endpoint) as client:
        deployment = client.deployment(name)
    if as_json:
        write_json(deployment)
        return
    from maas.rollout.v1.deployment_pb2 import TargetState
    from maas.signatures import PublicKey

    write_deployments([deployment])
    typer.echo()
    write_table(("SETTING", "VALUE"), serving.serving_text(deployment.serving))
    if deployment.trusted_keys:
        typer.echo()
        write_table(("TRUSTED KEY",), ((PublicKey.parse(pem).fingerprint,) for pem in deployment.trusted_keys))
    if deployment.statuses:
        typer.echo()
        write_table(
            ("VERSION", "REPLICA", "STATE", "MESSAGE"),
            (
                (short_version(one.version), one.replica, state_text(TargetState.Name(one.state)), one.message)
                for one in deployment.statuses
            ),
        )


def events(name: Name, endpoint: Endpoint = None, as_json: Json = False) -> None:
    """List what changed a deployment's traffic: what, when, by whom, why."""
    with connected(endpoint) as client:
        found = list(client.deployment_events(name))
    if as_json:
        write_json(found)
        return
    write_table(
        ("WHEN", "WHAT", "BEFORE", "AFTER", "BY", "WHY"),
        (
            (
                ago_text(event.time),
                _action_text(event),
                _targets_text(event.targets_before),
                _targets_text(event.targets_after),
                event.actor,
                event.reason,
            )
            for event in found
        ),
        empty=f"nothing ever changed {name}",
    )


def predict(
    name: Name,
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="A text; may be repeated.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="A text a line; or JSON: texts, as /predict takes them, or tensors by name. - is standard input.",
            allow_dash=True,
        ),
    ] = None,
    version: Annotated[str, typer.Option(help="Ask this version, by its number.")] = "",
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for each answer.")] = 30.0,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Ask a deployment."""
    content = _read_inputs(file) if file is not None else []
    if isinstance(content, Mapping):
        if text:
            raise InvalidInputError("texts and tensors cannot be asked together", reason="INPUT_INVALID")
        with connected(endpoint) as client:
            outputs = client.infer(name, content, version=version, timeout=timeout)
        write_json({tensor: array.tolist() for tensor, array in outputs.items()})
        return
    texts = [*(text or []), *content]
    if not texts:
        raise InvalidInputError("nothing to ask: give --text or --file", reason="INPUT_MISSING")
    with connected(endpoint) as client:
        predictions: list[Prediction] = []
        for begin in range(0, len(texts), _ROWS_A_REQUEST):
            part = texts[begin : begin + _ROWS_A_REQUEST]
            predictions += client.predict(name, part, version=version, timeout=timeout)
    if as_json:
        write_json([_prediction_json(one, asked) for one, asked in zip(predictions, texts, strict=True)])
        return
    write_table(
        (">CLASS", "LABEL", ">PROBABILITY", "VERSION", "TEXT"),
        (
            (one.predicted, one.label, f"{one.probabilities[one.predicted]:.3f}", one.version, _shortened(asked))
            for one, asked in zip(predictions, texts, strict=True)
        ),
    )


def write_deployments(deployments: "list[Deployment]") -> None:
    """Write deployments as a table."""
    from maas.rollout.v1.deployment_pb2 import DeploymentState

    write_table(
        ("DEPLOYMENT", "STATE", "TARGETS", "CHANGED", "MESSAGE"),
        (
            (
                last_segment(one.name),
                state_text(DeploymentState.Name(one.state)),
                _targets_text(one.targets),
                ago_text(one.update_time),
                one.message,
            )
            for one in deployments
        ),
        empty="nothing is deployed yet; do it with: maas deploy NAME MODEL",
    )


def _wait(client: "Client", name: str, timeout: float) -> "Deployment":
    from maas.cli.progress import waiting

    with waiting(f"loading and warming {name}"):
        return client.wait_until_ready(name, timeout=timeout)


def _action_text(event: "DeploymentEvent") -> str:
    """Return what happened, and whose signatures are asked for from then on when that changed."""
    if event.trusted_keys_before == event.trusted_keys_after:
        return event.action
    trusted = ", ".join(fingerprint[:16] for fingerprint in event.trusted_keys_after)
    return f"{event.action}, {f'trusting {trusted}' if trusted else 'unsigned allowed'}"


def _targets_text(targets: "Iterable[Target]") -> str:
    found = list(targets)
    total = sum(target.weight for target in found)
    if len(found) == 1:
        return short_version(found[0].version)
    return ", ".join(f"{short_version(target.version)} {target.weight / total:.0%}" for target in found)


def _read_inputs(file: Path) -> list[str] | Mapping[str, Any]:
    """Return texts, or tensors by name."""
    try:
        content = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file} cannot be read: {error}", reason="INPUT_INVALID") from error
    if content.lstrip()[:1] not in ("[", "{"):
        return [line for line in content.splitlines() if line.strip()]
    try:
        found = json.loads(content)
    except ValueError as error:
        raise InvalidInputError(f"{file} begins like JSON, but is none: {error}", reason="INPUT_INVALID") from error
    if isinstance(found, Mapping) and len(found) == 1 and not found.keys().isdisjoint({"text", "texts"}):
        # The body of POST /predict.
        (texts,) = found.values()
        found = [texts] if isinstance(texts, str) else texts
    if isinstance(found, Mapping):
        return found
    if isinstance(found, list) and all(isinstance(one, str) for one in found):
        return found
    raise InvalidInputError(f"{file}: write a list of texts, or tensors by name", reason="INPUT_INVALID")


def _prediction_json(prediction: "Prediction", text: str) -> dict[str, Any]:
    return {
        "text": text,
        "predicted": prediction.predicted,
        "label": prediction.label,
        "probabilities": list(prediction.probabilities),
        "version": prediction.version,
    }


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:79]}…"

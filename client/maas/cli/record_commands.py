"""`maas models`: what is said of models and versions, who changed it, and what is no longer wanted."""

from datetime import UTC
from typing import TYPE_CHECKING, Annotated

import typer

from maas.cli.options import At, Endpoint, Json, Reason, connected
from maas.cli.output import last_segment, plain, say, short_version, state_text, tags_text, write_json, write_table
from maas.names import ModelName
from maas.references import ReferenceInvalid, parse_reference

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from maas.client import Client
    from maas.registry.v1.change_pb2 import Change
    from maas.registry.v1.model_pb2 import Model
    from maas.registry.v1.version_pb2 import Version, VersionState

Reference = Annotated[
    str, typer.Argument(metavar="MODEL[@VERSION|@ALIAS]", help="A model, or a version by number or alias.")
]
OneVersion = Annotated[str, typer.Argument(metavar="MODEL@VERSION", help="A version, by number or alias.")]


def history(
    reference: Annotated[
        str, typer.Argument(metavar="[MODEL[@VERSION|@ALIAS]]", help="A model with all in it, a version, or an alias.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest.")] = 100,
    at: At = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Say who changed what, when, from what to what, and why; newest first."""
    with connected(endpoint) as client:
        changes = [change for _, change in zip(range(limit), client.history(reference, at=at), strict=False)]
    if as_json:
        write_json(changes)
        return
    write_table(
        ("WHEN", "WHO", "WHAT", "", "WHY"),
        (
            (time_text(one.time), one.actor, _resource_text(one.resource), change_text(one), one.reason)
            for one in changes
        ),
        empty="nothing has happened",
    )


def describe(
    reference: Reference,
    description: Annotated[str, typer.Argument(help="The new description; at most 2,000 characters.")],
    reason: Reason = "",
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Describe a model or a version."""
    with connected(endpoint) as client:
        if isinstance(parse_reference(reference), ModelName):
            _show(client.update_model(reference, description=description, reason=reason), as_json=as_json)
        else:
            _show(client.update_version(reference, description=description, reason=reason), as_json=as_json)


def tag(
    reference: Reference,
    tags: Annotated[list[str], typer.Argument(metavar="KEY=VALUE|KEY-...", help="Set a tag, or remove it with KEY-.")],
    reason: Reason = "",
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Set and remove tags of a model or a version; others stay."""
    with connected(endpoint) as client:
        if isinstance(parse_reference(reference), ModelName):
            model = client.model(reference)
            wanted = _changed_tags(dict(model.tags), tags)
            _show(client.update_model(reference, tags=wanted, etag=model.etag, reason=reason), as_json=as_json)
        else:
            found = client.version(reference)
            wanted = _changed_tags(dict(found.tags), tags)
            _show(client.update_version(found.name, tags=wanted, etag=found.etag, reason=reason), as_json=as_json)


def ready(reference: OneVersion, reason: Reason = "", endpoint: Endpoint = None, as_json: Json = False) -> None:
    """Let a version be deployed that is pending or archived."""
    from maas.registry.v1.version_pb2 import VERSION_STATE_READY

    _set_state(reference, VERSION_STATE_READY, reason, endpoint, as_json=as_json)


def archive(reference: OneVersion, reason: Reason = "", endpoint: Endpoint = None, as_json: Json = False) -> None:
    """Keep a version, but let nobody deploy it any more."""
    from maas.registry.v1.version_pb2 import VERSION_STATE_ARCHIVED

    _set_state(reference, VERSION_STATE_ARCHIVED, reason, endpoint, as_json=as_json)


def rm(reference: Reference, reason: Reason = "", endpoint: Endpoint = None, as_json: Json = False) -> None:
    """Delete a version, or a model with all its versions; for 30 days, restore brings it back."""
    with connected(endpoint) as client:
        client.delete(reference, reason=reason)
    if as_json:
        write_json({"deleted": reference})
    else:
        say(f"deleted {reference}; back it comes with: maas models restore {reference}")


def restore(reference: Reference, reason: Reason = "", endpoint: Endpoint = None, as_json: Json = False) -> None:
    """Bring back a model or version that was deleted."""
    with connected(endpoint) as client:
        _show(client.restore(reference, reason=reason), as_json=as_json)


def watch(
    reference: Annotated[
        str, typer.Argument(metavar="[MODEL[@VERSION|@ALIAS]]", help="A model with all in it, a version, or an alias.")
    ] = "",
    token: Annotated[str, typer.Option(help="Go on behind this: the resume_token that --json wrote last.")] = "",
    seconds: Annotated[float | None, typer.Option(min=0.0, help="Stop after so long. Default: never.")] = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Write what changes in the registry as it happens; with --json, a document a line."""
    with connected(endpoint) as client:
        _write_news(client, reference, token, seconds, as_json=as_json)


def _write_news(client: "Client", reference: str, token: str, seconds: float | None, *, as_json: bool) -> None:
    import json

    for news in client.watch_registry(reference, resume_token=token, timeout=seconds):
        if as_json and news.changes:
            typer.echo(json.dumps(plain(news), ensure_ascii=False))
        elif not as_json:
            for change in news.changes:
                what = f"{_resource_text(change.resource)} {change_text(change)}"
                typer.echo(f"{time_text(change.time)}  {change.actor}  {what}  {change.reason}".rstrip())


def _set_state(
    reference: str, state: "VersionState.ValueType", reason: str, endpoint: str | None, *, as_json: bool
) -> None:
    with connected(endpoint) as client:
        _show(client.update_version(reference, state=state, reason=reason), as_json=as_json)


def _changed_tags(present: dict[str, str], wanted: list[str]) -> dict[str, str]:
    for text in wanted:
        key, equals, value = text.partition("=")
        if equals:
            present[key] = value
        elif text.endswith("-"):
            present.pop(text[:-1], None)
        else:
            raise ReferenceInvalid(f"{text!r} is no tag: write KEY=VALUE to set one, KEY- to remove it")
    return present


def _show(changed: "Model | Version", *, as_json: bool) -> None:
    if as_json:
        write_json(changed)
        return
    name = short_version(changed.name) if "/versions/" in changed.name else last_segment(changed.name)
    said = [changed.description, tags_text(changed.tags)]
    say(": ".join([name, ", ".join(text for text in said if text)]) if any(said) else f"{name} is changed")


def time_text(timestamp: "Timestamp") -> str:
    """Return a time as people read it where they are."""
    return timestamp.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def change_text(change: "Change") -> str:
    """Return what happened, as far as it fits on a line."""
    from maas.registry.v1.change_pb2 import ChangeKind
    from maas.registry.v1.version_pb2 import VersionState

    if "/aliases/" in change.resource:
        before = short_version(change.previous_version) or "nothing"
        after = short_version(change.alias.version) if change.HasField("alias") else "nothing"
        return f"from {before} to {after}"
    kind = ChangeKind.Name(change.kind).removeprefix("CHANGE_KIND_").lower()
    if not change.HasField("version"):
        return kind
    held = f", deployed by {', '.join(change.version.held_by)}" if change.version.held_by else ""
    return f"{kind}: {state_text(VersionState.Name(change.version.state))}{held}"


def _resource_text(name: str) -> str:
    """`models/reviews/aliases/production` as `reviews@production`."""
    return short_version(name) if name.count("/") == 3 else last_segment(name)

"""`maas keys make`, `maas models sign`, `verify` and `signatures`: who vouches for a version."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maas.cli.options import Endpoint, Json, connected
from maas.cli.output import ago_text, last_segment, say, short_version, write_json, write_table
from maas.errors import NotAllowedNowError

if TYPE_CHECKING:
    from maas.registry.v1.version_signature_pb2 import VersionSignature

Reference = Annotated[str, typer.Argument(metavar="MODEL[@VERSION|@ALIAS]", help="The newest version when only MODEL.")]


def add_to(app: typer.Typer) -> None:
    """Add `maas keys`."""
    group = typer.Typer(help="Keys that sign versions.", no_args_is_help=True)
    group.callback()(lambda: None)
    group.command("make")(make)
    app.add_typer(group, name="keys")


def make(
    file: Annotated[Path, typer.Argument(help="File for the private key; the public one goes to FILE.pub.")],
    as_json: Json = False,
) -> None:
    """Make a pair of keys: the private one signs, the public one checks."""
    signing = _signing()
    key, public = signing.make_key_pair(file), signing.public_path(file)
    if as_json:
        write_json({"private_key": str(file), "public_key": str(public), "fingerprint": key.fingerprint})
    else:
        say(f"wrote {file}, which stays with whoever signs, and {public}, which is for everybody")
        say(f"fingerprint {key.fingerprint}")


def sign(
    reference: Reference,
    private_key: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Private key, in PEM form.")],
    key_password: Annotated[
        str | None,
        typer.Option(envvar="MAAS_KEY_PASSWORD", help="The key's password; asked for when the key has one."),
    ] = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Say with a key that a version is exactly the files that it has. The signature stays with the version."""
    signing = _signing()
    if not signing.is_encrypted(private_key):
        key_password = None  # a variable may hold that of another key
    elif key_password is None:
        key_password = typer.prompt(f"Password of {private_key}", hide_input=True, err=True)
    with connected(endpoint) as client:
        signature = client.sign(reference, private_key, password=key_password)
    if as_json:
        write_json(_shown(signature))
    else:
        say(f"signed {_version_of(signature)} with key {last_segment(signature.name)}")


def verify(
    reference: Reference,
    public_key: Annotated[
        list[Path],
        typer.Option(exists=True, dir_okay=False, help="Public key that is trusted; may be repeated: one is enough."),
    ],
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Check that a trusted key signed a version, and that its stored bytes are the signed ones."""
    from maas.cli.progress import transfer

    with connected(endpoint) as client:
        version = client.version(reference)
        with transfer("reading", version.size_bytes) as moved:
            signature = client.verify(version.name, public_key, progress=moved)
    if as_json:
        write_json(_shown(signature) | {"files": len(version.files), "size_bytes": version.size_bytes})
        return
    say(
        f"{_version_of(signature)} is what key {last_segment(signature.name)} signed: {len(version.files)} files, "
        f"each with its SHA-256; stored {ago_text(signature.create_time)}"
    )


def signatures(reference: Reference, endpoint: Endpoint = None, as_json: Json = False) -> None:
    """List who signed a version, by the fingerprints of their keys."""
    with connected(endpoint) as client:
        found = list(client.signatures(reference))
    if as_json:
        write_json([_shown(one) for one in found])
        return
    write_table(
        ("VERSION", "KEY", "STORED"),
        ((_version_of(one), last_segment(one.name), ago_text(one.create_time)) for one in found),
        empty="nobody signed it yet; do it with: maas models sign",
    )


def _signing() -> Any:
    try:
        from maas import signing
    except ImportError as error:
        raise NotAllowedNowError(
            "signing needs the library model-signing; install it with: pip install 'maas[signing]'",
            reason="SIGNING_MISSING",
        ) from error
    return signing


def _version_of(signature: "VersionSignature") -> str:
    return short_version(signature.name.rpartition("/signatures/")[0])


def _shown(signature: "VersionSignature") -> dict[str, Any]:
    return {
        "version": signature.name.rpartition("/signatures/")[0],
        "fingerprint": last_segment(signature.name),
        "public_key": signature.public_key,
        "create_time": signature.create_time.ToJsonString(),
    }

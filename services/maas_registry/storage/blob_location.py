"""Where blobs are kept, as one sets it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast
from urllib.parse import parse_qsl, unquote, urlsplit

Scheme: TypeAlias = Literal["s3", "gs", "az"]

_FORMS = "use file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"


@dataclass(frozen=True, slots=True)
class FolderLocation:
    """A folder of this machine."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)


@dataclass(frozen=True, slots=True)
class BucketLocation:
    """A bucket of S3 or GCS, or a container of Azure. Its credentials are the environment's."""

    scheme: Scheme
    bucket: str
    prefix: str = ""
    endpoint: str = ""
    """Where S3 is, when it is not Amazon's; empty otherwise."""
    region: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")


BlobLocation: TypeAlias = FolderLocation | BucketLocation


def parse_blobs_url(url: str) -> BlobLocation:
    """Return what `file:///folder` or `s3://bucket/prefix?endpoint=https://host&region=name` names.

    Raises ValueError with what is wrong, without the URL.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("holds credentials; leave them to the usual variables, AWS_ACCESS_KEY_ID and the like")
    if parts.scheme == "file" and not parts.netloc and len(parts.path) > 1:
        return FolderLocation(Path(unquote(parts.path)))
    if parts.scheme not in ("s3", "gs", "az") or not parts.netloc:
        raise ValueError(f"is no place for blobs; {_FORMS}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = {"endpoint", "region"} if parts.scheme == "s3" else set()
    if unknown := options.keys() - known:
        raise ValueError(
            f"has {', '.join(sorted(unknown))} behind the question mark; only s3 takes endpoint and region"
        )
    endpoint = options.get("endpoint", "")
    if endpoint and (urlsplit(endpoint).scheme not in ("http", "https") or "@" in endpoint):
        raise ValueError("has an endpoint that is not http://host or https://host")
    return BucketLocation(
        cast(Scheme, parts.scheme), parts.netloc, unquote(parts.path).strip("/"), endpoint, options.get("region", "")
    )

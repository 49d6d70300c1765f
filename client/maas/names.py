"""Resource names as values. Parsed once at the edge; nothing else cuts strings.

`*_id` is one segment, a name is the whole path: `models/reviews/versions/3`.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class NameInvalid(ValueError):
    """A text is not a name of the wanted kind; the message says what one looks like."""


def check_id(text: str) -> str:
    """Return the text if it is an id: 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends.

    Raises NameInvalid.
    """
    if not _ID.fullmatch(text):
        raise NameInvalid(f"{text!r} is not an id: use 1 to 63 of a-z, 0-9 and -, a letter or digit at both ends")
    return text


_KINDS = {"*": (_ID, "{id}"), "#": (_NUMBER, "{number}"), "%": (_SHA256, "{sha256}")}


@cache
def _form(pattern: str) -> tuple[re.Pattern[str], tuple[str, ...], str]:
    """What a pattern matches, the kinds of its variable segments, and how it is written. Names are many: made once."""
    segments = pattern.split("/")
    kinds = tuple(segment for segment in segments if segment in _KINDS)
    matching = (f"({_KINDS[segment][0].pattern})" if segment in _KINDS else segment for segment in segments)
    written = "/".join("{}" if segment in _KINDS else segment for segment in segments)
    return re.compile("/".join(matching)), kinds, written


class _Name:
    """A name is its pattern, whose variable segments (`*` an id, `#` a number, `%` a SHA-256) are the fields."""

    __slots__ = ()
    PATTERN: ClassVar[str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NameInvalid."""
        form, kinds, _ = _form(cls.PATTERN)
        found = form.fullmatch(text)
        if found is None:
            shape = "/".join(_KINDS[want][1] if want in _KINDS else want for want in cls.PATTERN.split("/"))
            raise NameInvalid(f"{text!r} is not a name of the form {shape}")
        make: Any = cls
        values = zip(kinds, found.groups(), strict=True)
        name: Self = make(*(int(value) if kind == "#" else value for kind, value in values))
        return name

    def __str__(self) -> str:
        fields: tuple[str, ...] = self.__slots__
        return _form(self.PATTERN)[2].format(*(getattr(self, field) for field in fields))


@dataclass(frozen=True, slots=True, order=True)
class ModelName(_Name):
    """`models/{model}`."""

    PATTERN = "models/*"
    model_id: str


@dataclass(frozen=True, slots=True, order=True)
class VersionName(_Name):
    """`models/{model}/versions/{number}`."""

    PATTERN = "models/*/versions/#"
    model_id: str
    number: int

    @property
    def model(self) -> ModelName:
        """The model that it is a version of."""
        return ModelName(self.model_id)


@dataclass(frozen=True, slots=True, order=True)
class SignatureName(_Name):
    """`models/{model}/versions/{number}/signatures/{fingerprint}`; the fingerprint is that of the key."""

    PATTERN = "models/*/versions/#/signatures/%"
    model_id: str
    number: int
    fingerprint: str

    @property
    def version(self) -> VersionName:
        """The version that is signed."""
        return VersionName(self.model_id, self.number)


@dataclass(frozen=True, slots=True, order=True)
class AliasName(_Name):
    """`models/{model}/aliases/{alias}`."""

    PATTERN = "models/*/aliases/*"
    model_id: str
    alias_id: str

    @property
    def model(self) -> ModelName:
        """The model whose versions it points to."""
        return ModelName(self.model_id)


def parse_version_or_alias(text: str) -> VersionName | AliasName:
    """Return what the text names. Raises NameInvalid."""
    try:
        return AliasName.parse(text)
    except NameInvalid:
        return VersionName.parse(text)


@dataclass(frozen=True, slots=True, order=True)
class DatasetName(_Name):
    """`datasets/{dataset}`."""

    PATTERN = "datasets/*"
    dataset_id: str


@dataclass(frozen=True, slots=True, order=True)
class DatasetVersionName(_Name):
    """`datasets/{dataset}/versions/{number}`."""

    PATTERN = "datasets/*/versions/#"
    dataset_id: str
    number: int

    @property
    def dataset(self) -> DatasetName:
        """The dataset that it is a version of."""
        return DatasetName(self.dataset_id)


@dataclass(frozen=True, slots=True, order=True)
class BlobName(_Name):
    """`blobs/{sha256}`."""

    PATTERN = "blobs/%"
    sha256: str


@dataclass(frozen=True, slots=True, order=True)
class DeploymentName(_Name):
    """`deployments/{deployment}`."""

    PATTERN = "deployments/*"
    deployment_id: str


@dataclass(frozen=True, slots=True, order=True)
class JobName:
    """`trainingJobs/{job}` or `compressionJobs/{job}`; `collection` says which."""

    collection: str
    job_id: str
    COLLECTIONS: ClassVar[tuple[str, ...]] = ("trainingJobs", "compressionJobs")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NameInvalid."""
        collection = text.partition("/")[0]
        if collection not in cls.COLLECTIONS:
            raise NameInvalid(f"{text!r} is not a name of the form trainingJobs/{{id}} or compressionJobs/{{id}}")
        job_id = text.removeprefix(f"{collection}/")
        if not _ID.fullmatch(job_id):
            raise NameInvalid(f"{text!r} is not a name of the form {collection}/{{id}}")
        return cls(collection, job_id)

    def __str__(self) -> str:
        return f"{self.collection}/{self.job_id}"

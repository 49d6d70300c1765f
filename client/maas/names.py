"""Resource names as values. Parsed once at the edge; nothing else cuts strings.

`*_id` is one segment, a name is the whole path: `models/reviews/versions/3`.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Self

_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
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


def _segments(text: str, pattern: str) -> list[str]:
    """Return the variable segments of a name that matches `pattern` (`models/*/versions/#`)."""
    kinds = {"*": _ID, "#": _NUMBER, "%": _SHA256}
    wanted, given = pattern.split("/"), text.split("/")
    if len(wanted) != len(given) or not all(
        kinds[want].fullmatch(have) if want in kinds else want == have for want, have in zip(wanted, given, strict=True)
    ):
        shape = pattern.replace("*", "{id}").replace("#", "{number}").replace("%", "{sha256}")
        raise NameInvalid(f"{text!r} is not a name of the form {shape}")
    return [have for want, have in zip(wanted, given, strict=True) if want in kinds]


@dataclass(frozen=True, slots=True, order=True)
class ModelName:
    """`models/{model}`."""

    model_id: str
    PATTERN: ClassVar[str] = "models/*"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NameInvalid."""
        return cls(*_segments(text, cls.PATTERN))

    def __str__(self) -> str:
        return f"models/{self.model_id}"


@dataclass(frozen=True, slots=True, order=True)
class VersionName:
    """`models/{model}/versions/{number}`."""

    model_id: str
    number: int
    PATTERN: ClassVar[str] = "models/*/versions/#"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NameInvalid."""
        model_id, number = _segments(text, cls.PATTERN)
        return cls(model_id, int(number))

    @property
    def model(self) -> ModelName:
        """The model that it is a version of."""
        return ModelName(self.model_id)

    def __str__(self) -> str:
        return f"models/{self.model_id}/versions/{self.number}"


@dataclass(frozen=True, slots=True, order=True)
class AliasName:
    """`models/{model}/aliases/{alias}`."""

    model_id: str
    alias_id: str
    PATTERN: ClassVar[str] = "models/*/aliases/*"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NameInvalid."""
        return cls(*_segments(text, cls.PATTERN))

    @property
    def model(self) -> ModelName:
        """The model whose versions it points to."""
        return ModelName(self.model_id)

    def __str__(self) -> str:
        return f"models/{self.model_id}/aliases/{self.alias_id}"


def parse_version_or_alias(text: str) -> VersionName | AliasName:
    """Return what the text names. Raises NameInvalid."""
    try:
        return AliasName.parse(text)
    except NameInvalid:
        return VersionName.parse(text)


@dataclass(frozen=True, slots=True, order=True)
class DatasetName:
    """`datasets/{dataset}`."""

    dataset_id: str
    PATTERN: ClassVar[str] = "datasets/*"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NameInvalid."""
        return cls(*_segments(text, cls.PATTERN))

    def __str__(self) -> str:
        return f"datasets/{self.dataset_id}"


@dataclass(frozen=True, slots=True, order=True)
class DatasetVersionName:
    """`datasets/{dataset}/versions/{number}`."""

    dataset_id: str
    number: int
    PATTERN: ClassVar[str] = "datasets/*/versions/#"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NameInvalid."""
        dataset_id, number = _segments(text, cls.PATTERN)
        return cls(dataset_id, int(number))

    @property
    def dataset(self) -> DatasetName:
        """The dataset that it is a version of."""
        return DatasetName(self.dataset_id)

    def __str__(self) -> str:
        return f"datasets/{self.dataset_id}/versions/{self.number}"


@dataclass(frozen=True, slots=True, order=True)
class BlobName:
    """`blobs/{sha256}`."""

    sha256: str
    PATTERN: ClassVar[str] = "blobs/%"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NameInvalid."""
        return cls(*_segments(text, cls.PATTERN))

    def __str__(self) -> str:
        return f"blobs/{self.sha256}"


@dataclass(frozen=True, slots=True, order=True)
class DeploymentName:
    """`deployments/{deployment}`."""

    deployment_id: str
    PATTERN: ClassVar[str] = "deployments/*"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NameInvalid."""
        return cls(*_segments(text, cls.PATTERN))

    def __str__(self) -> str:
        return f"deployments/{self.deployment_id}"


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
        return cls(collection, *_segments(text, f"{collection}/*"))

    def __str__(self) -> str:
        return f"{self.collection}/{self.job_id}"

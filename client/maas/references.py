"""How people name a version: `reviews` (the newest), `reviews@2`, `reviews@production`, or a whole resource name."""

from dataclasses import dataclass

from maas.errors import InvalidInputError
from maas.names import AliasName, ModelName, NameInvalid, VersionName, check_id, parse_version_or_alias


class ReferenceInvalid(InvalidInputError):
    """A text is no name of what is meant; the message says what one looks like."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="INVALID_ARGUMENT", reason="REFERENCE_INVALID")


def parse_reference(text: str) -> ModelName | VersionName | AliasName:
    """Return what the text refers to; a model stands for its newest version. Raises ReferenceInvalid."""
    try:
        if text.startswith("models/"):
            return ModelName.parse(text) if text.count("/") == 1 else parse_version_or_alias(text)
        model_id, at, version = text.partition("@")
        model = ModelName(check_id(model_id))
        if not at:
            return model
        if version.isdigit():
            return VersionName.parse(f"{model}/versions/{version}")
        return AliasName(model.model_id, check_id(version))
    except NameInvalid as error:
        raise ReferenceInvalid(
            f"{text!r} is neither a model nor a version of one: write MODEL, MODEL@NUMBER or MODEL@ALIAS "
            "with ids of a-z, 0-9 and -"
        ) from error


@dataclass(frozen=True, slots=True)
class TargetReference:
    """A version and its share of a deployment's requests, as a person wrote them: `reviews@2=90`."""

    reference: str
    weight: int

    @classmethod
    def parse(cls, text: str) -> "TargetReference":
        """Read `MODEL[@VERSION|@ALIAS][=WEIGHT]`; the weight is 1 when it is not given. Raises ReferenceInvalid."""
        reference, equals, weight = text.partition("=")
        parse_reference(reference)
        if equals and not (weight.isdigit() and int(weight) <= 1_000_000):
            raise ReferenceInvalid(f"{text!r} has no weight of 0 to 1000000 behind the =")
        return cls(reference, int(weight) if equals else 1)

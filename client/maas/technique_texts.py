"""What the techniques of compression are and can be set to, in the words of the contract."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from maas.compression.v1.technique_pb2 import Technique
from maas.compression.v1.technique_pb2_comments import COMMENTS

_BEHAVIOUR = re.compile(r"^(Required \(one of these\)|Optional)\. ")
# `Default: 8.`, `Default: 0, no hints.`, `Default (0): half of the teacher's.`, `Default (empty): the fastest.`
_DEFAULT = re.compile(r" ?Default(?: \((?P<value>\w+)\))?: (?P<text>.+)\.$")


@dataclass(frozen=True, slots=True)
class SettingText:
    """One setting: its default, what that means where it does not say so by itself, and what the setting may be."""

    name: str
    default: str
    meaning: str
    text: str


@dataclass(frozen=True, slots=True)
class TechniqueText:
    """One technique and its settings."""

    name: str
    summary: str
    text: str
    settings: tuple[SettingText, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def technique_texts() -> list[TechniqueText]:
    """Return all techniques, in the contract's order."""
    return [_technique(field) for field in Technique.DESCRIPTOR.fields]


def _technique(field: FieldDescriptor) -> TechniqueText:
    settings = field.message_type
    assert settings is not None
    return TechniqueText(
        name=field.name,
        summary=_BEHAVIOUR.sub("", COMMENTS[f"Technique.{field.name}"]),
        text=COMMENTS[settings.name],
        settings=tuple(_setting(settings.name, setting.name) for setting in settings.fields),
    )


def _setting(message: str, name: str) -> SettingText:
    text = _BEHAVIOUR.sub("", COMMENTS[f"{message}.{name}"])
    found = _DEFAULT.search(text)
    assert found is not None, f"{message}.{name} does not say its default"
    if found["value"] is None:
        value, _, meaning = found["text"].partition(", ")
    else:
        value, meaning = found["value"], found["text"]
    return SettingText(name, value, meaning, text[: found.start()])

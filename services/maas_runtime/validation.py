"""Checks requests against the rules that stand in the protos (protovalidate)."""

from collections.abc import Set

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from protovalidate import Validator, Violation

from maas_runtime.failures import FieldViolation, InvalidInput


class RequestInvalid(InvalidInput):
    """A field breaks a rule of the contract."""

    reason = "REQUEST_INVALID"


class UpdateMaskInvalid(InvalidInput):
    """The mask names a field that cannot be changed."""

    reason = "UPDATE_MASK_INVALID"


def mask_paths(mask: FieldMask, changeable: Set[str]) -> set[str]:
    """Return the paths that are to change; without a mask, all that can. Raises UpdateMaskInvalid."""
    paths = set(mask.paths)
    if unknown := sorted(paths - changeable):
        raise UpdateMaskInvalid(
            f"update_mask: {unknown[0][:100]!r} cannot be changed; use {', '.join(sorted(changeable))}",
            violations=(FieldViolation("update_mask", "names a field that cannot be changed"),),
        )
    return paths or set(changeable)


class RequestValidator:
    """Holds the compiled rules, which cost some milliseconds for each type of message once."""

    def __init__(self) -> None:
        self._validator = Validator()

    def check(self, request: Message) -> None:
        """Raise RequestInvalid with every broken rule."""
        violations = tuple(_field_violation(violation) for violation in self._validator.collect_violations(request))
        if violations:
            text = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations)
            raise RequestInvalid(text, violations=violations)


def _field_violation(violation: Violation) -> FieldViolation:
    path = ""
    for element in violation.proto.field.elements if violation.proto.field else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value!r}]"
    return FieldViolation(path, violation.proto.message or violation.proto.rule_id)

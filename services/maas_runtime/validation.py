"""Checks requests against the rules that stand in the protos (protovalidate)."""

from google.protobuf.message import Message
from protovalidate import Validator, Violation

from maas_runtime.failures import FieldViolation, InvalidInput


class RequestInvalid(InvalidInput):
    """A field breaks a rule of the contract."""

    reason = "REQUEST_INVALID"


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

"""What a request may say beside its tensors: how urgent it is and how long it may wait. Equal over gRPC and REST."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from maas.oip.v2.grpc_service_pb2 import InferParameter
from maas_inference.front.failures import ParameterInvalid
from maas_runtime.failures import FieldViolation

_MICROSECOND: Final = 1e-6
_MAX_INTEGER: Final = 2**64 - 1


class RequestOptions(NamedTuple):
    """The parameters of a request that have a meaning here."""

    priority: int = 0
    """1 is the most urgent, 0 is that too: the default."""
    timeout_seconds: float | None = None
    """How long the answer may take; None: as long as the call."""

    @property
    def is_bulk(self) -> bool:
        """Whether it is work that can wait: it goes behind that of people who do."""
        return self.priority > 1

    def deadline(self, arrived: float, deadline: float) -> float:
        """Return the earlier of the call's deadline and the request's own."""
        return deadline if self.timeout_seconds is None else min(deadline, arrived + self.timeout_seconds)


NO_OPTIONS: Final = RequestOptions()


def read_options(parameters: Mapping[str, Any]) -> RequestOptions:
    """Return a request's options; parameters of other names are not looked at. Raises ParameterInvalid."""
    timeout = integer_parameter(parameters, "timeout")
    return RequestOptions(
        priority=integer_parameter(parameters, "priority"),
        timeout_seconds=timeout * _MICROSECOND if timeout else None,
    )


def grpc_parameters(parameters: Mapping[str, InferParameter]) -> dict[str, Any]:
    """Return parameters as plain values, as REST has them; one without a value is None."""
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        values[name] = getattr(parameter, choice) if choice else None
    return values


def integer_parameter(parameters: Mapping[str, Any], name: str) -> int:
    """Return a parameter that is an integer and not negative; 0 without it. Raises ParameterInvalid."""
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= _MAX_INTEGER:
        raise parameter_invalid(name, "an integer that is not negative")
    return value


def boolean_parameter(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    """Return a parameter that is true or false. Raises ParameterInvalid."""
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise parameter_invalid(name, "true or false")
    return value


def parameter_invalid(name: str, wanted: str) -> ParameterInvalid:
    """Return the failure for a parameter that is not what it should be."""
    return ParameterInvalid(
        f"the parameter {name} must be {wanted}",
        violations=(FieldViolation(f"parameters.{name}", f"must be {wanted}"),),
    )

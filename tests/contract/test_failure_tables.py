"""Every kind of failure has a status, every status an error of the client, and every reason is unique."""

import importlib
import pkgutil
import re

import grpc
import pytest

import maas.errors
import maas_runtime
from maas_runtime import failures
from maas_runtime.channel import KIND_OF_ERROR, failure_of
from maas_runtime.errors import STATUS_OF_KIND, wire_error

KINDS = [kind for kind in vars(failures).values() if isinstance(kind, type) and issubclass(kind, failures.Failure)]
SERVICES = ("maas_runtime", "maas_jobs", "maas_package", "maas_engine", "maas_learning", "maas_formats",
            "maas_registry", "maas_rollout", "maas_training", "maas_compression", "maas_inference",
            "maas_gateway")  # fmt: skip


def instance(kind: type[failures.Failure]) -> failures.Failure:
    named = failures.NotFound | failures.AlreadyExists | failures.NotAllowedNow | failures.DataCorrupt
    return kind("a sentence", name="models/a") if issubclass(kind, named) else kind("a sentence")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not failures.Failure])
def test_every_kind_has_a_status_and_comes_back_as_the_same_kind(kind: type[failures.Failure]) -> None:
    error = wire_error(instance(kind), "request-1")
    client_error = maas.errors.ERROR_OF_STATUS[error.code.name](
        "a sentence", code=error.code.name, reason=kind.reason, resource_name="models/a"
    )
    back = failure_of(client_error)
    assert type(back) is kind
    assert (back.reason, back.message) == (kind.reason, "a sentence")


def test_the_two_tables_name_the_same_statuses() -> None:
    own = {code.name for code in STATUS_OF_KIND.values()}
    # A deadline is the caller's own clock; no service raises it.
    assert own == set(maas.errors.ERROR_OF_STATUS) - {"DEADLINE_EXCEEDED"}
    assert set(KIND_OF_ERROR) == set(maas.errors.ERROR_OF_STATUS.values())
    assert all(hasattr(grpc.StatusCode, name) for name in own)


def all_failures() -> list[type[failures.Failure]]:
    for service in SERVICES:
        package = importlib.import_module(service)
        for module in pkgutil.walk_packages(package.__path__, f"{service}."):
            # Entry points of processes act when they are imported; torch is not needed to know the failures.
            if module.name.rpartition(".")[2] != "__main__":
                importlib.import_module(module.name)

    def below(kind: type[failures.Failure]) -> list[type[failures.Failure]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    return [kind for kind in below(failures.Failure) if kind.__module__.partition(".")[0] in SERVICES]


def test_every_reason_is_unique_and_in_upper_snake() -> None:
    reasons: dict[str, type[failures.Failure]] = {}
    for kind in all_failures():
        assert re.fullmatch(r"[A-Z][A-Z0-9_]{0,62}", kind.reason), kind
        other = reasons.setdefault(kind.reason, kind)
        assert other is kind, f"{kind} and {other} have the same reason {kind.reason}"
    assert maas_runtime.__name__ in {kind.__module__.partition(".")[0] for kind in reasons.values()}

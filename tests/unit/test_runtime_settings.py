from pathlib import Path

import pytest

from maas_runtime.settings import Environment, ProcessSettings, SettingsInvalid


def test_all_bad_values_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment = Environment(
        {
            "MAAS_HOME": str(tmp_path / "file" / "below"),
            "MAAS_LISTEN": "nonsense",
            "MAAS_METRICS_LISTEN": "unix:/" + "x" * 120,
            "MAAS_LOG_LEVEL": "LOUD",
            "MAAS_DRAIN_SECONDS": "-1",
        }
    )
    ProcessSettings.read(environment)
    with pytest.raises(SettingsInvalid) as caught:
        environment.check()
    assert [violation.field for violation in caught.value.violations] == [
        "MAAS_HOME",
        "MAAS_LISTEN",
        "MAAS_METRICS_LISTEN",
        "MAAS_LOG_LEVEL",
        "MAAS_DRAIN_SECONDS",
    ]


def test_good_values_are_read(tmp_path: Path) -> None:
    environment = Environment(
        {"MAAS_HOME": str(tmp_path / "new"), "MAAS_LISTEN": "unix:/run/a.sock", "MAAS_METRICS_LISTEN": "127.0.0.1:9090"}
    )
    settings = ProcessSettings.read(environment)
    environment.check()
    assert settings.home.is_dir()
    assert (settings.listen, settings.metrics_listen) == ("unix:/run/a.sock", "127.0.0.1:9090")
    assert (settings.log_level, settings.drain_seconds) == ("INFO", 5.0)


@pytest.mark.parametrize(("text", "problem"), [("ten", "whole number"), ("11", "use 1 to 10"), ("0", "use 1 to 10")])
def test_an_integer_out_of_its_range_says_the_range(text: str, problem: str) -> None:
    environment = Environment({"MAAS_X": text})
    environment.integer("MAAS_X", 5, low=1, high=10)
    with pytest.raises(SettingsInvalid, match=problem):
        environment.check()


def test_a_missing_variable_without_default_is_named() -> None:
    environment = Environment({})
    environment.address("MAAS_LISTEN")
    with pytest.raises(SettingsInvalid, match="MAAS_LISTEN is not set"):
        environment.check()

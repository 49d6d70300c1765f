"""What the gateway's processes are told, and how Envoy is started with it."""

import json
import socket
from pathlib import Path

import pytest

from maas_gateway.envoy import PortInUse, check_free, prepare
from maas_gateway.settings import EnvoySettings, GatewaySettings
from maas_runtime.envoy import envoy_binary
from maas_runtime.settings import SettingsInvalid


def variables(folder: Path, **more: str) -> dict[str, str]:
    return {
        "MAAS_HOME": str(folder),
        "MAAS_RUN_DIR": str(folder),
        "MAAS_LISTEN": f"unix:{folder}/gateway.sock",
        "MAAS_HTTP_LISTEN": f"unix:{folder}/http.sock",
        **{
            f"MAAS_{name}_ADDRESS": f"unix:/run/{name.lower()}.sock"
            for name in ("REGISTRY", "TRAINING", "COMPRESSION", "ROLLOUT", "INFERENCE")
        },
        **more,
    }


def test_settings_have_defaults_for_what_one_machine_needs(tmp_path: Path) -> None:
    settings = GatewaySettings.from_env(variables(tmp_path))
    assert settings.public_listen == "127.0.0.1:8080"
    assert settings.fronts == ()
    assert settings.metrics_targets == {}
    assert not settings.access_log


def test_lists_of_addresses_are_read(tmp_path: Path) -> None:
    settings = GatewaySettings.from_env(
        variables(
            tmp_path,
            MAAS_FRONT_ADDRESSES="a:1, b:2",
            MAAS_METRICS_TARGETS="registry=unix:/run/registry.sock,training=c:3",
        )
    )
    assert settings.fronts == ("a:1", "b:2")
    assert settings.metrics_targets == {"registry": "unix:/run/registry.sock", "training": "c:3"}


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    wrong = variables(
        tmp_path, MAAS_FRONT_ADDRESSES="a:1,b", MAAS_METRICS_TARGETS="registry,t=x", MAAS_ACCESS_LOG="maybe"
    )
    del wrong["MAAS_REGISTRY_ADDRESS"]
    with pytest.raises(SettingsInvalid) as caught:
        GatewaySettings.from_env(wrong)
    assert [violation.field for violation in caught.value.violations] == [
        "MAAS_REGISTRY_ADDRESS",
        "MAAS_METRICS_TARGETS",
        "MAAS_METRICS_TARGETS",
        "MAAS_FRONT_ADDRESSES",
        "MAAS_ACCESS_LOG",
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_launch_is_a_written_bootstrap_and_a_command_that_names_it(tmp_path: Path) -> None:
    settings = EnvoySettings.from_env(
        variables(tmp_path, MAAS_PUBLIC_LISTEN=f"127.0.0.1:{free_port()}", MAAS_FRONT_ADDRESSES="a:1")
    )
    launch = prepare(settings, {"PATH": "/bin"})
    assert launch.program == envoy_binary()
    assert launch.program.is_file()
    assert launch.environment == {"PATH": "/bin"}
    path = launch.arguments[launch.arguments.index("--config-path") + 1]
    bootstrap = json.loads(Path(path).read_text())
    assert bootstrap["node"]["id"] == "gateway"
    assert bootstrap["admin"]["address"]["pipe"]["path"] == f"{tmp_path}/envoy-admin.sock"


def test_the_front_inside_envoy_brings_its_environment(tmp_path: Path) -> None:
    settings = EnvoySettings.from_env(variables(tmp_path, MAAS_PUBLIC_LISTEN=f"127.0.0.1:{free_port()}"))
    assert settings.embedded
    environment = prepare(settings, {"MAAS_RUN_DIR": str(tmp_path)}).environment
    assert "libpython" in environment["LD_PRELOAD"]
    assert environment["MAAS_RUN_DIR"] == str(tmp_path)


def test_a_port_that_somebody_listens_at_is_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortInUse, match="--port"):
            check_free(f"127.0.0.1:{taken.getsockname()[1]}")


def test_a_port_that_was_just_left_is_free() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = server.getsockname()
        with socket.create_connection(address) as client:
            accepted, _ = server.accept()
            accepted.close()  # this side closes first, so its address stays behind in TIME_WAIT
            assert client.recv(1) == b""
    check_free(f"127.0.0.1:{address[1]}")

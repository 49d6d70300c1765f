"""`unix:/path` and `host:port` as Envoy's addresses."""

import ipaddress

from envoy.config.core.v3 import address_pb2


def envoy_address(text: str) -> address_pb2.Address:
    """Return the address that settings call `text`."""
    if text.startswith("unix:"):
        return address_pb2.Address(pipe=address_pb2.Pipe(path=text.removeprefix("unix:")))
    host, _, port = text.rpartition(":")
    return address_pb2.Address(socket_address=address_pb2.SocketAddress(address=host.strip("[]"), port_value=int(port)))


def needs_dns(text: str) -> bool:
    """Return whether the host is a name that has to be looked up."""
    if text.startswith("unix:"):
        return False
    try:
        ipaddress.ip_address(text.rpartition(":")[0].strip("[]"))
    except ValueError:
        return True
    return False

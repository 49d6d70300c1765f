"""Envoy's typed configuration: a message inside `Any`, in bytes that depend on nothing but its content."""

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message


def packed(message: Message) -> any_pb2.Any:
    """Return the message as Envoy takes it inside other messages."""
    result = any_pb2.Any()
    result.Pack(message, deterministic=True)
    return result


def seconds(value: float) -> duration_pb2.Duration:
    """Return a span of time."""
    result = duration_pb2.Duration()
    result.FromMilliseconds(round(value * 1000))
    return result

"""What commands write: tables for people, one JSON document for scripts, progress only where somebody looks."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

_WIDTH_WITHOUT_TERMINAL = 200
"""Columns of a table that goes into a file or a pipe, so that nothing is cut."""


def console() -> Console:
    """Return where results go."""
    return _console(stderr=False)


def notes() -> Console:
    """Return where progress and remarks go, so that results can be piped."""
    return _console(stderr=True)


def write_json(value: Any) -> None:
    """Write a value, a message or a list of them, as one JSON document."""
    # Made as a whole first, so that a bug writes nothing rather than half a document.
    sys.stdout.write(json.dumps(_plain_value(value), indent=2, ensure_ascii=False) + "\n")


def write_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
    """Write rows under their columns, or a sentence when there are none. Columns that begin with > are numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", no_wrap=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    if table.row_count or not empty:
        console().print(table)
    else:
        notes().print(empty, markup=False)


def say(sentence: str) -> None:
    """Write a remark to stderr."""
    notes().print(sentence, markup=False, highlight=False, soft_wrap=True)


def plain(message: "Message") -> dict[str, Any]:
    """Return a message as JSON values: numbers stay numbers, times are RFC 3339, what is absent is left out."""
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp
    from google.rpc.status_pb2 import Status

    if isinstance(message, Status):
        return _plain_status(message)
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.has_presence and not message.HasField(field.name):
            continue
        if isinstance(value, Timestamp | Duration):
            result[field.name] = value.ToJsonString()
        elif field.enum_type is not None:
            result[field.name] = field.enum_type.values_by_number[value].name
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            result[field.name] = {str(key): _plain_value(value[key]) for key in sorted(value)}
        elif field.is_repeated:
            result[field.name] = [_plain_value(item) for item in value]
        else:
            result[field.name] = _plain_value(value)
    return result


def bytes_text(size_bytes: float) -> str:
    """Return a size as people read it: `4.1 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000 or unit == "GB":
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    raise AssertionError("the last unit returns")


def duration_text(seconds: float) -> str:
    """Return a duration as people read it: `3.2 s`, `4 min`, `2 h 5 min`, `3 d`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 24 * 60 else f"{minutes // (24 * 60)} d"


def ago_text(timestamp: "Timestamp") -> str:
    """Return how long ago something was; nothing for a time that is not set."""
    if not timestamp.seconds:
        return ""
    return f"{duration_text(max(0.0, datetime.now(UTC).timestamp() - timestamp.seconds))} ago"


def state_text(name: str) -> str:
    """Return an enum value's name as a word: `JOB_STATE_RUNNING` is `running`."""
    return name.rpartition("_STATE_")[2].lower()


def tags_text(tags: Mapping[str, str]) -> str:
    """Return tags as people write them: `team=nlp owner=ann`."""
    return " ".join(f"{key}={tags[key]}" for key in sorted(tags))


def last_segment(name: str) -> str:
    """Return the id at the end of a resource name."""
    return name.rpartition("/")[2]


def short_version(name: str) -> str:
    """Return a version's name as people write it: `reviews@3`."""
    parts = name.split("/")
    return f"{parts[1]}@{parts[3]}" if len(parts) == 4 else name


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _WIDTH_WITHOUT_TERMINAL)


def _plain_value(value: Any) -> Any:
    from google.protobuf.message import Message

    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, dict):
        return {key: _plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    return value


def _plain_status(status: Any) -> dict[str, Any]:
    from google.rpc import code_pb2, error_details_pb2

    info = error_details_pb2.ErrorInfo()
    reason = next((info.reason for detail in status.details if detail.Unpack(info)), "")
    return {"code": code_pb2.Code.Name(status.code), "message": status.message, "reason": reason}

"""Types of columns that hold and order the same values in every database."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Dialect, String, TypeDecorator
from sqlalchemy.types import TypeEngine

from maas_runtime.database.failures import TextNotStorable

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UtcTime(TypeDecorator[datetime]):
    """A point in time, as whole microseconds since 1970."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        """Return what is stored."""
        return None if value is None else (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return what was meant."""
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class Text(TypeDecorator[str]):
    """A text, ordered by its bytes, whatever the language of the server is. Raises TextNotStorable for a NUL in it."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column's type."""
        return dialect.type_descriptor(String(collation="C" if dialect.name == "postgresql" else None))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Return what is stored."""
        if value is not None and "\0" in value:
            raise TextNotStorable("a text holds the character NUL: leave it out")
        return value

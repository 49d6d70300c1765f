"""Reads Thrift's compact encoding, which Parquet's footers and page headers are in, without trusting it.

Nothing is built that was not asked for: whoever reads walks over the fields of a struct, takes those it knows and
skips the others, so that memory does not grow with what the bytes say; and it walks over MAX_PARTS of them at most, so
that time does not either.
"""

from collections.abc import Iterator

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)

MAX_PARTS = 1_000_000
"""Fields and items that are walked over; about two seconds."""

_INTEGERS = frozenset({I16, I32, I64})
_MAX_DEPTH = 32


class ThriftInvalid(ValueError):
    """The bytes are not what they have to be."""


class ThriftCutShort(ThriftInvalid):
    """The bytes end before the value does."""


class CompactReader:
    """A place in some bytes. Every method raises ThriftInvalid."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0
        self._parts = 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield the number and kind of each field of a struct; its value has to be read or skipped before the next."""
        number = 0
        while header := self._byte():
            self._count_part()
            step, kind = header >> 4, header & 0x0F
            number = number + step if step else self._signed()
            if not TRUE <= kind <= STRUCT:
                raise ThriftInvalid(f"a field of the unknown kind {kind}")
            yield number, kind

    def integer(self, kind: int) -> int:
        """Return a whole number."""
        if kind not in _INTEGERS:
            raise ThriftInvalid("a whole number was expected")
        return self._signed()

    def text(self, kind: int) -> str:
        """Return a UTF-8 text."""
        if kind != BINARY:
            raise ThriftInvalid("a text was expected")
        begin, end = self._advance(self._unsigned())
        try:
            return self._content[begin:end].decode()
        except UnicodeDecodeError as error:
            raise ThriftInvalid("a text is not UTF-8") from error

    def structs(self, kind: int) -> Iterator[None]:
        """Step into each struct of a list; its fields have to be read before the next."""
        if kind != LIST:
            raise ThriftInvalid("a list was expected")
        size, item = self._list_header()
        if size and item != STRUCT:
            raise ThriftInvalid("a list of structs was expected")
        for _ in range(size):
            self._count_part()
            yield

    def expect_struct(self, kind: int) -> None:
        """Make sure that a field is a struct."""
        if kind != STRUCT:
            raise ThriftInvalid("a struct was expected")

    def skip(self, kind: int, depth: int = 0) -> None:
        """Go on behind a field's value."""
        if depth > _MAX_DEPTH:
            raise ThriftInvalid(f"structs stand in one another more than {_MAX_DEPTH} deep")
        if kind in _INTEGERS:
            self._unsigned()
        elif kind == BYTE:
            self._advance(1)
        elif kind == DOUBLE:
            self._advance(8)
        elif kind == BINARY:
            self._advance(self._unsigned())
        elif kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        elif kind in (LIST, SET):
            size, item = self._list_header()
            if item in (TRUE, FALSE, BYTE):
                self._advance(size)
                return
            for _ in range(size):
                self._skip_item(item, depth + 1)
        elif kind == MAP:
            self._skip_map(depth + 1)

    def _skip_map(self, depth: int) -> None:
        size = self._unsigned()
        kinds = self._byte() if size else 0
        for _ in range(size):
            self._skip_item(kinds >> 4, depth)
            self._skip_item(kinds & 0x0F, depth)

    def _skip_item(self, kind: int, depth: int) -> None:
        """Go on behind an item of a list or map. Each takes at least one byte, so that a claimed length ends soon."""
        self._count_part()
        if kind in (TRUE, FALSE):
            self._advance(1)
        elif BYTE <= kind <= STRUCT:
            self.skip(kind, depth)
        else:
            raise ThriftInvalid(f"a list of the unknown kind {kind}")

    def _count_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ThriftInvalid(f"it has more than {MAX_PARTS:,} parts")

    def _list_header(self) -> tuple[int, int]:
        header = self._byte()
        size = header >> 4
        return (self._unsigned() if size == 15 else size), header & 0x0F

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ThriftInvalid("a number of more than 64 bits")

    def _byte(self) -> int:
        begin, _ = self._advance(1)
        return self._content[begin]

    def _advance(self, size_bytes: int) -> tuple[int, int]:
        begin, end = self.position, self.position + size_bytes
        if end > len(self._content):
            raise ThriftCutShort("it ends in the middle of a value")
        self.position = end
        return begin, end

"""What in an ONNX file could reach outside its package, or claim more than it holds; found without loading it.

The file is Protocol Buffers' wire format, walked field by field over a mapping of the file: nothing of it is copied, so
a file of any size costs the same memory. Which field holds what is onnx.proto's.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod
from posixpath import dirname, join

from maas_package.content import Content
from maas_package.manifest import PackagePathInvalid, check_path
from maas_runtime.failures import InvalidInput

_MAX_DEPTH = 32
_MAX_PARTS = 2_000_000
_MAX_DIMENSIONS = 64
_MAX_SPARSE_ELEMENTS = 2**31
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Message -> number of a field -> the message it holds. Fields that are not here hold neither tensors nor places.
_MESSAGES = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
_TENSOR_DIMS, _TENSOR_EXTERNAL = 1, 13
_SPARSE_DIMS = 3


class OnnxInvalid(InvalidInput):
    """An ONNX file is damaged, leads out of its package, or claims more than it holds."""

    reason = "ONNX_INVALID"


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    wire_type: int
    value: int
    begin: int
    end: int


class _Damaged(Exception):
    """The bytes are no message."""


def check_onnx(content: Content, path: str, members: Collection[str]) -> None:
    """Look into the ONNX file called `path` of a package with these members. Raises OnnxInvalid."""
    walk = _Walk(content, path, members)
    try:
        walk.message("Model", 0, len(content), 0)
    except _Damaged as error:
        raise OnnxInvalid(f"{path} is not ONNX, or is cut short: {error}", path=path) from error


class _Walk:
    """One way through one file."""

    def __init__(self, content: Content, path: str, members: Collection[str]) -> None:
        self._content = content
        self._path = path
        self._members = members
        self._parts = 0

    def message(self, kind: str, begin: int, end: int, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise self._invalid(f"is nested more than {_MAX_DEPTH} deep")
        if kind == "Tensor":
            self._tensor(begin, end)
            return
        inner = _MESSAGES[kind]
        dims: list[int] = []
        for field in self._fields(begin, end):
            if field.wire_type == _BYTES and field.number in inner:
                self.message(inner[field.number], field.begin, field.end, depth + 1)
            elif kind == "SparseTensor" and field.number == _SPARSE_DIMS:
                dims += self._numbers(field)
        if dims and self._elements(dims) > _MAX_SPARSE_ELEMENTS:
            raise self._invalid(f"has a sparse tensor of {self._elements(dims)} elements")

    def _tensor(self, begin: int, end: int) -> None:
        dims: list[int] = []
        held_bytes = end - begin
        place: dict[str, str] = {}
        for field in self._fields(begin, end):
            if field.number == _TENSOR_DIMS:
                dims += self._numbers(field)
                if len(dims) > _MAX_DIMENSIONS:
                    raise self._invalid(f"has a tensor of more than {_MAX_DIMENSIONS} dimensions")
            elif field.number == _TENSOR_EXTERNAL and field.wire_type == _BYTES:
                key, value = self._entry(field)
                place[key] = value
        if place:
            self._check_place(place)
        elif self._elements(dims) > 8 * held_bytes:
            raise self._invalid(f"has a tensor of {self._elements(dims)} elements in {held_bytes} bytes")

    def _check_place(self, place: dict[str, str]) -> None:
        location = place.get("location", "")
        try:
            member = check_path(join(dirname(self._path), check_path(location)))
        except PackagePathInvalid as error:
            raise self._invalid(f"keeps a tensor at {location[:200]!r}, which is outside the package") from error
        if member not in self._members:
            raise self._invalid(f"keeps a tensor in {member[:200]}, which is not in the package")

    def _elements(self, dims: list[int]) -> int:
        if any(dim >= 2**63 for dim in dims):
            raise self._invalid("has a tensor with a negative dimension")
        return prod(dims)

    def _entry(self, field: _Field) -> tuple[str, str]:
        texts = {1: "", 2: ""}
        for inner in self._fields(field.begin, field.end):
            if inner.number in texts and inner.wire_type == _BYTES:
                texts[inner.number] = self._content[inner.begin : min(inner.end, inner.begin + 4096)].decode(
                    "utf-8", "replace"
                )
        return texts[1], texts[2]

    def _numbers(self, field: _Field) -> list[int]:
        if field.wire_type == _VARINT:
            return [field.value]
        numbers: list[int] = []
        position = field.begin
        while position < field.end and len(numbers) <= _MAX_DIMENSIONS:
            number, position = self._varint(position, field.end)
            numbers.append(number)
        return numbers

    def _fields(self, begin: int, end: int) -> Iterator[_Field]:
        position = begin
        while position < end:
            self._parts += 1
            if self._parts > _MAX_PARTS:
                raise self._invalid(f"has more than {_MAX_PARTS} parts")
            key, position = self._varint(position, end)
            number, wire_type, value, start = key >> 3, key & 7, 0, position
            match wire_type:
                case 0:
                    value, position = self._varint(position, end)
                case 1:
                    position += 8
                case 2:
                    length, start = self._varint(position, end)
                    position = start + length
                case 5:
                    position += 4
                case _:
                    raise _Damaged(f"a field of type {wire_type} at byte {position}")
            if position > end or number == 0:
                raise _Damaged(f"a field ends behind its message at byte {position}")
            yield _Field(number, wire_type, value, start, position)

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        number = 0
        for shift in range(0, 70, 7):
            if position >= end:
                break
            byte = self._content[position]
            position += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number, position
        raise _Damaged(f"a number without an end at byte {position}")

    def _invalid(self, sentence: str) -> OnnxInvalid:
        return OnnxInvalid(f"{self._path} {sentence}", path=self._path)

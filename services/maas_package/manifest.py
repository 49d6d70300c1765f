"""manifest.json: what a package holds and how it is called; docs/package-format.md explains each field.

A manifest is a value. `Manifest.from_json` is the only way in from bytes, and refuses whatever it does not know;
`to_json` writes the one canonical form, so equal manifests have equal hashes.
"""

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from maas_runtime.failures import FieldViolation, InvalidInput

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
_MAX_VALUES = 100_000
"""Objects and lists in a manifest; each takes much more memory than its text."""

TEXT_CLASSIFICATION = "text-classification"
TENSORS = "tensors"
"""Named inputs and outputs, with no meaning that this project knows."""
TASKS = frozenset({TEXT_CLASSIFICATION, TENSORS})

# The Open Inference Protocol's names.
DATATYPES = frozenset(
    {"BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"}
)

JsonObject: TypeAlias = dict[str, Any]
T = TypeVar("T")


class ManifestInvalid(InvalidInput):
    """manifest.json is not a manifest; the violation names the field."""

    reason = "MANIFEST_INVALID"


class ManifestVersionUnsupported(InvalidInput):
    """The manifest was written for another schema than this program knows."""

    reason = "MANIFEST_VERSION_UNSUPPORTED"


class PackagePathInvalid(InvalidInput):
    """A path in the manifest is not a plain relative path inside the package."""

    reason = "PACKAGE_PATH_INVALID"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: its name, OIP datatype, and shape with -1 for a size that may vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextInput:
    """The package also takes texts, as a BYTES tensor `input`, and turns them into the tensor `feeds`."""

    input: str
    feeds: str
    tokenizer: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class ArchitectureRef:
    """An entry point of the group `maas.architectures`, and the configuration to build it with."""

    name: str
    config: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepRef:
    """An entry point of the group `maas.steps`, and the configuration to make it with."""

    name: str
    config: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Float32Storage:
    """The weights file holds the tensors as they are."""


@dataclass(frozen=True, slots=True)
class FixedPointStorage:
    """Tensors named in `scales` are stored as integers; a weight is its integer times its tensor's scale."""

    scales: Mapping[str, float]


Storage: TypeAlias = Float32Storage | FixedPointStorage


@dataclass(frozen=True, slots=True)
class Weights:
    """The safetensors file with the trainable form."""

    path: str
    storage: Storage = Float32Storage()


@dataclass(frozen=True, slots=True)
class Measurement:
    """How fast one servable ran: p50 and p99 of one row alone, rows per second in batches of 32, peak memory."""

    hardware: str
    threads: int
    p50_seconds: float
    p99_seconds: float
    rows_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Servable:
    """One form of the model that an engine can run.

    `max_difference` is the largest difference of an output from the trainable form's, measured when the servable was
    made; `tolerance` is what was allowed. None: there was nothing to compare with.
    """

    engine: str
    precision: str
    path: str
    tolerance: float | None = None
    max_difference: float | None = None
    measurements: tuple[Measurement, ...] = ()


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the package; `sha256` in lower-case hex."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a package holds. `files` has every file but manifest.json itself.

    `inputs` and `outputs` are what a caller sees. With `steps`, the engine takes and gives what these make of it.
    `rows_apart`: the rows of one request belong together (the time steps of a sequence), so requests are never joined.
    """

    task: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] = ()
    text: TextInput | None = None
    architecture: ArchitectureRef | None = None
    weights: Weights | None = None
    servables: tuple[Servable, ...] = ()
    steps: tuple[StepRef, ...] = ()
    rows_apart: bool = False
    files: tuple[FileEntry, ...] = ()

    @property
    def joins_rows(self) -> bool:
        """Whether requests can share a batch: every tensor's first dimension counts rows that are independent."""
        return not self.rows_apart and all(spec.shape[:1] == (-1,) for spec in (*self.inputs, *self.outputs))

    @classmethod
    def from_json(cls, content: bytes) -> "Manifest":
        """Read a manifest. Raises ManifestInvalid, ManifestVersionUnsupported or PackagePathInvalid."""
        top = _parse_object(content)
        version = top.integer("schema_version")
        if version != SCHEMA_VERSION:
            raise ManifestVersionUnsupported(
                f"manifest schema version {version} is not known here, only {SCHEMA_VERSION}; update maas",
                schema_version=str(version),
            )
        manifest = cls(
            task=top.one_of("task", TASKS),
            inputs=top.objects("inputs", _read_tensor_spec),
            outputs=top.objects("outputs", _read_tensor_spec),
            labels=top.strings("labels"),
            text=top.optional_object("text", _read_text_input),
            architecture=top.optional_object("architecture", _read_architecture),
            weights=top.optional_object("weights", _read_weights),
            servables=top.objects("servables", _read_servable),
            steps=top.objects("steps", _read_step) if top.has("steps") else (),
            rows_apart=top.has("rows_apart") and top.boolean("rows_apart"),
            files=top.objects("files", _read_file_entry),
        )
        top.refuse_others()
        _check_consistency(manifest)
        return manifest

    def to_json(self) -> bytes:
        """Return the canonical form: sorted keys, sorted files, two spaces, one line feed at the end."""
        value: JsonObject = {
            "schema_version": SCHEMA_VERSION,
            "task": self.task,
            "inputs": [_tensor_spec_to_json(spec) for spec in self.inputs],
            "outputs": [_tensor_spec_to_json(spec) for spec in self.outputs],
            "labels": list(self.labels),
            "text": None if self.text is None else _text_input_to_json(self.text),
            "architecture": None
            if self.architecture is None
            else {"name": self.architecture.name, "config": self.architecture.config},
            "weights": None if self.weights is None else _weights_to_json(self.weights),
            "servables": [_servable_to_json(servable) for servable in self.servables],
            "files": [
                {"path": entry.path, "sha256": entry.sha256, "size_bytes": entry.size_bytes}
                for entry in sorted(self.files, key=lambda entry: entry.path)
            ],
        }
        # Younger than the others: left out where they say nothing, so that older releases read such a manifest.
        if self.steps:
            value["steps"] = [{"name": step.name, "config": step.config} for step in self.steps]
        if self.rows_apart:
            value["rows_apart"] = True
        return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"

    def referenced_paths(self) -> tuple[str, ...]:
        """Return the paths that other fields than `files` point to."""
        paths = [servable.path for servable in self.servables]
        if self.weights is not None:
            paths.append(self.weights.path)
        if self.text is not None:
            paths.append(self.text.tokenizer)
        return tuple(paths)


class _Object:
    """A JSON object being read: each field is asked for by type, and at the end none may be left over."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise _violation(path or MANIFEST_NAME, "must be an object")
        self._values = value
        self._path = path
        self._seen: set[str] = set()

    def field(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def value(self, name: str) -> Any:
        if name not in self._values:
            raise _violation(self.field(name), "is missing")
        self._seen.add(name)
        return self._values[name]

    def has(self, name: str) -> bool:
        return name in self._values

    def boolean(self, name: str) -> bool:
        value = self.value(name)
        if not isinstance(value, bool):
            raise _violation(self.field(name), "must be true or false")
        return value

    def string(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str) or not value or len(value) > 1024 or not value.isprintable():
            raise _violation(self.field(name), "must be a printable string of 1 to 1024 characters")
        return value

    def one_of(self, name: str, allowed: frozenset[str]) -> str:
        value = self.string(name)
        if value not in allowed:
            raise _violation(self.field(name), f"must be one of {', '.join(sorted(allowed))}")
        return value

    def integer(self, name: str, least: int | None = None) -> int:
        value = self.value(name)
        if type(value) is not int or (least is not None and value < least) or abs(value) >= 2**63:
            raise _violation(
                self.field(name), "must be a whole number" + (f" from {least}" if least is not None else "")
            )
        return value

    def number(self, name: str) -> float:
        return _read_number(self.value(name), self.field(name))

    def optional_number(self, name: str) -> float | None:
        return None if self.value(name) is None else self.number(name)

    def path(self, name: str) -> str:
        return check_path(self.string(name), self.field(name))

    def strings(self, name: str) -> tuple[str, ...]:
        values = self._list(name)
        if not all(isinstance(value, str) and value for value in values):
            raise _violation(self.field(name), "must be a list of strings that are not empty")
        return tuple(values)

    def integers(self, name: str, least: int) -> tuple[int, ...]:
        values = self._list(name)
        if not all(type(value) is int and least <= value < 2**31 for value in values):
            raise _violation(self.field(name), f"must be a list of whole numbers from {least}")
        return tuple(values)

    def object(self, name: str) -> "_Object":
        return _Object(self.value(name), self.field(name))

    def optional_object(self, name: str, read: "Callable[[_Object], T]") -> T | None:
        return None if self.value(name) is None else read(self.object(name))

    def objects(self, name: str, read: "Callable[[_Object], T]") -> tuple[T, ...]:
        return tuple(
            read(_Object(value, f"{self.field(name)}[{index}]")) for index, value in enumerate(self._list(name))
        )

    def numbers_by_name(self, name: str) -> dict[str, float]:
        inner = self.object(name)
        return {key: _read_number(value, inner.field(key)) for key, value in inner._values.items()}

    def refuse_others(self) -> None:
        others = sorted(set(self._values) - self._seen)
        if others:
            raise _violation(self.field(others[0]), "is not known")

    def raw(self) -> JsonObject:
        return dict(self._values)

    def _list(self, name: str) -> list[Any]:
        value = self.value(name)
        if not isinstance(value, list):
            raise _violation(self.field(name), "must be a list")
        return value


def check_path(path: str, field_name: str = "path") -> str:
    """Return `path` when it is a plain relative path with `/`, on any file system. Raises PackagePathInvalid."""
    # Characters that some file systems take for others (a wide full stop, a letter in two parts) are read both ways.
    spellings = {path, unicodedata.normalize("NFKC", path)}
    plain = path.isprintable() and unicodedata.is_normalized("NFC", path)
    if not plain or not all(map(_is_plain, spellings)):
        raise PackagePathInvalid(
            f"{field_name}: {path[:255]!r} is not a path inside the package",
            violations=(FieldViolation(field_name, "must be a relative path without '..'"),),
            path=path[:255],
        )
    return path


def _is_plain(path: str) -> bool:
    return not any(character in path for character in "\\:\0") and all(
        part not in ("", ".", "..") and not part.endswith((" ", ".")) for part in path.split("/")
    )


def _violation(field_name: str, description: str) -> ManifestInvalid:
    return ManifestInvalid(
        f"{MANIFEST_NAME}: {field_name} {description}", violations=(FieldViolation(field_name, description),)
    )


def _parse_object(content: bytes) -> _Object:
    if len(content) > MAX_MANIFEST_BYTES:
        raise ManifestInvalid(f"{MANIFEST_NAME} is larger than {MAX_MANIFEST_BYTES} bytes")
    if content.count(b"{") + content.count(b"[") > _MAX_VALUES:
        raise ManifestInvalid(f"{MANIFEST_NAME} has more than {_MAX_VALUES} objects and lists")
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_refuse_repeated_keys)
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid(f"{MANIFEST_NAME} is not JSON: {error}") from error
    return _Object(value, "")


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> JsonObject:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _violation("an object", "names a field twice")
    return values


def _read_number(value: object, field_name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        raise _violation(field_name, "must be a finite number")
    return float(value)


def _read_tensor_spec(source: _Object) -> TensorSpec:
    spec = TensorSpec(source.string("name"), source.one_of("datatype", DATATYPES), source.integers("shape", -1))
    source.refuse_others()
    return spec


def _tensor_spec_to_json(spec: TensorSpec) -> JsonObject:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _read_text_input(source: _Object) -> TextInput:
    text = TextInput(
        source.string("input"), source.string("feeds"), source.path("tokenizer"), source.integer("max_tokens", 1)
    )
    source.refuse_others()
    return text


def _text_input_to_json(text: TextInput) -> JsonObject:
    return {"input": text.input, "feeds": text.feeds, "tokenizer": text.tokenizer, "max_tokens": text.max_tokens}


def _read_architecture(source: _Object) -> ArchitectureRef:
    architecture = ArchitectureRef(source.string("name"), source.object("config").raw())
    source.refuse_others()
    return architecture


def _read_step(source: _Object) -> StepRef:
    step = StepRef(source.string("name"), source.object("config").raw())
    source.refuse_others()
    return step


def _read_weights(source: _Object) -> Weights:
    weights = Weights(source.path("path"), _read_storage(source.object("storage")))
    source.refuse_others()
    return weights


def _read_storage(source: _Object) -> Storage:
    match source.one_of("kind", frozenset({"float32", "fixed_point"})):
        case "float32":
            storage: Storage = Float32Storage()
        case _:
            storage = FixedPointStorage(source.numbers_by_name("scales"))
            if not all(scale > 0 for scale in storage.scales.values()):
                raise _violation(source.field("scales"), "must be above 0")
    source.refuse_others()
    return storage


def _weights_to_json(weights: Weights) -> JsonObject:
    match weights.storage:
        case Float32Storage():
            storage: JsonObject = {"kind": "float32"}
        case FixedPointStorage(scales):
            storage = {"kind": "fixed_point", "scales": dict(scales)}
    return {"path": weights.path, "storage": storage}


def _read_servable(source: _Object) -> Servable:
    servable = Servable(
        engine=source.string("engine"),
        precision=source.string("precision"),
        path=source.path("path"),
        tolerance=source.optional_number("tolerance"),
        max_difference=source.optional_number("max_difference"),
        measurements=source.objects("measurements", _read_measurement),
    )
    source.refuse_others()
    return servable


def _servable_to_json(servable: Servable) -> JsonObject:
    return {
        "engine": servable.engine,
        "precision": servable.precision,
        "path": servable.path,
        "tolerance": servable.tolerance,
        "max_difference": servable.max_difference,
        "measurements": [
            {
                "hardware": measurement.hardware,
                "threads": measurement.threads,
                "p50_seconds": measurement.p50_seconds,
                "p99_seconds": measurement.p99_seconds,
                "rows_per_second": measurement.rows_per_second,
                "peak_memory_bytes": measurement.peak_memory_bytes,
            }
            for measurement in servable.measurements
        ],
    }


def _read_measurement(source: _Object) -> Measurement:
    measurement = Measurement(
        hardware=source.string("hardware"),
        threads=source.integer("threads", 1),
        p50_seconds=source.number("p50_seconds"),
        p99_seconds=source.number("p99_seconds"),
        rows_per_second=source.number("rows_per_second"),
        peak_memory_bytes=source.integer("peak_memory_bytes", 0),
    )
    source.refuse_others()
    return measurement


def _read_file_entry(source: _Object) -> FileEntry:
    entry = FileEntry(source.path("path"), source.string("sha256"), source.integer("size_bytes", 0))
    if len(entry.sha256) != 64 or set(entry.sha256) - set("0123456789abcdef"):
        raise _violation(source.field("sha256"), "must be 64 lower-case hex digits")
    source.refuse_others()
    return entry


def _check_consistency(manifest: Manifest) -> None:
    _refuse_duplicates("inputs", [spec.name for spec in manifest.inputs])
    _refuse_duplicates("outputs", [spec.name for spec in manifest.outputs])
    _refuse_duplicates("labels", list(manifest.labels))
    # One file may be run by several engines, and by one engine in several precisions.
    servables = [(servable.engine, servable.precision, servable.path) for servable in manifest.servables]
    _refuse_duplicates("servables", servables)
    # Case is folded: two such files would be one on some file systems.
    _refuse_duplicates("files", [entry.path.casefold() for entry in manifest.files])
    for name, values in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        if not values:
            raise _violation(name, "must not be empty")
    if manifest.text is not None:
        _check_text_input(manifest.text, manifest.inputs)
    if manifest.task == TEXT_CLASSIFICATION:
        _check_classification(manifest)
    listed = {entry.path for entry in manifest.files}
    if MANIFEST_NAME in {path.casefold() for path in listed}:
        raise _violation("files", f"must not list {MANIFEST_NAME} itself")
    for path in manifest.referenced_paths():
        if path not in listed:
            raise _violation("files", f"must list {path}, which another field names")


def _check_text_input(text: TextInput, inputs: tuple[TensorSpec, ...]) -> None:
    specs = {spec.name: spec for spec in inputs}
    fed = specs.get(text.feeds)
    if text.input in specs:
        raise _violation("text.input", "must not be the name of a tensor input")
    if fed is None or fed.datatype != "INT64" or len(fed.shape) != 2 or len(inputs) != 1:
        raise _violation("text.feeds", "must name the only input, INT64 of two dimensions")


def _check_classification(manifest: Manifest) -> None:
    """The first output is the logits [N, C], and there are C labels or none."""
    logits = manifest.outputs[0]
    if len(logits.shape) != 2 or not logits.datatype.startswith("FP"):
        raise _violation("outputs[0]", "must be floating-point logits of two dimensions")
    if manifest.labels and logits.shape[1] not in (-1, len(manifest.labels)):
        raise _violation("labels", f"must be {logits.shape[1]}, one for each class")


def _refuse_duplicates(name: str, values: Sequence[object]) -> None:
    if len(set(values)) != len(values):
        raise _violation(name, "must not name the same thing twice")

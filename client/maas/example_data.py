"""The example data: 10,605 movie-review sentences rated by people, as Parquet files with a fixed split.

They come inside the source distribution of vaderSentiment 3.3.2 (MIT): C.J. Hutto and E.E. Gilbert, "VADER: A
Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014. pip fetches it, so whatever
index or mirror the user's pip knows is used, and pip compares the SHA-256 before it opens the file.

A sentence's label is 1 when its mean rating is above 0. Which part a sentence belongs to is decided by the SHA-256
of its text: the split is the same on every machine and for ever, and two equal sentences stand side by side, so that
(but for at most one pair at an edge) none is both trained on and tested on.

Standard library only; pyarrow is imported when a file is written.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maas.errors import MaasError
from maas.label_names import label_names_metadata

SOURCE_REQUIREMENT = "vaderSentiment==3.3.2"
SOURCE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
TEST_ROWS = 2_000
VALIDATION_ROWS = 1_000

# The domain trained on is split; the others are one file each, to see how quality drops away from home.
HOME_DOMAIN = "movies"
DOMAIN_MEMBERS = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "newspaper": "nytEditorialSnippets_GroundTruth.txt",
}
DOMAIN_ROWS = {"movies": 10_605, "amazon": 3_708, "tweets": 4_200, "newspaper": 5_190}

_INDEX_NAME = "example-data.json"
_FORMAT = 2
"""Counts up when the same source makes other files: files of an older release are then made again. 2: label names."""


class ExampleDataError(MaasError):
    """The example data could not be made; the message says what to do."""

    reason = "EXAMPLE_DATA_FAILED"

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=type(self).reason)


class ExampleDataUnreachable(ExampleDataError):
    """pip could not fetch the source distribution."""

    reason = "EXAMPLE_DATA_UNREACHABLE"


class ExampleDataDamaged(ExampleDataError):
    """What was fetched is not the source distribution that is meant."""

    reason = "EXAMPLE_DATA_DAMAGED"


class ExampleDataNotWritten(ExampleDataError):
    """The folder cannot be written: full, read-only or not a folder."""

    reason = "EXAMPLE_DATA_NOT_WRITTEN"


@dataclass(frozen=True, slots=True)
class Sentence:
    """One rated sentence; `rating` is the mean of the raters, -4 to 4."""

    text: str
    rating: float

    @property
    def label(self) -> int:
        """1 for positive, 0 for the rest."""
        return int(self.rating > 0)


@dataclass(frozen=True, slots=True)
class ExampleFile:
    """One Parquet file with the columns text (string), label (int64) and rating (double)."""

    name: str
    path: Path
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ExampleDataset:
    """The files of the example data: train, validation, test, then one for each further domain asked for."""

    files: tuple[ExampleFile, ...]
    reused: bool

    def file(self, name: str) -> ExampleFile:
        """Return the file called `name`. Raises KeyError."""
        return {file.name: file for file in self.files}[name]


def prepare_example(folder: Path, *, domains: Sequence[str] = (), timeout_seconds: float = 120.0) -> ExampleDataset:
    """Write train, validation and test into `folder`, and `<domain>.parquet` for each of `domains`.

    Files that an earlier call made are reused when their hashes still fit. `timeout_seconds` bounds the download.
    Raises ExampleDataError.
    """
    unknown = sorted(set(domains) - set(DOMAIN_MEMBERS))
    if unknown:
        raise ExampleDataError(f"no domain {', '.join(unknown)}; there are: {', '.join(DOMAIN_MEMBERS)}")
    if importlib.util.find_spec("pyarrow") is None:
        raise ExampleDataError("Parquet files need pyarrow; install it with: pip install 'maas[data]'")
    further = [domain for domain in dict.fromkeys(domains) if domain != HOME_DOMAIN]
    names = ["train", "validation", "test", *further]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = _read_intact_files(folder)
        if all(name in known for name in names):
            return ExampleDataset(tuple(known[name] for name in names), reused=True)
        archive = _download_source(timeout_seconds)
        parts = split_sentences(_read_domain(archive, HOME_DOMAIN))
        parts |= {domain: _read_domain(archive, domain) for domain in further}
        made = {name: _write_file(folder, name, parts[name]) for name in names}
        _write_index(folder, known | made)
    except OSError as error:
        raise ExampleDataNotWritten(
            f"cannot write the example data to {folder}: {error.strerror or error}; free some space there or name "
            "another folder"
        ) from error
    return ExampleDataset(tuple(made[name] for name in names), reused=False)


def split_sentences(sentences: Sequence[Sentence]) -> dict[str, list[Sentence]]:
    """Divide into train, validation and test by the hash of each text; the order of the input does not matter."""
    ordered = sorted(sentences, key=lambda sentence: (_text_hash(sentence.text), sentence.rating))
    validation_end = TEST_ROWS + VALIDATION_ROWS
    return {
        "train": ordered[validation_end:],
        "validation": ordered[TEST_ROWS:validation_end],
        "test": ordered[:TEST_ROWS],
    }


def parse_sentences(content: bytes) -> list[Sentence]:
    """Read lines of `id TAB rating TAB text`. Raises ExampleDataDamaged."""
    try:
        # Only line feeds end a line: str.splitlines would also cut at characters that stand inside sentences.
        lines = [line.rstrip("\r") for line in content.decode("utf-8").split("\n")]
        rows = [line.split("\t", 2) for line in lines if line]
        return [Sentence(text.strip(), float(rating)) for _, rating, text in rows]
    except ValueError as error:
        raise ExampleDataDamaged(f"the review file is not what was expected: {error}") from error


def _text_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _download_source(timeout_seconds: float) -> bytes:
    """Return the bytes of hutto_ICWSM_2014.tar.gz, which lies in the source distribution."""
    with tempfile.TemporaryDirectory(prefix="maas-example-") as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(f"{SOURCE_REQUIREMENT} --hash=sha256:{SOURCE_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--quiet"]
        command += [
            "--no-deps",
            "--no-binary",
            "vaderSentiment",
            "--require-hashes",
            "--requirement",
            str(requirements),
            "--dest",
            scratch,
        ]
        # pip asks a source distribution for its metadata; with setuptools at hand it need not fetch a second one.
        if importlib.util.find_spec("setuptools") is not None:
            command.append("--no-build-isolation")
        returncode, output = _run(command, timeout_seconds)
        found = sorted(Path(scratch).glob("*.tar.gz"))
        if returncode != 0 or not found:
            last_lines = " | ".join(output.strip().splitlines()[-3:])
            failure = ExampleDataDamaged if "DO NOT MATCH THE HASHES" in output else ExampleDataUnreachable
            raise failure(
                f"pip could not fetch {SOURCE_REQUIREMENT}: {last_lines}; check the network and pip's index, then try "
                "again"
            )
        return _open_source(found[0].read_bytes())


def _run(command: Sequence[str], timeout_seconds: float) -> tuple[int, str]:
    """Return the exit code and what was printed. Whatever ends the wait also ends all that the command started."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise ExampleDataUnreachable(
                f"pip did not fetch {SOURCE_REQUIREMENT} within {timeout_seconds:g} s; check the network and try again"
            ) from error
        finally:
            # pip's own children share its group, and would keep the pipe open.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def _open_source(content: bytes) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    if digest != SOURCE_SHA256:
        raise ExampleDataDamaged(f"{SOURCE_REQUIREMENT} has SHA-256 {digest} instead of {SOURCE_SHA256}")
    return _read_member(content, "hutto_ICWSM_2014.tar.gz")


def _read_domain(archive: bytes, domain: str) -> list[Sentence]:
    sentences = parse_sentences(_read_member(archive, DOMAIN_MEMBERS[domain]))
    if len(sentences) != DOMAIN_ROWS[domain]:
        raise ExampleDataDamaged(f"{domain} has {len(sentences)} sentences instead of {DOMAIN_ROWS[domain]}")
    return sentences


def _read_member(archive: bytes, file_name: str) -> bytes:
    """Return one file of a .tar.gz without unpacking anything to disk."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            for member in tar:
                if member.isfile() and member.name.rpartition("/")[2] == file_name:
                    stream = tar.extractfile(member)
                    if stream is not None:
                        return stream.read()
    except (tarfile.TarError, EOFError) as error:
        raise ExampleDataDamaged(f"the archive that holds {file_name} is damaged: {error}") from error
    raise ExampleDataDamaged(f"{file_name} is not in the archive")


def _write_file(folder: Path, name: str, sentences: Sequence[Sentence]) -> ExampleFile:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {
            "text": pyarrow.array([sentence.text for sentence in sentences], pyarrow.string()),
            "label": pyarrow.array([sentence.label for sentence in sentences], pyarrow.int64()),
            "rating": pyarrow.array([sentence.rating for sentence in sentences], pyarrow.float64()),
        }
    ).replace_schema_metadata(label_names_metadata(("negative", "positive")))
    path = folder / f"{name}.parquet"
    partial = folder / f".{name}.parquet.partial"
    try:
        pyarrow.parquet.write_table(table, partial, compression="zstd")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return ExampleFile(name, path, len(sentences), hashlib.sha256(path.read_bytes()).hexdigest())


def _write_index(folder: Path, files: dict[str, ExampleFile]) -> None:
    entries = {name: {"rows": file.rows, "sha256": file.sha256} for name, file in files.items()}
    index = {"format": _FORMAT, "source_sha256": SOURCE_SHA256, "files": entries}
    content = json.dumps(index, indent=2, sort_keys=True)
    partial = folder / f".{_INDEX_NAME}.partial"
    partial.write_text(content + "\n")
    os.replace(partial, folder / _INDEX_NAME)


def _read_intact_files(folder: Path) -> dict[str, ExampleFile]:
    """Return what an earlier call wrote and is still as it was; anything else is made again."""
    try:
        index = json.loads((folder / _INDEX_NAME).read_bytes())
        if (index["format"], index["source_sha256"]) != (_FORMAT, SOURCE_SHA256):
            return {}
        entries = {str(name): (int(entry["rows"]), str(entry["sha256"])) for name, entry in index["files"].items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    intact = {}
    for name, (rows, sha256) in entries.items():
        path = folder / f"{name}.parquet"
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            intact[name] = ExampleFile(name, path, rows, sha256)
    return intact

"""Files that would run what is written in them, under names that do not say so: refused, and the member is named."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import pickletools
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from maas_formats.kinds import FormatUnknown, SourceMissing, detect
from maas_package.harm import HarmKind, find_harm
from maas_package.package import PackageHoldsCode, PackageHoldsPickle


class Runs:
    """What an attacker's pickle is: reading it calls a function."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch /tmp/should-not-be-there",))


def numpy_objects(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.array([{"a": 1}], object), allow_pickle=True)


def zip_of(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)


def tar_of(path: Path, name: str, content: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))


def numpy_archive(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, fine=np.zeros(3), bad=np.array([None], object))


def exported(path: Path) -> None:
    zip_of(path, model__archive_format=b"pt2", model__models__model=b"{}")


PICKLE = pickle.dumps(Runs())


@pytest.mark.parametrize(
    ("write", "kind", "member"),
    [
        *((lambda path, protocol=protocol: path.write_bytes(pickle.dumps(Runs(), protocol)), HarmKind.PICKLE, "")
          for protocol in range(6)),
        (lambda path: path.write_bytes(pickletools.optimize(PICKLE)), HarmKind.PICKLE, ""),
        (lambda path: path.write_bytes(pickle.dumps([Runs(), list(range(50_000))], 0)), HarmKind.PICKLE, ""),
        (lambda path: path.write_bytes(gzip.compress(PICKLE)), HarmKind.PICKLE, ""),
        (lambda path: path.write_bytes(bz2.compress(PICKLE)), HarmKind.PICKLE, ""),
        (lambda path: path.write_bytes(lzma.compress(PICKLE)), HarmKind.PICKLE, ""),
        (lambda path: path.write_bytes(zlib.compress(PICKLE)), HarmKind.PICKLE, ""),
        (lambda path: torch.save({"w": torch.zeros(2)}, path), HarmKind.PICKLE, "model/data.pkl"),
        (lambda path: torch.save({"w": torch.zeros(2)}, path, _use_new_zipfile_serialization=False),
         HarmKind.PICKLE, ""),
        (lambda path: zip_of(path, a=b"fine", weights__part=PICKLE), HarmKind.PICKLE, "weights/part"),
        (lambda path: zip_of(path, a=b"fine", weights__part=gzip.compress(PICKLE)), HarmKind.PICKLE, "weights/part"),
        (lambda path: tar_of(path, "weights/part", PICKLE), HarmKind.PICKLE, "weights/part"),
        (numpy_objects, HarmKind.PICKLE, ""),
        (numpy_archive, HarmKind.PICKLE, "bad.npy"),
        (exported, HarmKind.EXPORTED_PROGRAM, "model/archive_format"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64)), HarmKind.KERAS, ""),
    ],
)  # fmt: skip
def test_what_runs_when_loaded_is_told_by_its_bytes(
    tmp_path: Path, write: Callable[[Path], object], kind: HarmKind, member: str
) -> None:
    write(tmp_path / "model")
    harm = find_harm(tmp_path / "model")
    assert harm is not None
    assert (harm.kind, harm.member) == (kind, member)
    with pytest.raises((PackageHoldsPickle, PackageHoldsCode)) as raised:
        detect(tmp_path / "model")
    assert member in raised.value.message


@pytest.mark.parametrize(
    "content",
    [b"", b"no", b"PK\x03\x04 not an archive", b'{"json": 1}', bytes(4096), b"\x1f\x8b\x08 broken", b"c\n\nc"],
)
def test_what_is_no_pickle_is_no_harm(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "any").write_bytes(content)
    assert find_harm(tmp_path / "any") is None


def test_arrays_of_numbers_are_no_harm(tmp_path: Path) -> None:
    np.save(tmp_path / "numbers.npy", np.zeros(3))
    np.savez_compressed(tmp_path / "numbers.npz", a=np.zeros(3), b=np.array(["text"]))
    assert find_harm(tmp_path / "numbers.npy") is None
    assert find_harm(tmp_path / "numbers.npz") is None


def test_an_archive_that_unpacks_to_very_much_is_looked_at_in_little_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("zeros", "w") as member:
        for _ in range(256):
            member.write(bytes(1024 * 1024))
    assert (tmp_path / "bomb").stat().st_size < 1024 * 1024
    assert find_harm(tmp_path / "bomb") is None


def test_an_archive_with_a_header_of_gigabytes_cannot_be_looked_into(tmp_path: Path) -> None:
    header = tarfile.TarInfo("header")
    header.type, header.size = tarfile.XHDTYPE, 6 * 1024**3
    (tmp_path / "model").write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + bytes(4096))
    harm = find_harm(tmp_path / "model")
    assert harm is not None
    assert harm.kind is HarmKind.LOCKED


def test_a_folder_of_pickled_weights_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    torch.save({"w": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(PackageHoldsPickle, match=r"pytorch_model\.bin: its member .*data\.pkl.*safetensors"):
        detect(tmp_path)


def test_an_exported_program_is_refused_with_the_command_that_makes_onnx_of_it(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Linear(2, 1), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(PackageHoldsCode, match=r"torch\.onnx\.export\(torch\.export\.load\('model\.pt2'\)"):
        detect(tmp_path / "model.pt2")


def test_what_is_nothing_known_is_answered_with_what_is_taken(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing):
        detect(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FormatUnknown, match=r"an \.onnx file, a Hugging Face folder"):
            detect(path)

import json
import pickle
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from maas_package.manifest import Manifest, ManifestInvalid
from maas_package.package import (
    ManifestMissing,
    PackageFileDamaged,
    PackageFileMissing,
    PackageFileUnlisted,
    PackageHoldsArchive,
    PackageHoldsCode,
    PackageHoldsPickle,
    PackageLinkOutside,
    read_package,
    write_package,
)
from maas_package.safetensors_header import SafetensorsInvalid, read_safetensors_header
from maas_package.weight_statistics import WeightStatistics, weight_statistics


@pytest.fixture
def folder(tiny_package_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_package_folder, tmp_path / "package"))


def rewrite_manifest(folder: Path) -> None:
    """List the files as they are now, as somebody would who wants a bad file to be taken."""
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    write_package(folder, replace(manifest, files=()))


def test_a_package_reads_as_it_was_written(folder: Path) -> None:
    package = read_package(folder)
    assert [entry.path for entry in package.manifest.files] == [
        "model.safetensors",
        "servables/onnxruntime/model.onnx",
        "tokenizer.json",
    ]
    on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert package.total_bytes == on_disk
    servable = package.manifest.servables[0]
    assert package.servable_bytes(servable) == (folder / servable.path).stat().st_size


def test_a_folder_without_a_manifest_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(ManifestMissing):
        read_package(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "servables/onnxruntime/model.onnx", "tokenizer.json"])
def test_each_file_is_missed_and_its_damage_seen(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for damaged in (whole[:-1], whole + b"\0", b"\0" + whole[1:]):
        (folder / name).write_bytes(damaged)
        with pytest.raises(PackageFileDamaged):
            read_package(folder)
    (folder / name).unlink()
    with pytest.raises(PackageFileMissing):
        read_package(folder)


def test_a_file_that_the_manifest_does_not_list_is_refused(folder: Path) -> None:
    (folder / "more.txt").write_text("hello")
    with pytest.raises(PackageFileUnlisted):
        read_package(folder)


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "x.pkl", "a/x.ckpt", "X.PTH", "x.joblib"])
def test_a_file_named_like_a_pickle_is_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"harmless")
    with pytest.raises(PackageHoldsPickle):
        rewrite_manifest(folder)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_under_another_name_is_refused(folder: Path, protocol: int) -> None:
    (folder / "servables/onnxruntime/model.onnx").write_bytes(pickle.dumps({"a": 1}, protocol))
    with pytest.raises(PackageHoldsPickle):
        rewrite_manifest(folder)


def test_an_archive_is_refused_whatever_is_in_it(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(1))
    with pytest.raises(PackageHoldsArchive):
        rewrite_manifest(folder)


def test_an_archive_of_torch_export_is_refused(folder: Path) -> None:
    # Loading one evaluates strings of it as Python, also where it holds no pickle.
    with zipfile.ZipFile(folder / "model.pt2", "w") as archive:
        archive.writestr("model/models/model.json", "{}")
    with pytest.raises(PackageHoldsCode):
        rewrite_manifest(folder)


def test_a_pickle_is_refused_on_reading_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "notes").write_bytes(pickle.dumps(1, 4))
    with monkeypatch.context() as patched:
        patched.setattr("maas_package.package.check_content", lambda *_: None)
        rewrite_manifest(folder)
    with pytest.raises(PackageHoldsPickle):
        read_package(folder)


def test_a_link_out_of_the_package_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    shutil.move(folder / "tokenizer.json", outside)
    (folder / "tokenizer.json").symlink_to(outside)
    with pytest.raises(PackageLinkOutside):
        read_package(folder)


def test_a_folder_that_is_a_link_out_of_the_package_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "servables/more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackageLinkOutside):
        read_package(folder)


def test_a_manifest_whose_file_is_not_there_cannot_be_written(folder: Path) -> None:
    manifest = read_package(folder).manifest
    (folder / "tokenizer.json").unlink()
    (folder / "manifest.json").unlink()
    with pytest.raises(ManifestInvalid):
        write_package(folder, manifest)
    assert not (folder / "manifest.json").exists()
    assert not (folder / ".manifest.json.partial").exists()


def test_a_tokenizer_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{not json")
    with pytest.raises(PackageFileDamaged):
        rewrite_manifest(folder)


def safetensors(header: object, data: bytes = b"") -> bytes:
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 3) + b"{]}",
        safetensors([]),
        safetensors({"w": 1}),
        safetensors({"w": {"dtype": "F32", "shape": [2]}}),
        safetensors({"w": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]}}, b"abcd"),
        safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"abcd"),
        safetensors({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"abcd"),
        safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"abc"),
        safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"abcde"),
        safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]}}, b"abcde"),
    ],
)
def test_a_broken_safetensors_file_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(SafetensorsInvalid):
        rewrite_manifest(folder)


def test_a_safetensors_header_as_long_as_a_pickle_mark_is_no_pickle(tmp_path: Path) -> None:
    metadata = {"filler": ""}
    header = {"__metadata__": metadata, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    metadata["filler"] = "x" * (0x0280 - len(json.dumps(header)))
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors(header, b"abcd"))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert read_safetensors_header(path)[0].elements == 1


@pytest.mark.parametrize(
    ("dtype", "data", "non_zero"),
    [
        ("F32", struct.pack("<4f", 0.0, -0.0, 1.0, -2.0), 2),
        ("I8", bytes([0, 1, 255, 0]), 2),
        ("BF16", struct.pack("<4H", 0, 0x8000, 0x3F80, 0), 1),
    ],
)
def test_weights_that_are_zero_are_counted(folder: Path, dtype: str, data: bytes, non_zero: int) -> None:
    header = {
        "empty": {"dtype": dtype, "shape": [0], "data_offsets": [0, 0]},
        "w": {"dtype": dtype, "shape": [2, 2], "data_offsets": [0, len(data)]},
    }
    (folder / "model.safetensors").write_bytes(safetensors(header, data))
    rewrite_manifest(folder)
    statistics = weight_statistics(read_package(folder))
    assert statistics == WeightStatistics(parameters=4, non_zero=non_zero)
    assert statistics.non_zero_share == non_zero / 4


def test_a_package_without_a_trainable_form_has_no_weight_statistics(folder: Path) -> None:
    manifest = read_package(folder).manifest
    (folder / "model.safetensors").unlink()
    package = write_package(folder, replace(manifest, weights=None, architecture=None))
    assert weight_statistics(package) is None

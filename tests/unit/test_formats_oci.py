"""OCI image layouts: out and in again without a changed byte; hostile ones are refused."""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maas.formats import SourceKind
from maas_formats.kinds import detect
from maas_formats.oci_import import (
    OciBlobDamaged,
    OciLayoutInvalid,
    OciModelTooLarge,
    OciModelUnsupported,
    unpack_oci,
)
from maas_formats.oci_layout import export_oci
from maas_formats.onnx_export import FolderTaken
from maas_package.package import PackageHoldsPickle, read_package
from maas_runtime.failures import InvalidInput

MODEL = "application/vnd.cncf.model.manifest.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1"


@pytest.fixture
def layout(tiny_package_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "layout"
    export_oci(read_package(tiny_package_folder), folder, model="reviews", version=3)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def unpacked(layout: Path, tmp_path: Path) -> Path:
    notes: list[str] = []
    unpack_oci(layout, tmp_path / "unpacked", notes.append)
    return tmp_path / "unpacked"


def test_a_package_comes_back_without_a_changed_byte(tiny_package_folder: Path, layout: Path, tmp_path: Path) -> None:
    assert detect(layout) is SourceKind.OCI
    folder = unpacked(layout, tmp_path)
    assert files_of(folder) == files_of(tiny_package_folder)
    assert detect(folder) is SourceKind.PACKAGE
    assert read_package(folder).manifest == read_package(tiny_package_folder).manifest


def test_a_layer_is_a_file_of_the_package_under_its_own_hash(tiny_package_folder: Path, layout: Path) -> None:
    index = json.loads((layout / "index.json").read_text())
    [described] = index["manifests"]
    assert described["annotations"] == {"org.opencontainers.image.ref.name": "3"}
    manifest = json.loads((layout / "blobs" / described["digest"].replace(":", "/")).read_text())
    assert manifest["artifactType"] == MODEL
    layers = {layer["annotations"]["org.cncf.model.filepath"]: layer for layer in manifest["layers"]}
    for name, content in files_of(tiny_package_folder).items():
        assert layers[name]["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
        assert layers[name]["size"] == len(content)
    assert layers["model.safetensors"]["mediaType"] == f"{WEIGHT}.raw"
    assert layers["tokenizer.json"]["mediaType"] == "application/vnd.cncf.model.weight.config.v1.raw"
    config = json.loads((layout / "blobs" / manifest["config"]["digest"].replace(":", "/")).read_text())
    assert config["descriptor"] == {"name": "reviews", "version": "3"}
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]


def test_the_same_version_is_always_the_same_bytes(tiny_package_folder: Path, layout: Path, tmp_path: Path) -> None:
    export_oci(read_package(tiny_package_folder), tmp_path / "again", model="reviews", version=3)
    assert files_of(tmp_path / "again") == files_of(layout)
    with pytest.raises(FolderTaken):
        export_oci(read_package(tiny_package_folder), layout, model="reviews", version=3)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_copies_a_model_without_a_changed_byte(layout: Path, tmp_path: Path) -> None:
    copy = ["skopeo", "copy", "--quiet", f"oci:{layout}:3", f"oci:{tmp_path / 'copy'}:3"]
    subprocess.run(copy, check=True, timeout=60, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert files_of(tmp_path / "copy" / "blobs") == files_of(layout / "blobs")
    unpack_oci(tmp_path / "copy", tmp_path / "unpacked", lambda _: None)


class Written:
    """A layout made by hand, of layers that nobody should write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs" / "sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.layers: list[dict[str, Any]] = []

    def blob(self, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs" / "sha256" / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    def layer(self, path: str, content: bytes, packing: str = "raw", **changes: Any) -> "Written":
        annotations = {"org.cncf.model.filepath": path}
        media_type = {"mediaType": f"{WEIGHT}.{packing}", "annotations": annotations}
        self.layers.append(self.blob(content) | media_type | changes)
        return self

    def archive(self, *members: tuple[tarfile.TarInfo, bytes], packing: str = "tar") -> "Written":
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for info, content in members:
                info.size = info.size or len(content)
                archive.addfile(info, io.BytesIO(content))
        content = stream.getvalue()
        return self.layer("any", gzip.compress(content) if packing == "tar+gzip" else content, packing)

    def finish(self, copies: int = 1, **changes: Any) -> Path:
        manifest = {"schemaVersion": 2, "artifactType": MODEL, "config": self.blob(b"{}"), "layers": self.layers}
        described = self.blob(json.dumps(manifest | changes).encode())
        described["mediaType"] = "application/vnd.oci.image.manifest.v1+json"
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described] * copies}))
        return self.folder


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "layout")


@pytest.mark.parametrize("packing", ["tar", "tar+gzip"])
def test_archives_of_files_as_other_tools_pack_them_are_unpacked(
    written: Written, tmp_path: Path, packing: str
) -> None:
    written.archive((tarfile.TarInfo("./config.json"), b"{}"), (tarfile.TarInfo("a/b.txt"), b"b"), packing=packing)
    written.layer("README.md", b"words", mediaType="application/vnd.cncf.model.doc.v1.raw")
    notes: list[str] = []
    unpack_oci(written.finish(), tmp_path / "unpacked", notes.append)
    assert files_of(tmp_path / "unpacked") == {"config.json": b"{}", "a/b.txt": b"b"}
    assert notes == ["README.md is left out: it is doc, not the model"]


def link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("innocent")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "path", ["../outside", "/outside", "a/../../outside", "a\\..\\outside", "C:outside", "", "a//b", "x" * 300]
)
def test_no_path_leads_out_of_the_folder(written: Written, tmp_path: Path, path: str) -> None:
    packed = Written(tmp_path / "packed").archive((tarfile.TarInfo(path or "."), b"x")).finish()
    for layout in (written.layer(path, b"x").finish(), packed):
        with pytest.raises(InvalidInput):
            unpack_oci(layout, tmp_path / "unpacked", lambda _: None)
        shutil.rmtree(tmp_path / "unpacked", ignore_errors=True)
    assert {one.name for one in tmp_path.iterdir()} <= {"layout", "packed", "home"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_an_archive_with_a_link_or_a_device_is_refused(written: Written, tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(OciLayoutInvalid, match="innocent"):
        unpacked(written.archive((link(kind), b"")).finish(), tmp_path)


def test_what_unpacks_to_very_much_is_refused_before_it_is_written(written: Written, tmp_path: Path) -> None:
    bomb = written.archive((tarfile.TarInfo("zeros"), bytes(32 * 1024 * 1024)), packing="tar+gzip").finish()
    with pytest.raises(OciModelTooLarge):
        unpacked(bomb, tmp_path)
    assert files_of(tmp_path / "unpacked") == {}


@pytest.mark.parametrize("packing", ["tar", "tar+gzip"])
def test_a_header_of_gigabytes_is_not_read(written: Written, tmp_path: Path, packing: str) -> None:
    # tarfile reads a header of this type at once, as long as it says that it is.
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, 6 * 1024**3
    content = info.tobuf(tarfile.USTAR_FORMAT) + bytes(4096)
    written.layer("any", gzip.compress(content) if packing == "tar+gzip" else content, packing)
    with pytest.raises(OciModelTooLarge, match="a header of"):
        unpacked(written.finish(), tmp_path)


def test_a_layer_as_large_as_nobody_has_room_for_is_refused(written: Written, tmp_path: Path) -> None:
    with pytest.raises(OciModelTooLarge):
        unpacked(written.layer("model.onnx", b"x", size=10**15).finish(), tmp_path)
    written.layers = written.layers * 10_001
    with pytest.raises(OciModelTooLarge):
        unpacked(written.finish(), tmp_path / "again")


def test_a_pickle_in_a_layer_is_refused_by_its_name_in_the_model(written: Written, tmp_path: Path) -> None:
    folder = unpacked(written.layer("config.json", b"{}").layer("weights", pickle.dumps([1])).finish(), tmp_path)
    with pytest.raises(PackageHoldsPickle, match="weights"):
        detect(folder)


def changed(written: Written, change: Callable[[Path], object]) -> Path:
    content = b"the weights"
    layout = written.layer("model.onnx", content).finish()
    change(layout / "blobs" / "sha256" / hashlib.sha256(content).hexdigest())
    return layout


@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        lambda blob: blob.write_bytes(b"the weighty"),
        lambda blob: blob.write_bytes(b"the weights and more"),
        lambda blob: blob.write_bytes(b""),
        lambda blob: (blob.rename(blob.parents[3] / "moved"), blob.symlink_to(blob.parents[3] / "moved")),
    ],
)
def test_a_blob_that_is_not_what_its_digest_says_is_refused(
    written: Written, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    with pytest.raises(OciBlobDamaged):
        unpacked(changed(written, change), tmp_path)


@pytest.mark.parametrize(
    ("finish", "failure"),
    [
        (lambda it: it.finish(artifactType="application/vnd.unknown"), OciModelUnsupported),
        (lambda it: it.finish(artifactType=None), OciModelUnsupported),
        (lambda it: it.finish(copies=2), OciModelUnsupported),
        (lambda it: it.finish(copies=0), OciModelUnsupported),
        (lambda it: it.finish(config=None), OciLayoutInvalid),
        (lambda it: it.finish(config={"digest": "sha256:" + "0" * 64, "size": 2}), OciBlobDamaged),
        (lambda it: it.finish(layers="none"), OciLayoutInvalid),
        (lambda it: it.finish(layers=[7]), OciLayoutInvalid),
        (lambda it: it.layer("a", b"", mediaType=f"{WEIGHT}.tar+zstd").finish(), OciModelUnsupported),
        (lambda it: it.layer("a", b"", mediaType=None).finish(), OciModelUnsupported),
        (lambda it: it.layer("a", b"", annotations=None).finish(), OciLayoutInvalid),
        (lambda it: it.layer("a", b"", digest="sha256:../../../etc/passwd").finish(), OciLayoutInvalid),
        (lambda it: it.layer("a", b"", digest="sha512:" + "0" * 128).finish(), OciLayoutInvalid),
        (lambda it: it.layer("a", b"", size=-1).finish(), OciLayoutInvalid),
        (lambda it: it.layer("a", b"", size=True).finish(), OciLayoutInvalid),
        (lambda it: it.layer("a", b"x").layer("a", b"y").finish(), OciLayoutInvalid),
        (lambda it: it.layer("a", b"x").layer("a/b", b"y").finish(), OciLayoutInvalid),
        (lambda it: it.layer("a", b"no archive", "tar").finish(), OciLayoutInvalid),
        (lambda it: it.layer("a", gzip.compress(bytes(4096))[:20], "tar+gzip").finish(), OciLayoutInvalid),
    ],
)
def test_a_layout_that_is_no_model_is_refused(
    written: Written, tmp_path: Path, finish: Callable[[Written], Path], failure: type[InvalidInput]
) -> None:
    with pytest.raises(failure):
        unpacked(finish(written), tmp_path)


@pytest.mark.parametrize("name", ["index.json", "oci-layout"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 100_000, b" " * (5 * 1024 * 1024)])
def test_documents_that_are_broken_or_too_large_are_refused(
    written: Written, tmp_path: Path, name: str, content: bytes
) -> None:
    layout = written.layer("a", b"").finish()
    (layout / name).write_bytes(content)
    with pytest.raises((OciLayoutInvalid, OciModelUnsupported)):
        unpacked(layout, tmp_path)

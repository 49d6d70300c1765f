"""The rules of models, versions, aliases and datasets, over the stores in memory."""

import asyncio
import hashlib
import pickle
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from registry_records import ANN, NOW, ManualClock

from maas.names import AliasName, BlobName, DatasetName, DatasetVersionName, ModelName, VersionName
from maas_package.manifest import FileEntry, Manifest, ManifestInvalid, PackagePathInvalid, Servable, TensorSpec
from maas_package.package import (
    ManifestMissing,
    PackageFileDamaged,
    PackageFileMissing,
    PackageFileUnlisted,
    PackageHoldsPickle,
)
from maas_registry.domain.alias_rules import Aliases, Holds
from maas_registry.domain.blobs import BlobNotFound, Blobs
from maas_registry.domain.changes import Author, Feed
from maas_registry.domain.datasets import (
    ColumnStatistics,
    DatasetExists,
    DatasetNotFound,
    Datasets,
    DatasetVersionNotFound,
    NumberStatistics,
    SplitDraft,
    SplitEmpty,
    SplitNotParquet,
    SplitRepeated,
    SplitsDiffer,
    StatisticsInvalid,
    TextStatistics,
)
from maas_registry.domain.details import ModelDetails
from maas_registry.domain.listing import NEWEST_FIRST, Query
from maas_registry.domain.model_rules import Models
from maas_registry.domain.models import (
    MAX_ALIASES,
    AliasNotFound,
    ModelExists,
    ModelNotFound,
    TooManyAliases,
    VersionNotFound,
    VersionOfOtherModel,
)
from maas_registry.domain.package_check import PackageFileRepeated
from maas_registry.domain.parquet_file import Column
from maas_registry.domain.version_rules import Versions
from maas_registry.domain.versions import Provenance, ServableSpec, VersionDraft
from maas_registry.storage.memory import MemoryBlobStore, MemoryDatasetStore, MemoryModelStore
from maas_runtime.failures import Failure

AUTHOR = Author("alice@laptop")
A, B = ModelName("a"), ModelName("b")
ONNX = b"\x0a\x22onnx, as far as the registry looks"


def parquet(**columns: list[Any]) -> bytes:
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return bytes(buffer.getvalue())


class Registry:
    """Everything in memory, and shortcuts to fill it."""

    def __init__(self) -> None:
        self.blobs = Blobs(MemoryBlobStore(), max_bytes=2**20)
        self.clock = ManualClock()
        store = MemoryModelStore(self.clock)
        self.models = Models(store, self.clock)
        self.versions = Versions(store, self.blobs, self.clock)
        self.aliases = Aliases(store, self.clock)
        self.holds = Holds(store)
        self.feed = Feed(store, self.clock, look_again_seconds=0.01, heartbeat_seconds=0.02)
        self.datasets = Datasets(MemoryDatasetStore(store), self.blobs, self.clock)

    async def put(self, content: bytes) -> BlobName:
        async def chunks() -> AsyncIterator[bytes]:
            if content:
                yield content

        name = BlobName(hashlib.sha256(content).hexdigest())
        await self.blobs.upload(name, len(content), 0, chunks())
        return name

    async def draft(
        self, files: dict[str, bytes], manifest: Manifest | bytes | None = None, provenance: Provenance | None = None
    ) -> VersionDraft:
        """A package of these files, with the manifest that fits them unless another is given."""
        content = manifest_of(files) if manifest is None else manifest
        members = files | {"manifest.json": content.to_json() if isinstance(content, Manifest) else content}
        return VersionDraft(
            tuple([(path, await self.put(content)) for path, content in members.items()]), provenance or Provenance()
        )


def manifest_of(files: dict[str, bytes]) -> Manifest:
    entries = [FileEntry(path, hashlib.sha256(content).hexdigest(), len(content)) for path, content in files.items()]
    return Manifest(
        task="text-classification",
        inputs=(TensorSpec("input_ids", "INT64", (-1, -1)),),
        outputs=(TensorSpec("logits", "FP32", (-1, 2)),),
        labels=("negative", "positive"),
        servables=tuple(Servable("onnxruntime", "fp32", path) for path in files if path.endswith(".onnx")),
        files=tuple(entries),
    )


@pytest.fixture
async def registry() -> Registry:
    registry = Registry()
    for name in (A, B):
        await registry.models.create(name, ModelDetails(), ANN)
    return registry


async def test_a_version_carries_the_signature_and_sizes_of_its_package(registry: Registry) -> None:
    draft = await registry.draft({"servables/model.onnx": ONNX})
    version = await registry.versions.create(A, draft, "", ANN)
    signature = version.content.signature
    assert signature.servables == (ServableSpec("onnxruntime", "fp32", "servables/model.onnx", len(ONNX)),)
    assert (signature.task, signature.labels) == ("text-classification", ("negative", "positive"))
    assert (signature.architecture, signature.text_input) == ("", "")
    assert version.size_bytes == len(ONNX) + len(manifest_of({"servables/model.onnx": ONNX}).to_json())
    assert await registry.versions.get(version.name) == version


async def package_failure(registry: Registry, draft: VersionDraft) -> type[Failure]:
    with pytest.raises(Failure) as caught:
        await registry.versions.create(A, draft, "", ANN)
    assert (await registry.versions.list(A, Query(NEWEST_FIRST), None, 10)).items == []
    return caught.type


async def test_a_package_without_a_manifest_is_refused(registry: Registry) -> None:
    draft = VersionDraft((("model.onnx", await registry.put(ONNX)),))
    assert await package_failure(registry, draft) is ManifestMissing


async def test_a_manifest_that_is_none_is_refused(registry: Registry) -> None:
    assert await package_failure(registry, await registry.draft({}, b"{}")) is ManifestInvalid
    assert await package_failure(registry, await registry.draft({}, b"not JSON")) is ManifestInvalid


async def test_a_blob_that_is_not_there_is_not_found(registry: Registry) -> None:
    draft = await registry.draft({"model.onnx": ONNX})
    missing = BlobName("0" * 64)
    members = tuple((path, missing if path == "model.onnx" else blob) for path, blob in draft.members)
    assert await package_failure(registry, replace(draft, members=members)) is BlobNotFound


async def test_a_file_the_manifest_does_not_list_is_refused(registry: Registry) -> None:
    draft = await registry.draft({"a.onnx": ONNX, "b.onnx": ONNX}, manifest_of({"a.onnx": ONNX}))
    assert await package_failure(registry, draft) is PackageFileUnlisted


async def test_a_file_that_only_the_manifest_has_is_refused(registry: Registry) -> None:
    draft = await registry.draft({"a.onnx": ONNX}, manifest_of({"a.onnx": ONNX, "b.onnx": ONNX}))
    assert await package_failure(registry, draft) is PackageFileMissing


async def test_a_file_with_another_hash_than_the_manifest_says_is_refused(registry: Registry) -> None:
    draft = await registry.draft({"a.onnx": ONNX}, manifest_of({"a.onnx": ONNX + b"!"}))
    assert await package_failure(registry, draft) is PackageFileDamaged


async def test_a_path_that_is_there_twice_is_refused_even_in_other_letters(registry: Registry) -> None:
    draft = await registry.draft({"a.onnx": ONNX})
    twice = replace(draft, members=(*draft.members, ("A.onnx", draft.members[0][1])))
    assert await package_failure(registry, twice) is PackageFileRepeated


@pytest.mark.parametrize("path", ["../a.onnx", "/a.onnx", "a//b", "a\\b", ".", "c:x"])
async def test_a_path_that_leaves_the_package_is_refused(registry: Registry, path: str) -> None:
    draft = await registry.draft({"a.onnx": ONNX})
    members = tuple((path if member == "a.onnx" else member, blob) for member, blob in draft.members)
    assert await package_failure(registry, replace(draft, members=members)) is PackagePathInvalid


@pytest.mark.parametrize("path", ["weights.pt", "weights.bin", "notes.txt"])
async def test_a_pickle_is_refused_under_any_name(registry: Registry, path: str) -> None:
    files = {"a.onnx": ONNX, path: pickle.dumps({"weights": [1, 2]}, protocol=4)}
    assert await package_failure(registry, await registry.draft(files)) is PackageHoldsPickle


async def test_a_request_id_is_answered_with_what_it_made_without_looking_at_the_package(registry: Registry) -> None:
    made = await registry.versions.create(A, await registry.draft({"a.onnx": ONNX}), "once", ANN)
    assert await registry.versions.create(A, VersionDraft(()), "once", ANN) == made


async def test_a_version_of_a_model_that_is_not_there_is_not_found(registry: Registry) -> None:
    with pytest.raises(ModelNotFound):
        await registry.versions.create(ModelName("c"), await registry.draft({"a.onnx": ONNX}), "", ANN)


async def test_a_parent_has_to_be_a_version_of_the_same_model(registry: Registry) -> None:
    parent = (await registry.versions.create(A, await registry.draft({"a.onnx": ONNX}), "", ANN)).name
    child = await registry.draft({"a.onnx": ONNX}, provenance=Provenance(parent_version=parent))
    assert (await registry.versions.create(A, child, "", ANN)).content.provenance.parent_version == parent
    with pytest.raises(VersionOfOtherModel):
        await registry.versions.create(B, child, "", ANN)
    orphan = await registry.draft({"a.onnx": ONNX}, provenance=Provenance(parent_version=VersionName("a", 9)))
    with pytest.raises(VersionNotFound):
        await registry.versions.create(A, orphan, "", ANN)


async def test_fifty_clients_at_once_get_fifty_versions(registry: Registry) -> None:
    draft = await registry.draft({"a.onnx": ONNX})
    made = await asyncio.gather(*(registry.versions.create(A, draft, f"r{n}", ANN) for n in range(50)))
    assert sorted(version.name.number for version in made) == list(range(1, 51))


async def test_a_model_is_stored_once(registry: Registry) -> None:
    with pytest.raises(ModelExists):
        await registry.models.create(A, ModelDetails(), ANN)
    with pytest.raises(ModelNotFound):
        await registry.models.get(ModelName("c"))


async def test_an_alias_names_a_version_of_its_own_model(registry: Registry) -> None:
    version = await registry.versions.create(A, await registry.draft({"a.onnx": ONNX}), "", ANN)
    name = AliasName("a", "best")
    alias = await registry.aliases.set(name, version.name, ANN)
    assert alias.update_time == NOW
    assert await registry.versions.get(name) == version
    with pytest.raises(VersionOfOtherModel):
        await registry.aliases.set(AliasName("b", "best"), version.name, ANN)
    with pytest.raises(VersionNotFound):
        await registry.aliases.set(name, VersionName("a", 2), ANN)
    await registry.aliases.delete(name, "", ANN)
    with pytest.raises(AliasNotFound):
        await registry.aliases.delete(name, "", ANN)


async def test_what_is_missing_is_named_as_precisely_as_it_can_be(registry: Registry) -> None:
    for name, kind in (
        (VersionName("a", 1), VersionNotFound),
        (AliasName("a", "best"), AliasNotFound),
        (VersionName("c", 1), ModelNotFound),
        (AliasName("c", "best"), ModelNotFound),
    ):
        with pytest.raises(kind):
            await registry.versions.get(name)
    with pytest.raises(ModelNotFound):
        await registry.versions.list(ModelName("c"), Query(NEWEST_FIRST), None, 10)
    with pytest.raises(ModelNotFound):
        await registry.aliases.list(ModelName("c"), None, 10)


async def test_a_model_has_at_most_a_hundred_aliases(registry: Registry) -> None:
    version = await registry.versions.create(A, await registry.draft({"a.onnx": ONNX}), "", ANN)
    for number in range(MAX_ALIASES):
        await registry.aliases.set(AliasName("a", f"n{number}"), version.name, ANN)
    with pytest.raises(TooManyAliases):
        await registry.aliases.set(AliasName("a", "more"), version.name, ANN)


async def test_a_dataset_version_carries_the_sizes_of_its_files(registry: Registry) -> None:
    name = DatasetName("reviews")
    await registry.datasets.create(name, "films", AUTHOR)
    content = parquet(text=["a", "b"])
    blob = await registry.put(content)
    drafts = [SplitDraft(split, f"{split}.parquet", blob) for split in ("train", "test")]
    version = await registry.datasets.create_version(name, drafts, "first", "once", AUTHOR)
    assert version.size_bytes == 2 * len(content)
    assert version.content.columns == (Column("text", "string", nullable=True),)
    assert [split.row_count for split in version.content.splits] == [2, 2]
    assert await registry.datasets.create_version(name, [], "", "once", AUTHOR) == version
    assert (await registry.datasets.get(name)).latest_version == version.name
    assert await registry.datasets.list_versions(name, None, 10) == [version]


async def test_a_dataset_version_that_is_wrong_is_refused(registry: Registry) -> None:
    name = DatasetName("reviews")
    await registry.datasets.create(name, "", AUTHOR)
    content = parquet(text=["a", "b"])
    good, cut = await registry.put(content), await registry.put(content[:-1])
    other, empty = await registry.put(parquet(text=[1, 2])), await registry.put(parquet(text=[]))

    def counted(column: str, **counts: Any) -> SplitDraft:
        found = ColumnStatistics(
            column, **({"null_count": 0, "distinct_count": 2, "distinct_estimated": False} | counts)
        )
        return SplitDraft("a", "a", good, (found,))

    cases: list[tuple[list[SplitDraft], type[Failure]]] = [
        ([SplitDraft("a", "a", good), SplitDraft("a", "b", good)], SplitRepeated),
        ([SplitDraft("a", "a", cut)], SplitNotParquet),
        ([SplitDraft("a", "a", empty)], SplitEmpty),
        ([SplitDraft("a", "a", good), SplitDraft("b", "b", other)], SplitsDiffer),
        ([SplitDraft("a", "../a", good)], PackagePathInvalid),
        ([counted("none")], StatisticsInvalid),
        ([counted("text", null_count=1)], StatisticsInvalid),
        ([counted("text", values=(("a", 3),))], StatisticsInvalid),
        ([counted("text", texts=TextStatistics(1, 1, 1, (0, 3)))], StatisticsInvalid),
        ([counted("text", numbers=NumberStatistics(0, 1, float("nan"), 1))], StatisticsInvalid),
        ([SplitDraft("a", "a", BlobName("0" * 64))], BlobNotFound),
    ]
    for drafts, kind in cases:
        with pytest.raises(kind):
            await registry.datasets.create_version(name, drafts, "", "", AUTHOR)
    assert await registry.datasets.list_versions(name, None, 10) == []


async def test_datasets_that_are_missing_or_there_already_are_named(registry: Registry) -> None:
    name = DatasetName("reviews")
    with pytest.raises(DatasetNotFound):
        await registry.datasets.create_version(name, [], "", "", AUTHOR)
    with pytest.raises(DatasetNotFound):
        await registry.datasets.list_versions(name, None, 10)
    await registry.datasets.create(name, "", AUTHOR)
    with pytest.raises(DatasetExists):
        await registry.datasets.create(name, "", AUTHOR)
    with pytest.raises(DatasetVersionNotFound):
        await registry.datasets.get_version(DatasetVersionName("reviews", 1))

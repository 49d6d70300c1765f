"""compile: one engine and precision, the fastest that answers as the source does, and no file that it does not need."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from maas_compression.materials import Materials
from maas_compression.recipe import Compile
from maas_compression.techniques.graphs import comparable_servable, example_batches
from maas_engine.engine import BF16, ServableMissing, can_run, choose_servable
from maas_engine.publish import agreeing, openvino_candidates, with_measurements
from maas_package.manifest import MANIFEST_NAME, Manifest, Servable
from maas_package.package import Package, write_package

_TEXTS = 512


def apply_compile(source: Package, technique: Compile, folder: Path, materials: Materials) -> Package:
    """Write the package that is served in one way to `folder`, which must be new or empty.

    The ways are the source's servables, what openvino makes of its ONNX file, and torch where there is a trainable
    form; those that differ too much are left out (maas_engine.publish says how much). The trainable form goes, unless
    torch was chosen. The files themselves stay as they are: nothing in them is for one processor only, so another
    host can serve them too, though it might have chosen otherwise. Raises ServableMissing when no way is left.
    """
    ways = [one for one in _ways(source, materials) if _is_asked_for(one, technique) and can_run(one)]
    if not ways:
        wanted = " ".join(one for one in (technique.engine, technique.precision) if one) or "any engine"
        raise ServableMissing(f"compile: {wanted} cannot serve this version on this host as it is served now")
    for entry in source.manifest.files:
        target = folder.joinpath(*entry.path.split("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path(entry.path), target)
    texts = () if materials.texts is None else tuple(islice(materials.texts.texts(), _TEXTS))
    measured = with_measurements(source, ways, texts, materials.log)
    chosen = choose_servable(Package(source.folder, replace(source.manifest, servables=measured)))
    materials.log(f"compile: {chosen.engine} {chosen.precision}")
    manifest = _only(source.manifest, chosen)
    needed = (MANIFEST_NAME, *manifest.referenced_paths())
    for entry in source.manifest.files:
        # What lies beside a file under its name belongs to it.
        if not any(entry.path == path or entry.path.startswith(f"{path}.") for path in needed):
            folder.joinpath(*entry.path.split("/")).unlink()
    return write_package(folder, manifest)


def _ways(source: Package, materials: Materials) -> Iterator[Servable]:
    manifest = source.manifest
    yield from manifest.servables
    there = {(one.engine, one.precision) for one in manifest.servables}
    graph = next((one for one in manifest.servables if one.engine == "onnxruntime"), None)
    candidates = () if graph is None else openvino_candidates(graph)
    if manifest.weights is not None:
        trainable = Servable("torch", manifest.servables[0].precision, manifest.weights.path)
        candidates += (trainable, replace(trainable, precision=BF16))
    missing = [one for one in candidates if (one.engine, one.precision) not in there]
    if missing:
        yield from agreeing(source, missing, comparable_servable(source), example_batches(source), materials.log)


def _is_asked_for(servable: Servable, technique: Compile) -> bool:
    return technique.engine in ("", servable.engine) and (
        not technique.precision or (technique.precision == "bfloat16") == (servable.precision == BF16)
    )


def _only(manifest: Manifest, servable: Servable) -> Manifest:
    kept = replace(manifest, servables=(servable,), files=())
    if servable.engine == "torch":
        return kept
    return replace(kept, architecture=None, weights=None)

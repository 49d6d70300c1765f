"""What recipes begin with, kept so that several trials share it: a student is trained once, and quantized many ways."""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maas_compression.materials import Materials
from maas_compression.recipe import Recipe, Technique
from maas_compression.searching.space import trains
from maas_compression.spec import recipe_text
from maas_package.package import Package, read_package

_MARK = ".seconds"
_WORTH_KEEPING_SECONDS = 30.0
_KEPT_OF_THE_OTHERS = 4

Apply = Callable[[Package, Technique, Path, Materials], Package]


@dataclass(frozen=True, slots=True)
class Prefixes:
    """A folder of packages, each under a hash of the recipe's lines that made it."""

    folder: Path

    def make(self, source: Package, recipe: Recipe, target: Path, materials: Materials, apply: Apply) -> Package:
        """Write what the recipe makes of the source to `target`, from the longest beginning that is there.

        Every proper beginning is kept, and so is the whole where its last step trains.
        """
        package = source
        for end in range(1, len(recipe)):
            package = self._step(package, recipe[:end], materials, apply)
        if trains(recipe[-1]):
            package = self._step(package, recipe, materials, apply)
            shutil.copytree(package.folder, target)
            return read_package(target)
        return apply(package, recipe[-1], target, _own_scratch(materials, self._path(recipe)))

    def remove_all_but(self, recipes: Iterable[Recipe]) -> None:
        """Remove what is quickly made again, but for the last few, and for what these recipes are being made from."""
        used = {self._path(recipe[:end]).name for recipe in recipes for end in range(1, len(recipe) + 1)}
        marks = sorted(self.folder.glob(f"*{_MARK}"), key=lambda mark: mark.stat().st_mtime, reverse=True)
        quick = [
            mark
            for mark in marks
            if mark.name.removesuffix(_MARK) not in used and float(mark.read_text()) < _WORTH_KEEPING_SECONDS
        ]
        for mark in quick[_KEPT_OF_THE_OTHERS:]:
            mark.unlink()
            shutil.rmtree(self.folder / mark.name.removesuffix(_MARK), ignore_errors=True)

    def _step(self, before: Package, beginning: Recipe, materials: Materials, apply: Apply) -> Package:
        """Return the package of a beginning; whoever needs it at the same time waits until it is made."""
        path = self._path(beginning)
        mark = path.with_name(path.name + _MARK)
        self.folder.mkdir(parents=True, exist_ok=True)
        with path.with_name(f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if mark.is_file():
                mark.touch()
                return read_package(path)
            shutil.rmtree(path, ignore_errors=True)
            began = time.monotonic()
            package = apply(before, beginning[-1], path, _own_scratch(materials, path))
            mark.write_text(str(time.monotonic() - began))
            return package

    def _path(self, beginning: Sequence[Technique]) -> Path:
        text = json.dumps(recipe_text(tuple(beginning)))
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:24]


def _own_scratch(materials: Materials, path: Path) -> Materials:
    """Give each beginning a scratch folder of its own, where training goes on after a kill."""
    scratch = path.with_name(f"{path.name}.scratch")
    scratch.mkdir(parents=True, exist_ok=True)
    return replace(materials, scratch=scratch)

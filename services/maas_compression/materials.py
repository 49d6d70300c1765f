"""What a technique may need beside the version that it changes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from maas_compression.spec import CHOOSING_SPLIT, LEARNING_SPLIT, UNLABELLED_FOLDER
from maas_jobs.labelled_rows import LabelledSplit, TextSplit, open_labelled_split, open_text_split
from maas_jobs.transfer import split_path
from maas_package.manifest import TEXT_CLASSIFICATION, Manifest
from maas_runtime.failures import InvalidInput

logger = logging.getLogger(__name__)


def _say_nothing(share: float, phase: str) -> None:
    del share, phase


class TrainingDataMissing(InvalidInput):
    """The technique learns from data, and the job has none."""

    reason = "TRAINING_DATA_MISSING"


@dataclass(frozen=True, slots=True)
class Materials:
    """Data, a place for what must outlive a killed run, and somebody to tell of the progress."""

    scratch: Path
    """A folder of the technique's own, empty at first; a run that goes on after a kill finds it as it was."""
    train: LabelledSplit | None = None
    validation: LabelledSplit | None = None
    unlabelled: TextSplit | None = None
    """Texts whose labels are not known, or of no use: those of the source's own data when it gives no classes."""
    threads: int = 1
    log: Callable[[str], None] = logger.info
    progress: Callable[[float, str], None] = _say_nothing
    """Takes the share of this technique that is done, 0 to 1, and what is being done."""

    @property
    def texts(self) -> TextSplit | None:
        """Texts to look at ranges and counts with; None when the source takes none, so that made-up inputs do."""
        return self.train or self.unlabelled

    def require_train(self) -> LabelledSplit:
        """Return the rows to learn from. Raises TrainingDataMissing."""
        if self.train is None:
            raise TrainingDataMissing("this technique learns from data: name a dataset with a split train")
        return self.train


def open_materials(
    job_folder: Path,
    manifest: Manifest,
    scratch: Path,
    *,
    threads: int,
    log: Callable[[str], None],
    progress: Callable[[float, str], None] = _say_nothing,
) -> Materials:
    """Return what was fetched into a job's folder for a source of this manifest.

    Rows of a model that gives no classes have no labels that say anything, so they come as `unlabelled`. Raises what
    open_labelled_split or open_text_split raises.
    """
    unlabelled = _existing(split_path(job_folder / UNLABELLED_FOLDER, LEARNING_SPLIT))
    learning, choosing = (_existing(split_path(job_folder, name)) for name in (LEARNING_SPLIT, CHOOSING_SPLIT))
    labelled = manifest.task == TEXT_CLASSIFICATION
    texts = unlabelled or (None if labelled else learning)
    return Materials(
        scratch,
        train=open_labelled_split(learning) if labelled and learning else None,
        validation=open_labelled_split(choosing) if labelled and choosing else None,
        unlabelled=open_text_split(texts) if texts else None,
        threads=threads,
        log=log,
        progress=progress,
    )


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None

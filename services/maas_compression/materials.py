"""What a technique may need beside the version that it changes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from maas_jobs.labelled_rows import LabelledSplit
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
    unlabelled: LabelledSplit | None = None
    threads: int = 1
    log: Callable[[str], None] = logger.info
    progress: Callable[[float, str], None] = _say_nothing
    """Takes the share of this technique that is done, 0 to 1, and what is being done."""

    def require_train(self) -> LabelledSplit:
        """Return the rows to learn from. Raises TrainingDataMissing."""
        if self.train is None:
            raise TrainingDataMissing("this technique learns from data: name a dataset with a split train")
        return self.train

"""The folder of one job: its log, which stays, and its work, which goes when the job has ended."""

import json
import shutil
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from maas_jobs.job import MAX_LOG_LINES, LogLine


class JobFiles:
    """`<folder>/<job>/log.jsonl` and `<folder>/<job>/work/`. All methods block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def work_folder(self, job_id: str) -> Path:
        """Return the folder in which the job's steps work, made if it is not there."""
        folder = self._folder / job_id / "work"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def remove_work(self, job_id: str) -> None:
        """Remove what the steps left."""
        shutil.rmtree(self._folder / job_id / "work", ignore_errors=True)

    def append_log(self, job_id: str, lines: Iterable[LogLine]) -> None:
        """Add lines to the log."""
        path = self._log(job_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps([line.number, line.time, line.text]) + "\n" for line in lines)

    def read_log(self, job_id: str) -> tuple[LogLine, ...]:
        """Return the last MAX_LOG_LINES lines; a line that a kill cut short is left out."""
        try:
            with self._log(job_id).open(encoding="utf-8", errors="replace") as file:
                content = deque((line for line in file if line.endswith("]\n")), maxlen=MAX_LOG_LINES)
        except FileNotFoundError:
            return ()
        return tuple(LogLine(*json.loads(line)) for line in content)

    def _log(self, job_id: str) -> Path:
        return self._folder / job_id / "log.jsonl"

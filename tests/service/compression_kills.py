"""`kill -9` at random moments of a search: what had ended is not run again, and the job ends with an answer.

The one killed is in turn the service, with which its step and all trials die, and the process of a trial. Before each
kill it is written down which trials have ended; all that follows is held against that.
"""

import contextlib
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
import psutil
from job_cluster import JobCluster

from maas.compression.v1 import compression_service_pb2 as messages
from maas.compression.v1.compression_job_pb2 import CompressionJob
from maas.jobs.v1 import job_state_pb2
from maas_compression.searching.folders import SearchFolders
from maas_compression.searching.trials import Record

MOST_KILLS_OF_ONE_JOB = 4
"""Of the service: what was begun five times is given up (maas_jobs.jobs.MAX_BEGINNINGS)."""
_POLL_SECONDS = 0.02
_JOB_SECONDS = 1800.0
_FINAL = (job_state_pb2.JOB_STATE_SUCCEEDED, job_state_pb2.JOB_STATE_FAILED, job_state_pb2.JOB_STATE_CANCELLED)
_TRIAL_MODULE = "maas_compression.searching.trial"


@dataclass(slots=True)
class Kills:
    """What came of it."""

    jobs: int = 0
    by_victim: dict[str, int] = field(default_factory=dict)
    finished_before: int = 0
    """Trials that had ended before some kill, over all jobs."""
    run_again: int = 0
    """Of these, how many were run a second time or changed."""
    without_answer: int = 0
    """Jobs that did not end with an answer."""
    verdicts: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many kills there were."""
        return sum(self.by_victim.values())


def kill_searches(cluster: JobCluster, job: CompressionJob, *, kills: int, longest: float, seed: int) -> Kills:
    """Kill until there were so many kills, each at most `longest` seconds after the one before; job after job."""
    found, chance = Kills(), random.Random(seed)
    while found.count < kills:
        _kill_one_search(cluster, job, kills - found.count, longest, chance, found)
    return found


def _kill_one_search(
    cluster: JobCluster,
    job: CompressionJob,
    kills: int,
    longest: float,
    chance: random.Random,
    found: Kills,
) -> None:
    created = cluster.compression.CreateCompressionJob(
        messages.CreateCompressionJobRequest(compression_job=job), timeout=30
    )
    found.jobs += 1
    folders = SearchFolders(cluster.home / "compression" / "jobs" / created.name.rpartition("/")[2] / "work")
    seen: dict[int, Record] = {}
    killed = {"service": 0, "trial": 0}
    while sum(killed.values()) < kills and killed["service"] < MOST_KILLS_OF_ONE_JOB:
        if not _until_searching(cluster, created.name, folders):
            break
        time.sleep(chance.uniform(0, longest))
        # What is read here had ended before the kill; what ends in between is not claimed to have been seen.
        ended = {record.number: record for record in folders.records()}
        victim = "trial" if (found.count + 1) % 3 == 0 else "service"
        if not ended or not _kill(cluster, victim):
            if _get(cluster, created.name).status.state in _FINAL:
                break
            continue
        found.run_again += _changed(seen, folders)
        seen |= ended
        killed[victim] += 1
        found.by_victim[victim] = found.by_victim.get(victim, 0) + 1
    last = _ended(cluster, created.name)
    found.finished_before += len(seen)
    found.run_again += _missing(seen, last)
    verdict = last.search_report.answer.verdict if last.status.state == job_state_pb2.JOB_STATE_SUCCEEDED else ""
    found.without_answer += not verdict
    found.verdicts.append(verdict or last.status.error.message)


def _until_searching(cluster: JobCluster, name: str, folders: SearchFolders) -> bool:
    """Wait until a trial is running; False when the job ended before."""
    end = time.monotonic() + _JOB_SECONDS
    while time.monotonic() < end:
        if _trials(cluster) and folders.records():
            return True
        if _get(cluster, name).status.state in _FINAL:
            return False
        time.sleep(_POLL_SECONDS)
    raise AssertionError(f"{name}: no trial within {_JOB_SECONDS:g} s")


def _kill(cluster: JobCluster, victim: str) -> bool:
    """Kill, and see to it that a service is there again; False when there is nobody to kill."""
    trials = _trials(cluster)
    if not trials:
        return False
    if victim == "trial":
        with contextlib.suppress(psutil.NoSuchProcess):
            trials[0].kill()
        return True
    children = cluster.steps("compression")
    cluster.kill("compression")
    # They die with their parent; a new one waits for the old step's lock in any case.
    psutil.wait_procs(children, timeout=30)
    cluster.start("compression")
    cluster.wait_for(["compression"])
    return True


def _trials(cluster: JobCluster) -> list[psutil.Process]:
    found = []
    for process in cluster.steps("compression"):
        with contextlib.suppress(psutil.Error):
            if _TRIAL_MODULE in process.cmdline():
                found.append(process)
    return found


def _changed(seen: Mapping[int, Record], folders: SearchFolders) -> int:
    """Return how many of the trials that had ended are not as they were; none of a job whose work is gone."""
    now = {record.number: record for record in folders.records()}
    return sum(now[number] != record for number, record in seen.items() if number in now)


def _missing(seen: Mapping[int, Record], job: CompressionJob) -> int:
    """Return how many of the trials that had ended are not in the report as they were, or are in it twice."""
    told = {trial.number: trial for trial in job.search_report.trials}
    count = 0
    for number, record in seen.items():
        if not record.recipe:  # the source
            continue
        trial = told.get(number)
        same = trial is not None and tuple(trial.recipe) == record.recipe
        again = [one for one in told.values() if tuple(one.recipe) == record.recipe and one.number > number]
        # A trial that was killed itself may be tried once more.
        count += not same or (record.outcome.figures.p50_seconds is not None and bool(again))
    return count


def _get(cluster: JobCluster, name: str) -> CompressionJob:
    return cluster.compression.GetCompressionJob(
        messages.GetCompressionJobRequest(name=name), timeout=30, wait_for_ready=True
    )


def _ended(cluster: JobCluster, name: str) -> CompressionJob:
    request = messages.WatchCompressionJobRequest(name=name)
    end = time.monotonic() + _JOB_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(grpc.RpcError):
            *_, last = cluster.compression.WatchCompressionJob(request, timeout=_JOB_SECONDS, wait_for_ready=True)
            return last.compression_job
    raise AssertionError(f"{name} did not end within {_JOB_SECONDS:g} s")

"""Jobs on the real store, with real processes for their steps."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from prometheus_client import CollectorRegistry

from maas_jobs.durable import DurableJobs
from maas_jobs.job import Job, JobNotFound, JobQueueFull, JobState, JsonObject, ServiceStopping, Step, StepLimits
from maas_jobs.jobs import Jobs
from maas_jobs.metrics import JobMetrics
from maas_runtime.paging import PageTokenInvalid

# Does what the job's spec says, and counts in a file how often it was done.
STEP_MODULE = """
    import os, signal, sys, time
    from maas_jobs.job import JsonObject
    from maas_jobs.step import Reporter, StepRequest, run_step
    from maas_runtime.failures import NotFound, Unavailable

    def work(request: StepRequest, report: Reporter) -> JsonObject:
        name = sys.argv[0].rpartition("_")[2].removesuffix(".py")
        spec = request.spec
        with open(spec["trace"], "a") as file:
            file.write(f"{name} {os.getpid()}\\n")
        print("a library says hello")
        match spec.get(name):
            case "fail":
                raise NotFound("no such thing", name="things/1")
            case "broken":
                raise ZeroDivisionError("by hand")
            case "out of memory":
                bytearray(2**62)
            case "unavailable once":
                if not (request.folder / "again").exists():
                    (request.folder / "again").touch()
                    raise Unavailable("away")
            case "hang":
                report.progress(0.5, "hanging", {"loss": 0.5})
                signal.pause()
            case "stubborn":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                report.progress(0.5, "hanging")
                while True:
                    signal.pause()
            case "greedy":
                keep = bytearray(200 * 2**20)
                signal.pause()
            case "talk":
                for number in range(1, 301):
                    report.log(f"line {number}")
        report.progress(1.0, name)
        return {"did": name}

    if __name__ == "__main__":
        run_step(work)
"""


@pytest.fixture(autouse=True)
def step_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"trial_{name}.py").write_text(textwrap.dedent(STEP_MODULE))
    monkeypatch.setenv("PYTHONPATH", str(folder))


@asynccontextmanager
async def running_jobs(
    folder: Path, *, seconds: float = 30.0, max_waiting: int = 100, megabytes: int = 1000
) -> AsyncIterator[Jobs]:
    steps = [Step(name, f"trial_{name}", 0.5) for name in ("one", "two")]
    limits = StepLimits(seconds, megabytes * 2**20)
    store = DurableJobs("maas-trial", folder / "jobs.sqlite", [step.name for step in steps], 1, poll_seconds=0.02)
    metrics = JobMetrics(CollectorRegistry())
    async with (
        store,
        Jobs(
            "trainingJobs", steps, limits, store, folder / "jobs", "unix:none", metrics, max_waiting=max_waiting
        ) as jobs,
    ):
        yield jobs


async def seen_until(jobs: Jobs, job_id: str, *states: JobState) -> list[Job]:
    """Return all that a watcher sees until the job is in one of the states."""
    seen: list[Job] = []
    async with asyncio.timeout(30):
        async for job in jobs.watch(job_id):
            seen.append(job)
            if job.state in states:
                break
    return seen


async def hanging(jobs: Jobs, job_id: str) -> Job:
    """Return the job once its step has said that it hangs."""
    async with asyncio.timeout(30):
        async for job in jobs.watch(job_id):
            if job.phase == "hanging":
                return job
    raise AssertionError("the job ended")


async def ended(jobs: Jobs, job_id: str) -> Job:
    return (await seen_until(jobs, job_id, *(state for state in JobState if state.is_final)))[-1]


def trace(folder: Path) -> list[str]:
    path = folder / "trace"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def traced_pids(folder: Path) -> list[int]:
    return [int(line.split()[1]) for line in (folder / "trace").read_text().splitlines()]


def spec(folder: Path, **what: str) -> JsonObject:
    return {"trace": str(folder / "trace"), **what}


async def test_a_job_does_its_steps_in_order_and_ends_with_the_last_ones_result(tmp_path: Path) -> None:
    async with running_jobs(tmp_path) as jobs:
        created = await jobs.create(spec(tmp_path), "")
        assert created.state is JobState.QUEUED
        seen = await seen_until(jobs, created.job_id, JobState.SUCCEEDED)
    assert trace(tmp_path) == ["one", "two"]
    job = seen[-1]
    assert (job.result, job.progress, job.error) == ({"did": "two"}, 1.0, None)
    assert job.create_time <= (job.start_time or 0) <= (job.end_time or 0)
    assert [line.text for line in job.log_lines] == []
    progress = [job.progress for job in seen]
    assert progress == sorted(progress)
    assert not (tmp_path / "jobs" / job.job_id / "work").exists()


async def test_only_the_last_200_log_lines_are_kept_with_their_numbers(tmp_path: Path) -> None:
    async with running_jobs(tmp_path) as jobs:
        job = await ended(jobs, (await jobs.create(spec(tmp_path, one="talk"), "")).job_id)
    assert [line.number for line in job.log_lines] == list(range(101, 301))
    assert job.log_lines[-1].text == "line 300"
    async with running_jobs(tmp_path) as jobs:
        assert (await jobs.get(job.job_id)) == job


async def test_a_request_id_makes_one_job(tmp_path: Path) -> None:
    async with running_jobs(tmp_path) as jobs:
        first = await jobs.create(spec(tmp_path), "Request-1")
        again = await jobs.create(spec(tmp_path, one="fail"), "Request-1")
        assert again.job_id == first.job_id
        await ended(jobs, first.job_id)
    async with running_jobs(tmp_path) as jobs:
        after_restart = await jobs.create(spec(tmp_path), "Request-1")
    assert (after_restart.job_id, after_restart.state) == (first.job_id, JobState.SUCCEEDED)
    assert trace(tmp_path) == ["one", "two"]


@pytest.mark.parametrize(
    ("what", "code", "reason"),
    [
        ("fail", "NOT_FOUND", "NOT_FOUND"),
        ("broken", "INTERNAL", "JOB_STEP_BROKE"),
        ("out of memory", "RESOURCE_EXHAUSTED", "JOB_STEP_NO_MEMORY"),
        ("greedy", "RESOURCE_EXHAUSTED", "JOB_STEP_OVER_MEMORY"),
        ("hang", "DEADLINE_EXCEEDED", "JOB_STEP_OVER_TIME"),
    ],
)
async def test_a_step_without_a_result_fails_the_job_with_its_reason(
    tmp_path: Path, what: str, code: str, reason: str
) -> None:
    async with running_jobs(tmp_path, seconds=2.0, megabytes=150) as jobs:
        job = await ended(jobs, (await jobs.create(spec(tmp_path, one=what), "")).job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.reason) == (code, reason)
    assert trace(tmp_path) == ["one"]
    assert not any(psutil.pid_exists(pid) for pid in traced_pids(tmp_path))


async def test_a_step_that_found_something_away_is_tried_again(tmp_path: Path) -> None:
    async with running_jobs(tmp_path) as jobs:
        job = await ended(jobs, (await jobs.create(spec(tmp_path, one="unavailable once"), "")).job_id)
    assert job.state is JobState.SUCCEEDED
    assert trace(tmp_path) == ["one", "one", "two"]
    assert [line.text for line in job.log_lines] == ["away; trying again in 1 s"]


@pytest.mark.parametrize("what", ["hang", "stubborn"])
async def test_cancel_ends_the_process_and_then_the_job(tmp_path: Path, what: str) -> None:
    async with running_jobs(tmp_path) as jobs:
        job_id = (await jobs.create(spec(tmp_path, one=what), "")).job_id
        await hanging(jobs, job_id)
        assert (await jobs.cancel(job_id)).state is JobState.CANCELLING
        job = await ended(jobs, job_id)
        assert not any(psutil.pid_exists(pid) for pid in traced_pids(tmp_path))
        assert job.state is JobState.CANCELLED
        assert job.error is not None
        assert (job.error.code, job.error.reason) == ("CANCELLED", "JOB_CANCELLED")
        assert (await jobs.cancel(job_id)) == job


async def test_a_waiting_job_is_cancelled_at_once_and_never_begun(tmp_path: Path) -> None:
    async with running_jobs(tmp_path) as jobs:
        first = (await jobs.create(spec(tmp_path, one="hang"), "")).job_id
        await hanging(jobs, first)
        second = (await jobs.create(spec(tmp_path), "")).job_id
        cancelled = await jobs.cancel(second)
        assert (cancelled.state, cancelled.start_time) == (JobState.CANCELLED, None)
        third = (await jobs.create(spec(tmp_path), "")).job_id
        await jobs.cancel(first)
        await ended(jobs, third)
    assert trace(tmp_path) == ["one", "one", "two"]


async def test_a_full_queue_takes_no_more_jobs(tmp_path: Path) -> None:
    async with running_jobs(tmp_path, max_waiting=2) as jobs:
        first = (await jobs.create(spec(tmp_path, one="hang"), "")).job_id
        await hanging(jobs, first)
        await jobs.create(spec(tmp_path), "second")
        await jobs.create(spec(tmp_path), "")
        with pytest.raises(JobQueueFull):
            await jobs.create(spec(tmp_path), "")
        assert (await jobs.create(spec(tmp_path), "second")).state is JobState.QUEUED


async def test_pages_are_newest_first_and_hold_while_jobs_are_added(tmp_path: Path) -> None:
    async with running_jobs(tmp_path) as jobs:
        created = [(await jobs.create(spec(tmp_path, one="hang"), "")).job_id for _ in range(5)]
        first = jobs.page(2, "")
        await jobs.create(spec(tmp_path, one="hang"), "")
        second = jobs.page(2, first.next_page_token)
        third = jobs.page(2, second.next_page_token)
        assert [job.job_id for page in (first, second, third) for job in page.jobs] == created[::-1]
        assert third.next_page_token == ""
        for token in ("nonsense", "WzFd", "dHJhaW5pbmdKb2JzCng"):
            with pytest.raises(PageTokenInvalid):
                jobs.page(2, token)
        with pytest.raises(JobNotFound):
            await jobs.get("none")


async def test_a_job_goes_on_after_the_service_was_stopped_and_keeps_its_progress(tmp_path: Path) -> None:
    async with running_jobs(tmp_path) as jobs:
        job_id = (await jobs.create(spec(tmp_path, two="hang"), "")).job_id
        waiting = (await jobs.create(spec(tmp_path), "")).job_id
        before = await hanging(jobs, job_id)
    assert not any(psutil.pid_exists(pid) for pid in traced_pids(tmp_path))
    async with running_jobs(tmp_path) as jobs:
        after = await jobs.get(job_id)
        assert (after.state, after.progress, after.start_time) == (JobState.RUNNING, before.progress, before.start_time)
        async with asyncio.timeout(30):
            async for after in jobs.watch(job_id):
                assert after.progress >= before.progress
                if trace(tmp_path) == ["one", "two", "two"]:
                    break
                await jobs.create(spec(tmp_path), "one more change to be told of")
        await jobs.cancel(job_id)
        assert (await ended(jobs, waiting)).state is JobState.SUCCEEDED
    assert trace(tmp_path)[:3] == ["one", "two", "two"]


async def test_a_watch_ends_when_its_service_does_and_says_that_the_job_goes_on(tmp_path: Path) -> None:
    async with running_jobs(tmp_path) as jobs:
        job_id = (await jobs.create(spec(tmp_path, two="hang"), "")).job_id
        await hanging(jobs, job_id)
        watched = jobs.watch(job_id)
        assert (await anext(watched)).state is JobState.RUNNING
        jobs.end_watches()
        async with asyncio.timeout(5):
            with pytest.raises(ServiceStopping, match="goes on"):
                async for _ in watched:
                    pass


SERVICE = """
    import asyncio, json, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from test_jobs_durable import running_jobs, spec
    async def main(folder):
        async with running_jobs(folder) as jobs:
            job = await jobs.create(spec(folder, two="hang"), "the job")
            async for job in jobs.watch(job.job_id):
                print(json.dumps([job.job_id, job.phase]), flush=True)
    asyncio.run(main(Path(sys.argv[1])))
"""


async def test_a_killed_service_takes_its_step_with_it_and_goes_on_from_the_last_finished_one(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(SERVICE),
        str(tmp_path),
        str(Path(__file__).parent),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        phase = ""
        async with asyncio.timeout(30):
            while phase != "hanging":
                job_id, phase = json.loads(await process.stdout.readline())
    finally:
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    async with asyncio.timeout(10):
        for pid in traced_pids(tmp_path):
            with contextlib.suppress(psutil.NoSuchProcess):
                await asyncio.to_thread(psutil.Process(pid).wait, 5)
    (tmp_path / "trace").rename(tmp_path / "trace.before")
    async with running_jobs(tmp_path) as jobs:
        again = await jobs.create({}, "the job")
        assert (again.job_id, again.state) == (job_id, JobState.RUNNING)
        async with asyncio.timeout(30):
            async for job in jobs.watch(job_id):
                if job.log_lines and trace(tmp_path):
                    break
        assert (await jobs.cancel(job_id)).log_lines[0].text == "the service was restarted; going on"
        await ended(jobs, job_id)
    assert trace(tmp_path) == ["two"]

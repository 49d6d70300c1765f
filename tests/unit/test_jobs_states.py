"""A job's states, progress and stored form."""

import itertools

import pytest

from maas_jobs.job import CANCELLED_ERROR, NEXT_STATES, IllegalTransition, Job, JobError, JobState

QUEUED = Job("a", {"model": "models/m"}, create_time=1.0)
FAILURE = JobError("INTERNAL", "JOB_STEP_BROKE", "it broke")

# As protos/maas/jobs/v1/job_state.proto lists them.
LEGAL = {
    "QUEUED": {"RUNNING", "CANCELLED"},
    "RUNNING": {"SUCCEEDED", "FAILED", "CANCELLING"},
    "CANCELLING": {"CANCELLED", "SUCCEEDED", "FAILED"},
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(JobState, JobState)))
def test_only_the_transitions_of_the_contract_are_legal(old: JobState, new: JobState) -> None:
    job = Job("a", {}, 1.0, state=old)
    if new.value in LEGAL.get(old.value, set()):
        assert job.moved(new).state is new
    else:
        with pytest.raises(IllegalTransition):
            job.moved(new)


def test_final_states_are_those_that_nothing_follows() -> None:
    assert {state.value for state in JobState if state.is_final} == {"SUCCEEDED", "FAILED", "CANCELLED"}
    assert set(NEXT_STATES) == set(JobState)


def test_progress_never_goes_down_and_never_passes_one() -> None:
    job = QUEUED.begun(2.0).advanced(0.5, "train").advanced(0.2, "export")
    assert (job.progress, job.phase) == (0.5, "export")
    assert job.advanced(7.0, "export").progress == 1.0


def test_a_job_that_is_taken_up_again_keeps_its_start_time_and_state() -> None:
    job = QUEUED.begun(2.0).begun(9.0)
    assert (job.state, job.start_time, job.attempts) == (JobState.RUNNING, 2.0, 2)
    assert job.moved(JobState.CANCELLING).begun(10.0).state is JobState.CANCELLING


def test_a_result_succeeds_an_error_fails_and_a_cancellation_cancels() -> None:
    running = QUEUED.begun(2.0)
    done = running.ended(3.0, {"version": "models/m/versions/1"}, None)
    assert (done.state, done.progress, done.end_time) == (JobState.SUCCEEDED, 1.0, 3.0)
    assert running.ended(3.0, None, FAILURE).state is JobState.FAILED
    cancelled = running.moved(JobState.CANCELLING).ended(3.0, None, CANCELLED_ERROR)
    assert (cancelled.state, cancelled.error) == (JobState.CANCELLED, CANCELLED_ERROR)


@pytest.mark.parametrize(
    "job",
    [
        QUEUED,
        QUEUED.begun(2.0).advanced(0.25, "train"),
        QUEUED.begun(2.0).ended(3.0, {"x": [1]}, None),
        QUEUED.begun(2.0).ended(3.0, None, FAILURE),
    ],
)
def test_the_stored_form_gives_the_same_job_back(job: Job) -> None:
    assert Job.from_json("a", job.to_json()) == job

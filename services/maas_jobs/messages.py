"""Jobs as messages."""

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2

from maas.errors import ERROR_DOMAIN
from maas.jobs.v1 import job_state_pb2 as messages
from maas.names import JobName, NameInvalid
from maas_jobs.job import Job, JobError, JobState

_STATES = {
    JobState.QUEUED: messages.JOB_STATE_QUEUED,
    JobState.RUNNING: messages.JOB_STATE_RUNNING,
    JobState.CANCELLING: messages.JOB_STATE_CANCELLING,
    JobState.SUCCEEDED: messages.JOB_STATE_SUCCEEDED,
    JobState.FAILED: messages.JOB_STATE_FAILED,
    JobState.CANCELLED: messages.JOB_STATE_CANCELLED,
}


def status_to_proto(job: Job) -> messages.JobStatus:
    """Return what every kind of job shows of itself."""
    return messages.JobStatus(
        state=_STATES[job.state],
        progress=job.progress,
        phase=job.phase,
        metrics=[messages.JobMetric(name=name, value=value) for name, value in sorted(job.metrics.items())],
        log_lines=[
            messages.LogLine(number=line.number, time=timestamp(line.time), text=line.text) for line in job.log_lines
        ],
        create_time=timestamp(job.create_time),
        start_time=None if job.start_time is None else timestamp(job.start_time),
        end_time=None if job.end_time is None else timestamp(job.end_time),
        error=None if job.error is None else _error_to_proto(job.error),
    )


def parse_job_id(name: str, collection: str) -> str:
    """Return the id in a job's name, `{collection}/{id}`. Raises NameInvalid."""
    job = JobName.parse(name)
    if job.collection != collection:
        raise NameInvalid(f"{name!r} is not a name of the form {collection}/{{id}}")
    return job.job_id


def timestamp(seconds: float) -> Timestamp:
    """Return a time, given in seconds since 1970, with the precision of a millisecond."""
    value = Timestamp()
    value.FromMilliseconds(round(seconds * 1000))
    return value


def _error_to_proto(error: JobError) -> status_pb2.Status:
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=error.message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN))
    return status

"""From checked inputs to an answer that will come."""

import asyncio

from maas_inference.front.failures import VersionNotReady
from maas_inference.front.inputs import CheckedInputs
from maas_inference.front.options import NO_OPTIONS, RequestOptions
from maas_inference.front.question import Answer, Asker, Question, Receive
from maas_inference.front.version_queue import VersionQueue
from maas_inference.table import ServedVersion

DEFAULT_TIMEOUT_SECONDS = 30.0
"""How long a request without a deadline of its own may take."""


def compute(
    queue: VersionQueue,
    inputs: CheckedInputs,
    receive: Receive,
    arrived: float,
    deadline: float,
    options: RequestOptions = NO_OPTIONS,
) -> "asyncio.Future[Answer]":
    """Let inputs wait for their batch; the future gets an Answer, a Failure or CallerGone.

    Raises what VersionQueue.put raises.
    """
    answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    put(queue, inputs, receive, arrived, deadline, options, answer)
    return answer


def put(
    queue: VersionQueue,
    inputs: CheckedInputs,
    receive: Receive,
    arrived: float,
    deadline: float,
    options: RequestOptions,
    answer: Asker,
) -> None:
    """Let inputs wait for their batch, whose part goes to `answer`. Raises what VersionQueue.put raises."""
    queue.put(
        Question(
            inputs.group,
            inputs.rows,
            inputs.parts,
            arrived=arrived,
            deadline=options.deadline(arrived, deadline),
            receive=receive,
            answer=answer,
            width=inputs.width,
            bulk=options.is_bulk,
        )
    )


def described(queue: VersionQueue) -> ServedVersion:
    """Return what a version takes and gives. Raises VersionNotReady while that is not known."""
    served = queue.served
    if not served.inputs:
        raise VersionNotReady(f"version {served.version} of {queue.deployment} is {served.state}: {served.message}")
    return served

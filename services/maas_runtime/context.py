"""What is known of the call being answered: its request id, its deadline, who asks. Travels with the task."""

import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass

from maas.actor import UNKNOWN_ACTOR

REQUEST_ID_HEADER = "x-request-id"

_ACCEPTED_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True)
class CallContext:
    """One call: its id, the monotonic time at which its caller stops waiting (None: never), and who asks."""

    request_id: str
    deadline: float | None
    actor: str = UNKNOWN_ACTOR

    def remaining_seconds(self) -> float | None:
        """Return how long the caller still waits, at least 0; None when it never stops."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


CURRENT_CALL: ContextVar[CallContext | None] = ContextVar("maas_current_call", default=None)


def request_id_or_new(sent: str | None) -> str:
    """Return the id that the caller sent if it is fit to be logged, else a new one."""
    if sent is not None and _ACCEPTED_REQUEST_ID.fullmatch(sent):
        return sent
    return uuid.uuid4().hex


def current_actor() -> str:
    """Return who asks for what is being done; `unknown` when nobody said."""
    call = CURRENT_CALL.get()
    return UNKNOWN_ACTOR if call is None else call.actor

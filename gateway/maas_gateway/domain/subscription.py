"""What one Envoy knows of one type of resource, and what it should be sent next. No input, no output.

An Envoy asks, is answered with a version and a nonce, and asks again with that nonce: with the version if it has taken
it (ACK), with an error and the version it keeps if not (NACK).
"""

from dataclasses import dataclass, replace
from enum import Enum


class Reply(Enum):
    """What a request says of the answer before it."""

    FIRST = "first"
    """Nothing was sent on this stream yet."""
    TAKEN = "taken"
    """ACK: Envoy works with what it was sent."""
    REFUSED = "refused"
    """NACK: Envoy goes on with what it had."""
    STALE = "stale"
    """It answers an older message and is of no interest."""


@dataclass(frozen=True, slots=True)
class Request:
    """What an Envoy asks for. `version` is what it works with now, `nonce` the message it replies to."""

    version: str
    nonce: str
    names: frozenset[str]
    """The resources wanted; empty means all of the type."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One type of resource on one stream."""

    asked: bool = False
    names: frozenset[str] = frozenset()
    working_version: str = ""
    """What Envoy works with."""
    sent_version: str = ""
    """What it was sent last, taken or not."""
    sent_nonce: str = ""
    waiting: bool = False
    """Whether the last message is unanswered."""
    renewed: bool = False
    """Whether it asks for other names than it was sent."""

    def received(self, request: Request) -> tuple["Subscription", Reply]:
        """Return what is known after a request, and what the request says."""
        if not self.sent_nonce:
            # A stream that was opened again may name a version from the stream before: then that one is at work.
            first = replace(
                self,
                asked=True,
                names=request.names,
                working_version=request.version,
                sent_version=request.version,
                renewed=not request.version,
            )
            return first, Reply.FIRST
        if request.nonce != self.sent_nonce:
            return self, Reply.STALE
        known = replace(
            self, names=request.names, waiting=False, renewed=self.renewed or not request.names <= self.names
        )
        if request.error:
            return known, Reply.REFUSED
        return replace(known, working_version=request.version), Reply.TAKEN

    def wants(self, version: str) -> bool:
        """Return whether resources of this version should be sent now. What was refused is not sent again."""
        return self.asked and not self.waiting and (self.renewed or version != self.sent_version)

    def sent(self, version: str, nonce: str) -> "Subscription":
        """Return what is known after a message was sent."""
        return replace(self, sent_version=version, sent_nonce=nonce, waiting=True, renewed=False)

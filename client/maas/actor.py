"""Who asks for a change, for the records of it: sent with each call as metadata."""

import re

ACTOR_HEADER = "maas-actor"
UNKNOWN_ACTOR = "unknown"

_LONGEST = 255
_FIT_TO_SEND = re.compile(r"[ -~]{1,255}")


def this_user() -> str:
    """Return user and host, as `user@host`."""
    import getpass
    import os
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a user database
        user = str(os.getuid())
    return fit_actor(f"{user}@{socket.gethostname()}")


def fit_actor(text: str) -> str:
    """Return the text as it may be sent: at most 255 printable ASCII characters, others as question marks."""
    plain = "".join(character if " " <= character <= "~" else "?" for character in text)
    return plain.strip()[:_LONGEST] or UNKNOWN_ACTOR


def actor_or_unknown(sent: str | None) -> str:
    """Return who a caller says to be, if that is fit to be recorded."""
    return sent if sent is not None and _FIT_TO_SEND.fullmatch(sent) else UNKNOWN_ACTOR

"""Names of uids by the host's user database, which may be a network away."""

import pwd

from joulegram.agent.owners.lookup import Lookup
from joulegram.agent.textfile import visible

FRESH_S = 3600.0


def login_names() -> Lookup[int, str]:
    """uid -> login name; "" where the host has none for it."""
    return Lookup(_name, FRESH_S)


def _name(uid: int) -> str:
    try:
        return visible(pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):
        return ""

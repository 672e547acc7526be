"""What a process was started with: a few named variables, and whose it really is.

Reads  <procfs>/<pid>/{environ,status,cmdline}

The environment is the process's own memory: its user can write there what they like, and can
make the read hang. So threads of their own read it, and each reader says what it believes.
"""

import re
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from joulegram.agent.owners.lookup import Later

ENVIRON_MAX = 1 << 20
VALUE_MAX = 4096
STATUS_MAX = 8192
AT_ONCE = 16  # threads that may hang, of all parties together
TITLE_MAX = 128
UIDS = re.compile(rb"\nUid:\t(\d+)\t(\d+)")


@dataclass(frozen=True, slots=True)
class Start:
    """How a process was started."""

    uid: int  # real; -1: unknown
    variables: Mapping[str, str] = field(default_factory=dict)
    title: bytes = b""  # of a root process: how its command line begins; others' holds secrets


def start_of(procfs: Path, pid: int, wanted: Collection[str]) -> Start:
    """How the process was started, as far as it can be read."""
    folder = procfs / str(pid)
    uid = _uid(folder)
    return Start(
        uid,
        _variables(_read(folder / "environ", ENVIRON_MAX), wanted),
        _read(folder / "cmdline", TITLE_MAX) if uid == 0 else b"",
    )


class FewEach:
    """Reads few processes of one party at a time, so that those that hang are that party's."""

    def __init__(self, procfs: Path, wanted: Collection[str]) -> None:
        self._procfs, self._wanted = procfs, wanted
        self._lock = threading.Lock()
        self._reading: Counter[str] = Counter()  # parties

    def start_of(self, pid: int, most: Mapping[str, int] | None = None) -> Start:
        """How the process was started.

        Args:
            most: whose it is, and how many of theirs at a time; None: its user's, one.
        Raises: Later while so many of one of its parties are being read.
        """
        if most is None:
            most = {str(_uid(self._procfs / str(pid))): 1}
        with self._lock:
            if any(self._reading[party] >= many for party, many in most.items()):
                raise Later
            self._reading.update(most.keys())
        try:
            return start_of(self._procfs, pid, self._wanted)
        finally:
            with self._lock:
                self._reading.subtract(most.keys())
                self._reading += Counter()  # those at 0 go


def _uid(folder: Path) -> int:
    # The folder's owner is the effective uid: root's for a setuid program that anybody started.
    if match := UIDS.search(_read(folder / "status", STATUS_MAX)):
        return 0 if match[1] == match[2] == b"0" else max(int(match[1]), int(match[2]))
    try:
        return folder.stat().st_uid
    except OSError:
        return -1


def _variables(raw: bytes, wanted: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for variable in raw.split(b"\0"):
        name, equals, value = variable.partition(b"=")
        if equals and len(name) < 64 and len(value) <= VALUE_MAX:
            key = name.decode("ascii", "replace")
            if key in wanted:
                found.setdefault(key, value.decode("utf-8", "backslashreplace"))
    return found


def _read(path: Path, most: int) -> bytes:
    raw = b""
    try:
        with path.open("rb", buffering=0) as file:
            while len(raw) < most and (chunk := file.read(min(65536, most - len(raw)))):
                raw += chunk
    except OSError:
        pass
    return raw

"""Values read from files, and read again when the files change."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from joulegram.collector.errors import BadSetting
from joulegram.collector.security.counts import RELOAD_FAILING

log = logging.getLogger(__name__)

T = TypeVar("T")
EVERY_S = 2.0


class Fresh(Generic[T]):
    """A value made of files. A changed file that cannot be used leaves the last value in force."""

    def __init__(self, key: str, files: Sequence[Path], load: Callable[[], T]) -> None:
        """Raises: BadSetting when it cannot be made the first time."""
        self._key = key
        self._files = files
        self._load = load
        self._seen = self._signature()
        self._complaint = ""
        self.value = load()
        RELOAD_FAILING.labels(key).set(0)

    def refresh(self) -> bool:
        """Whether there is a new value. Never raises."""
        seen = self._signature()
        # While it fails it is tried each time: two files are rarely replaced in one instant.
        if seen == self._seen and not self._complaint:
            return False
        self._seen = seen
        try:
            self.value = self._load()
        except BadSetting as exc:
            if str(exc) != self._complaint:
                self._complaint = str(exc)
                log.error("%s What was read before stays in force.", exc)
            RELOAD_FAILING.labels(self._key).set(1)
            return False
        self._complaint = ""
        RELOAD_FAILING.labels(self._key).set(0)
        log.warning("security.%s was read again: it has changed", self._key)
        return True

    def _signature(self) -> list[tuple[int, ...]]:
        """What changes when a file is written, replaced or linked elsewhere."""
        found: list[tuple[int, ...]] = []
        for path in self._files:
            try:
                status = path.stat()
            except OSError:
                found.append(())
            else:
                found.append((status.st_ino, status.st_mtime_ns, status.st_ctime_ns))
        return found

"""Says a repeated complaint at most once in a while, with how often it was held back."""

import logging
import time
from collections.abc import Callable


class Rarely:
    """Logs a message under a key at most once per `every_s`.

    Keys are few and fixed in the code (no text from outside), so the table stays small.
    """

    def __init__(
        self,
        logger: logging.Logger,
        every_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._every_s = every_s
        self._clock = clock
        self._last: dict[str, tuple[float, int]] = {}

    def warn(self, key: str, message: str, *args: object) -> None:
        now = self._clock()
        said_at, held_back = self._last.get(key, (-self._every_s, 0))
        if now - said_at < self._every_s:
            self._last[key] = (said_at, held_back + 1)
            return
        self._last[key] = (now, 0)
        if held_back:
            message += f" ({held_back} more like it since the last such line)"
        self._logger.warning(message, *args)

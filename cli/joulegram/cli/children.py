"""Programs that `joulegram up` starts: they end when it does, and speak through it."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>, Linux


class Child:
    """One program; what it says is passed on to our stderr, line by line.

    It is stopped by SIGTERM when we are ended in whatever way, kill -9 included (Linux).
    """

    def __init__(self, name: str, argv: Sequence[str]) -> None:
        self.name = name
        self.argv = argv
        self.last_line = ""
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.last_line = "(it said nothing)"
        self._process = await asyncio.create_subprocess_exec(
            *self.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # Out of the terminal's group: Ctrl-C must not reach collector and agent at once.
            process_group=0,
            preexec_fn=_follow(os.getpid()),
        )
        assert self._process.stdout is not None
        self._listening = asyncio.create_task(self._listen(self._process.stdout))

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def ended(self) -> int:
        """Wait for its end; the exit status, minus the signal's number if one ended it."""
        assert self._process is not None and self._listening is not None
        status = await self._process.wait()
        # A grandchild may hold the pipe open: wait for the last words, but not for ever.
        await asyncio.wait([self._listening], timeout=0.5)
        return status

    async def stop(self, patience_s: float) -> bool:
        """SIGTERM, then SIGKILL after `patience_s`. False: it had to be killed."""
        if not self.alive:
            return True
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.ended(), patience_s)
            return True
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self.ended()
            return False

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # a line longer than the reader's 64 KiB; it was dropped
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self.last_line = text
            with contextlib.suppress(OSError):  # nobody reads us: go on measuring
                print(text, file=sys.stderr, flush=True)


def _follow(parent: int) -> Callable[[], None] | None:
    """What a child runs before its program: die when `parent` does."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def follow() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it was already gone
            os._exit(1)

    return follow

"""The session with NVIDIA's management library (NVML), through NVIDIA's own binding.

Reads  libnvidia-ml.so.1, which comes with the driver; pynvml is imported only where it is there
Format https://docs.nvidia.com/deploy/nvml-api/ ; codes are nvmlReturn_t of nvml.h

A library may be older than the binding, or younger: whatever it lacks is `NotTold`, an answer
like "not supported" and "not found", and costs its own numbers only.
"""

import ctypes
import importlib
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from joulegram.agent.clock import Clock
from joulegram.agent.errors import SensorDenied, SensorFailed

log = logging.getLogger(__name__)

LIBRARY = "libnvidia-ml.so.1"

SUCCESS = 0  # the binding raises it where a list is empty
UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 1, 2, 3, 4, 6
INSUFFICIENT_SIZE, DRIVER_NOT_LOADED, TIMEOUT, FUNCTION_NOT_FOUND = 7, 9, 10, 13
GPU_IS_LOST, RESET_REQUIRED, VERSION_MISMATCH, NO_DATA = 15, 16, 18, 21
ARGUMENT_VERSION_MISMATCH, DEPRECATED, NOT_READY = 25, 26, 27

EMPTY = frozenset({SUCCESS, NOT_FOUND, INSUFFICIENT_SIZE, NO_DATA, NOT_READY})
ABSENT = frozenset(
    {INVALID_ARGUMENT, NOT_SUPPORTED, FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH, DEPRECATED}
)
SESSION = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, VERSION_MISMATCH})  # begin it anew
GONE = SESSION | {GPU_IS_LOST, RESET_REQUIRED}

# A session is begun anew so often at most: it takes up to a second per GPU.
RESTART_EVERY_S = 5.0
# Most machines have no such library, and looking through the system's folders is not for nothing.
ABSENT_FOR_S = 60.0
# A GPU that stays lost for so long may be one that only a new session sees again. That costs the
# other GPUs a tick, whose energy the next one bridges: twice as long before each further try.
LOST_S, LOST_MAX_S = 30.0, 3600.0

WORDS = {
    UNINITIALIZED: "the session was lost (a driver reload?); it is begun anew",
    DRIVER_NOT_LOADED: "the driver is not loaded: modprobe nvidia, or see dmesg",
    TIMEOUT: "it did not answer in time; see dmesg for Xid messages",
    GPU_IS_LOST: "it has fallen off the bus; see dmesg for Xid messages, then reset or reboot",
    RESET_REQUIRED: "it needs a reset: nvidia-smi -r -i GPU when nothing uses it",
    VERSION_MISMATCH: "library and kernel driver differ in version (an upgrade?): reload the "
    "driver or reboot, then restart the agent",
}


class NotTold(Exception):
    """The device or the library does not tell this: not supported, not known, nothing there."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name}: code {code}")
        self.code = code


class Gone(SensorFailed):
    """The GPU or the session is gone: until it is found again, nothing can be asked."""


@dataclass(slots=True)
class Nvml:
    """The library, once it could be begun. One of these per process: the library is, too.

    Each GPU is asked in a thread of its own; only beginning is one at a time.
    """

    clock: Clock  # paces what is tried again
    why_none: str = "not looked for yet"  # why there is no session, and what to do
    generation: int = 0  # handles of an earlier one are void; 0: no session yet
    _binding: Any = field(default=None, init=False)
    _broken: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _tried_s: float = field(default=-math.inf, init=False)

    def mono_s(self) -> float:
        return self.clock.mono_ns() / 1e9

    def begin(self) -> bool:
        """Begin the session, or begin it anew when it broke. False: none, and `why_none`."""
        with self._lock:
            return (self.generation > 0 and not self._broken) or self._begin()

    @property
    def absent(self) -> bool:
        """Whether the library was looked for a moment ago, and is not there."""
        return self._binding is None and self.mono_s() - self._tried_s < ABSENT_FOR_S

    def suspect(self) -> None:
        """Begin the session anew when it is next needed."""
        self._broken = True

    def need(self) -> None:
        """Raises: Gone when there is no session now."""
        if not self.begin():
            why = self.why_none or "its session ended, and is begun anew in a moment"
            raise Gone(f"NVML does not answer: {why}")

    def ask(self, name: str, *args: Any) -> Any:
        """Call one of the binding's functions.

        Raises: NotTold; SensorDenied; SensorFailed in other trouble, Gone in the worst.
        """
        function = getattr(self._binding, name, None)
        if function is None:
            raise NotTold(name, FUNCTION_NOT_FOUND)
        generation = self.generation
        try:
            return function(*args)
        except self._binding.NVMLError as exc:
            code = int(exc.value)
        except self._binding.NVMLLibraryMismatchError as exc:
            raise NotTold(name, FUNCTION_NOT_FOUND) from exc
        # Bytes that are no text, a count that no memory holds: what such a library says is nothing.
        except (ValueError, TypeError, ArithmeticError, MemoryError, ctypes.ArgumentError) as exc:
            raise NotTold(name, SUCCESS) from exc
        if code in EMPTY or code in ABSENT:
            raise NotTold(name, code)
        if code == NO_PERMISSION:
            raise SensorDenied(
                f"{name}: this user may not ask. Run the agent as root, or give it the devices "
                "/dev/nvidia*."
            )
        if code in SESSION and generation == self.generation:  # not begun anew meanwhile
            self._broken = True
        trouble = Gone if code in GONE else SensorFailed
        raise trouble(f"{name}: {WORDS.get(code, f'error {code}; see nvidia-smi and dmesg')}")

    def told(self, name: str, *args: Any) -> Any:
        """As `ask`, but None where it is not told, not allowed or fails. Raises: Gone."""
        return told(self.ask, name, *args)

    def structure(self, name: str) -> Any:
        """One of the binding's structures, empty. Raises: NotTold."""
        made = getattr(self._binding, name, None)
        if made is None:
            raise NotTold(name, FUNCTION_NOT_FOUND)
        return made()

    def _begin(self) -> bool:
        now_s = self.mono_s()
        if now_s - self._tried_s < RESTART_EVERY_S:
            return False
        self._tried_s = now_s
        if self._binding is None and not self._load():
            return False
        try:
            if self.generation:
                self._shut_down()
            self._init()
        except (NotTold, SensorDenied, SensorFailed) as exc:
            self.why_none = str(exc)
            self._broken = bool(self.generation)
            return False
        self.generation += 1
        self.why_none, self._broken = "", False
        return True

    def _load(self) -> bool:
        # The binding is 5 MB of memory: imported only where the library is.
        try:
            ctypes.CDLL(LIBRARY)
        except OSError:
            self.why_none = f"{LIBRARY} is not here: no NVIDIA driver is installed"
            return False
        try:
            self._binding = importlib.import_module("pynvml")
        except ImportError:
            self.why_none = "NVIDIA's binding is missing: pip install nvidia-ml-py"
            return False
        return True

    def _init(self) -> None:
        try:
            self.ask("nvmlInit")
        except NotTold as exc:
            if exc.code != FUNCTION_NOT_FOUND:
                raise
            # The binding knows the newest way in only; every library has this one.
            begin = getattr(self._binding.nvmlLib, "nvmlInit_v2", None)
            if begin is None or begin() != SUCCESS:
                raise

    def _shut_down(self) -> None:
        try:
            self.ask("nvmlShutdown")
        except (NotTold, SensorDenied, SensorFailed) as exc:
            log.debug("while ending the session with NVML: %s", exc)


def told(ask: Callable[..., Any], *args: Any) -> Any:
    """The answer, or None where there is none. Raises: Gone."""
    try:
        return ask(*args)
    except (NotTold, SensorDenied):
        return None
    except Gone:
        raise
    except SensorFailed as exc:
        log.debug("%s", exc)
        return None


@dataclass(slots=True)
class Board:
    """One GPU, known by its UUID; its handle is found again whenever it was lost."""

    nvml: Nvml
    uuid: str
    order: int = 0  # in NVML's list
    _handle: Any = field(default=None, init=False)
    _generation: int = field(default=0, init=False)
    _suspect_s: float | None = field(default=None, init=False)  # lost, and still is at that time
    _patience_s: float = field(default=LOST_S, init=False)

    def handle(self) -> Any:
        """Raises: Gone while it cannot be found."""
        if self._suspect_s is not None and self.nvml.mono_s() >= self._suspect_s:
            self._patience_s = min(LOST_MAX_S, 2 * self._patience_s)
            self._suspect_s = self.nvml.mono_s() + self._patience_s
            self.nvml.suspect()
        self.nvml.need()
        if self._handle is None or self._generation != self.nvml.generation:
            self._handle = handle_of(self.nvml, self.uuid)
            self._generation = self.nvml.generation
        return self._handle

    def ask(self, name: str, *args: Any) -> Any:
        """Raises: NotTold, SensorDenied; SensorFailed, which names the GPU."""
        try:
            answer = self.nvml.ask(name, self.handle(), *args)
        except SensorFailed as exc:
            self.lost()
            raise type(exc)(f"gpu:{self.uuid}: {exc}") from exc
        self._suspect_s, self._patience_s = None, LOST_S
        return answer

    def told(self, name: str, *args: Any) -> Any:
        """As `ask`, but None where it is not told, not allowed or fails. Raises: Gone."""
        return told(self.ask, name, *args)

    def ask_part(self, part: Any, name: str, *args: Any) -> Any:
        """As `ask`, of a MIG device's handle; one that is gone costs the GPU nothing."""
        try:
            return self.nvml.ask(name, part, *args)
        except SensorFailed as exc:
            raise SensorFailed(f"gpu:{self.uuid}, a MIG device: {exc}") from exc

    def lost(self) -> None:
        """Find it again before the next question."""
        self._handle = None
        if self._suspect_s is None:
            self._suspect_s = self.nvml.mono_s() + self._patience_s

    @property
    def generation(self) -> int:
        return self.nvml.generation


def handles(nvml: Nvml) -> dict[str, Any]:
    """{UUID: handle} of every GPU that says its UUID now, in NVML's order."""
    count = nvml.told("nvmlDeviceGetCount") or 0
    found: dict[str, Any] = {}
    for index in range(min(count, 256)):
        try:
            handle = nvml.ask("nvmlDeviceGetHandleByIndex", index)
            found.setdefault(str(nvml.ask("nvmlDeviceGetUUID", handle)), handle)
        except (NotTold, SensorDenied, SensorFailed) as exc:
            log.debug("GPU %d does not say who it is: %s", index, exc)
    return found


def handle_of(nvml: Nvml, uuid: str) -> Any:
    """Raises: Gone when no GPU has that UUID now."""
    handle = nvml.told("nvmlDeviceGetHandleByUUID", uuid)
    if handle is None:
        handle = handles(nvml).get(uuid)
    if handle is None:
        raise Gone("it is not there any more (fell off the bus, or was removed); see nvidia-smi -L")
    return handle

"""The node's power as its management controller says it: IPMI DCMI, Get Power Reading.

Runs   `ipmi-dcmi --get-system-power-statistics` (FreeIPMI) or `ipmitool dcmi power reading`
Format their output, in the C locale; DCMI 1.5, section 6.6.1
"""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from joulegram.agent.clock import Clock
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.sensors.bmc.background import Background, SlowPlatform
from joulegram.agent.sensors.sensor import Sample
from joulegram.agent.textfile import matching

PROGRAMS = (
    ("ipmi-dcmi", "--get-system-power-statistics"),
    ("ipmitool", "dcmi", "power", "reading"),
)
ADMIN_PATH = "/usr/local/sbin:/usr/sbin:/sbin"  # a service's PATH may lack them

READING = re.compile(
    rb"^[ \t]*(?:Current Power|Instantaneous power reading)[ \t]*:[ \t]*(\d{1,6})[ \t]+[Ww]atts",
    re.M,
)
STATE = re.compile(
    rb"^[ \t]*(?:Power Measurement|Power reading state is)[ \t]*:[ \t]*(\w[\w ]{0,40})", re.M
)
ACTIVE = (b"active", b"activated")
DENIED = re.compile(rb"permission denied|must be root|not permitted|privilege level", re.I)
NO_DCMI = re.compile(
    rb"DCMI request failed|invalid command|command invalid or unsupported|not supported", re.I
)

WITHIN_S = 10.0
MAX_BYTES = 65_536
MAX_W = 100_000
GONE_WITHIN_S = 2.0  # after its last word, or after it was killed


def likely(sysfs: Path, dev: Path | None = None) -> bool:
    """Whether this machine has a management controller that can be asked from within.

    Args:
        dev: the machine's /dev; None for a captured tree, which has none.
    """
    found = matching(sysfs, "class/ipmi/ipmi*")
    return bool(found or (dev is not None and matching(dev, "ipmi*")))


def programs(path: str | None = None) -> list[tuple[str, ...]]:
    """Command lines of the installed programs, best first.

    Args:
        path: folders to look in, as in PATH; None: this process's, and the administrator's.
    """
    if path is None:
        path = f"{os.environ.get('PATH', os.defpath)}:{ADMIN_PATH}"
    found = ((shutil.which(name, path=path), arguments) for name, *arguments in PROGRAMS)
    return [(program, *arguments) for program, arguments in found if program]


def watts(output: bytes, program: str) -> int:
    """The power in a program's output. Raises: SensorDenied, SensorFailed."""
    state, reading = STATE.search(output), READING.search(output)
    if state and state[1].strip().lower() not in ACTIVE:
        raise SensorFailed(
            f"{program}: power measurement is {state[1].strip().decode().lower()}. Switch it on in "
            "the management controller's own settings, if it has a meter."
        )
    if state and reading:
        power_w = int(reading[1])
        if 0 < power_w <= MAX_W:
            return power_w
        raise SensorFailed(
            f"{program}: {power_w} W cannot be a running node's power; this management "
            'controller does not measure it. Set ipmi = "off" in [agent].'
        )
    said = _excerpt(output)
    if DENIED.search(output):
        raise SensorDenied(
            f"{program} may not speak to the management controller: {said}. Run the agent as "
            "root, or let its user read and write /dev/ipmi0."
        )
    if NO_DCMI.search(output):
        raise SensorFailed(
            f"{program}: the management controller knows no DCMI power reading: {said}. Try "
            'Redfish (redfish_url in [agent]), or set ipmi = "off" there.'
        )
    raise SensorFailed(f"{program} printed no power: {said or 'nothing at all'}.")


@dataclass(slots=True)
class Dcmi:
    """Asks with one of the programs; after a failure with the next.

    Args:
        programs: command lines, best first; see `programs`.
        within_s: a program that takes longer is killed.
    """

    clock: Clock
    programs: Sequence[tuple[str, ...]]
    within_s: float = WITHIN_S
    _turn: int = field(default=0, init=False)
    _left: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def ask(self) -> Sample:
        """One reading; blocks for `within_s` at most. Raises: SensorDenied, SensorFailed."""
        if not self.programs:
            raise SensorFailed(
                "neither ipmi-dcmi nor ipmitool is installed, and this machine seems to have a "
                "management controller. Install freeipmi-tools or ipmitool to read its power."
            )
        argv = self.programs[self._turn % len(self.programs)]
        name = Path(argv[0]).name
        before_ns = self.clock.mono_ns()
        try:
            power_w = watts(self._run(argv, name), name)
        except (SensorDenied, SensorFailed):
            self._turn += 1
            raise
        # It was measured somewhere in between.
        return Sample(power_w * 1_000_000, (before_ns + self.clock.mono_ns()) // 2)

    def _run(self, argv: Sequence[str], name: str) -> bytes:
        if self._left is not None and self._left.poll() is None:
            raise SensorFailed(
                f"an earlier {name} (pid {self._left.pid}) hangs in the kernel and cannot be "
                "killed: the management controller does not answer. Reset it (mc reset cold)."
            )
        environment = os.environ | {"LC_ALL": "C"}
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except OSError as exc:
            raise SensorFailed(f"cannot start {argv[0]}: {exc.strerror}.") from exc
        self._left, whole = process, False
        try:
            output, whole = _output(process, self.within_s)
        finally:
            _end(process, whole)
        if not whole:
            raise SensorFailed(
                f"{name} did not end within {self.within_s:g} s, or printed without end. The "
                "management controller may be busy or hang; the agent asks again."
            )
        return output


def ipmi_power(dcmi: Dcmi, every_s: float = 5.0, stale_s: float = 20.0) -> SlowPlatform:
    """The platform's power from its own management controller."""
    background = Background("IPMI", dcmi.ask, dcmi.clock, every_s, stale_s)
    return SlowPlatform(background, dcmi.ask)


def _output(process: "subprocess.Popen[bytes]", within_s: float) -> tuple[bytes, bool]:
    """(what it printed, whether that was all), in time and space."""
    deadline_s = time.monotonic() + within_s
    gathered = b""
    if process.stdout is None:
        return b"", False
    poller = select.poll()  # select() itself cannot take descriptors above 1023
    poller.register(process.stdout, select.POLLIN)
    while len(gathered) <= MAX_BYTES:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not poller.poll(left_s * 1000):
            return gathered, False
        piece = os.read(process.stdout.fileno(), MAX_BYTES)
        if not piece:
            return gathered, True
        gathered += piece
    return gathered, False


def _end(process: "subprocess.Popen[bytes]", whole: bool) -> None:
    """See that it is gone, with what it started. One that hangs in the kernel stays behind."""
    if process.stdout is not None:
        process.stdout.close()
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if not whole:
            # Not waited for yet, so its number is still its own.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(GONE_WITHIN_S)


def _excerpt(output: bytes) -> str:
    text = output[:400].decode("ascii", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]

"""Whether a frame holds: its shape, its times, and that its rows sum to its devices exactly.

A frame that does not is refused with a reason (a short code) and a detail that names the thing
and the remedy. Nothing here depends on earlier frames.
"""

import logging
from collections.abc import Sequence
from typing import TypeAlias

from joulegram.collector import sums
from joulegram.collector.checked import WIDTHS, Checked
from joulegram.collector.packed import PackedFrame
from joulegram.collector.sums import Unsound
from joulegram.collector.workloads import CONTROL, Workload
from joulegram.v1.telemetry_pb2 import Device, Frame

log = logging.getLogger(__name__)

Refusal: TypeAlias = tuple[str, str]  # reason, detail

SLOT_MS = 300_000
CLOCK_SLACK_MS = 300_000
DAY_MS = 86_400_000

# Bounds, so that no sum in the ledger leaves UInt64 and no frame fills a machine.
MAX_ROWS = 100_000
MAX_WORKLOADS = 20_000
MAX_DEVICES = 1_024
MAX_UJ = 10**15  # one device, one frame: 1 GJ
MAX_NAME = 255  # characters of a node's or device's name
MAX_COMMAND = 1_020  # characters; the kernel's own have 15, escaped 60

REASONS = ("shape", "sums", "node", "clock", "too_old", "conflict")


def validate(frame: Frame, node: str, now_ms: int, raw_days: float) -> Refusal | None:
    """What is wrong with a frame, or None.

    Args:
        node: whom this stream speaks for.
        now_ms: our clock, ms since 1970 UTC.
        raw_days: how long rows are kept; an older window could not be recomputed.
    """
    packed = frame.SerializeToString()
    (answer,) = validate_all([(PackedFrame.FromString(packed), packed, node)], now_ms, raw_days)
    return None if isinstance(answer, Checked) else answer


def validate_all(
    frames: Sequence[tuple[PackedFrame, bytes, str]], now_ms: int, raw_days: float
) -> list[Checked | Refusal]:
    """Each frame as one that holds, or what is wrong with it.

    Args:
        frames: each with its bytes as they came, and whom its stream speaks for. The numbers
            of all are looked at together.
        now_ms, raw_days: as for `validate`.
    """
    answers: list[Checked | Refusal] = []
    for frame, packed, node in frames:
        try:
            _check_identity(frame, node)
            _check_times(frame, now_ms, raw_days)
            checked = Checked.of(frame, packed)
            _check_shape(checked)
            answers.append(checked)
        except Exception as failed:
            answers.append(_refusal(failed))
    try:
        sound = sums.hold([answer for answer in answers if isinstance(answer, Checked)])
    except Exception:  # one frame's fault; found below
        sound = False
    for i, answer in enumerate(answers):
        if not sound and isinstance(answer, Checked):
            try:
                sums.check(answer)
            except Exception as failed:
                answers[i] = _refusal(failed)
    return answers


def _refusal(failed: Exception) -> Refusal:
    if isinstance(failed, Unsound):
        return failed.refusal
    # A frame that we stumble over must cost nobody but its sender.
    log.error("looking into a frame failed", exc_info=failed)
    return "shape", f"{type(failed).__name__} while the frame was looked into: {failed}"


def name_of(frame: Frame) -> str:
    """The node a frame says it is of; "" when that is no name."""
    node: str = frame.node
    return "" if len(node) > MAX_NAME or CONTROL.search(node) else node


def _are_names(*texts: str) -> bool:
    return max(map(len, texts)) <= MAX_NAME and not CONTROL.search("".join(texts))


def _check_identity(frame: Frame, node: str) -> None:
    if not name_of(frame):
        raise Unsound(
            "node",
            f"node must be 1 to {MAX_NAME} characters without control characters; "
            "set `node` in [agent]",
        )
    if frame.node != node:
        raise Unsound(
            "node",
            f"this stream speaks for node {node!r}, the frame is of {frame.node!r}; open a "
            "stream per node, and give each agent a state directory of its own",
        )
    if not _are_names(frame.host_node, frame.boot_id, frame.agent_version):
        names = ("host_node", "boot_id", "agent_version")
        bad = next(name for name in names if not _are_names(getattr(frame, name)))
        raise Unsound(
            "shape", f"{bad} must be at most {MAX_NAME} characters without control characters"
        )
    if frame.host_node == node:
        # Totals leave guests out, so its joules would be in nobody's.
        raise Unsound(
            "node",
            f"{frame.node!r} names itself as the host it runs on; leave host_node empty on a "
            "machine that is no guest",
        )
    if frame.epoch == 0 or frame.seq == 0:
        raise Unsound(
            "shape",
            "epoch and seq start at 1: epoch is 64 random bits per agent start, seq counts frames",
        )
    if frame.seq >= 2**63:
        raise Unsound("shape", "seq is out of range; it counts frames within an epoch")


def _check_times(frame: Frame, now_ms: int, raw_days: float) -> None:
    skew_ms = frame.sent_at_ms - now_ms
    if frame.sent_at_ms and abs(skew_ms) > CLOCK_SLACK_MS:
        raise Unsound("clock", _skew(frame.node, skew_ms))
    window_ms = frame.window_ms
    if window_ms == 0 or SLOT_MS % window_ms or window_ms % 1000:
        raise Unsound(
            "shape",
            f"window_ms is {window_ms}; it must be whole seconds that divide 300 s: set `window` "
            "in [agent] to 1, 2, 5, 10, 15, 30, 60, 150 or 300, say",
        )
    start_ms = frame.window_start_ms
    if start_ms <= 0 or start_ms % window_ms:
        raise Unsound(
            "shape",
            f"window_start_ms {start_ms} is not a multiple of window_ms {window_ms}; windows are "
            "aligned to UTC",
        )
    ahead_ms = start_ms + window_ms - now_ms
    if ahead_ms > CLOCK_SLACK_MS:
        raise Unsound("clock", "the window ends in the future: " + _skew(frame.node, ahead_ms))
    if ahead_ms < -raw_days * DAY_MS:
        raise Unsound(
            "too_old",
            f"the window ended {-ahead_ms / DAY_MS:.1f} days ago, rows are kept {raw_days:g} days "
            "and its slot can no longer be recomputed; raise `raw_days` in [collector] before "
            "sending it again",
        )


def _skew(node: str, skew_ms: int) -> str:
    way = "ahead of" if skew_ms > 0 else "behind"
    return (
        f"the clock of {node} is {abs(skew_ms) / 1000:.0f} s {way} the collector's (300 s are "
        "allowed); run NTP (chrony, systemd-timesyncd) on both"
    )


def _check_shape(checked: Checked) -> None:
    devices, workloads, commands = checked.devices, checked.workloads, checked.commands
    n = checked.rows
    for what, count, limit in (
        ("rows", n, MAX_ROWS),
        ("devices", len(devices), MAX_DEVICES),
        ("workloads", len(workloads), MAX_WORKLOADS),
    ):
        if count > limit:
            raise Unsound(
                "shape",
                f"{count} {what}, at most {limit} fit in a frame; raise `fold_cores` in [agent]",
            )
    for name, column in checked.columns.items():
        have, want = len(column), n * WIDTHS[name].itemsize
        if have != want and (have or name == "workload"):
            raise Unsound("shape", f"rows.{name} has {have} bytes; {n} rows take {want}")
    if len(commands) not in (0, n):
        raise Unsound("shape", f"rows.command has {len(commands)} entries; there are {n} rows")
    _check_commands(commands)
    _check_devices(devices)
    _check_workloads(devices, workloads)


def _check_commands(commands: Sequence[bytes]) -> None:
    try:
        text = b"\0".join(commands).decode()
    except UnicodeDecodeError as failed:
        raise Unsound("shape", f"a command is not UTF-8 ({failed}); escape other bytes") from failed
    if text.count("\0") < max(len(commands), 1) and _pieces_fit(text):
        return
    longest = max((command.decode() for command in commands), key=len)
    if len(longest) > MAX_COMMAND:
        raise Unsound(
            "shape",
            f"a command of {len(longest)} characters, {longest[:80]!r}...: at most {MAX_COMMAND}; "
            "send the kernel's `comm`, never the arguments",
        )


def _pieces_fit(text: str) -> bool:
    """Whether no piece between NULs is too long; in steps of the longest that may be."""
    at = -1
    while len(text) - at > MAX_COMMAND + 1:
        at = text.rfind("\0", at + 1, at + MAX_COMMAND + 2)
        if at < 0:
            return False
    return True


def _check_devices(devices: Sequence[Device]) -> None:
    names = set()
    for device in devices:
        if not device.name or device.name in names:
            raise Unsound("shape", f"device name {device.name!r} is empty or comes twice")
        names.add(device.name)
        if not _are_names(device.name, device.component, device.quality):
            raise Unsound(
                "shape",
                f"device {device.name[:80]!r}: its name, component and quality must be at "
                f"most {MAX_NAME} characters without control characters",
            )
        if not 0.0 <= device.coverage <= 1.0:
            raise Unsound(
                "shape",
                f"device {device.name}: coverage {device.coverage} is no fraction of the window",
            )
        if device.energy_uj > MAX_UJ or device.raw_uj > MAX_UJ:
            raise Unsound(
                "sums",
                f"device {device.name}: {max(device.energy_uj, device.raw_uj)} uJ in one window "
                f"is beyond {MAX_UJ}; look for a counter reset in its sensor",
            )
        if device.idle_uj > device.energy_uj:
            raise Unsound(
                "sums",
                f"device {device.name}: idle_uj {device.idle_uj} exceeds energy_uj "
                f"{device.energy_uj}",
            )


def _check_workloads(devices: Sequence[Device], workloads: Sequence[Workload]) -> None:
    for workload in workloads:
        if workload.problem:
            raise Unsound("shape", f"workload {workload.id[:80]!r}: {workload.problem}")
        for device, _ in workload.reserved_devices:
            if device >= len(devices):
                raise Unsound(
                    "shape",
                    f"workload {workload.id!r} reserves device {device} of {len(devices)}",
                )

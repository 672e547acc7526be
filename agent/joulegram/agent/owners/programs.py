"""Running a scheduler's own programs: bounded in time and in what is read of them."""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence

from joulegram.agent.errors import SourceFailed

COMPLAINT_MAX = 1024
GONE_WITHIN_S = 2.0  # after it was killed
PASSED_ON = ("PATH", "HOME", "SLURM_CONF", "LD_LIBRARY_PATH")

# Per program the last one that could not be ended: one at a time, not one at every try.
_stayed: dict[str, "subprocess.Popen[bytes]"] = {}


def output_of(command: Sequence[str], timeout_s: float, most: int) -> bytes:
    """What the program writes to its standard output.

    Raises: SourceFailed when it cannot be run, fails, takes longer, or writes more than `most`.
    """
    said = " ".join(command)
    if (earlier := _stayed.get(command[0])) is not None and earlier.poll() is None:
        raise SourceFailed(
            f"an earlier {command[0]} (pid {earlier.pid}) hangs in the kernel and cannot be ended"
        )
    # Of our own environment little: SQUEUE_FORMAT and the like would change what it says.
    env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    try:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**env, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as exc:
        raise SourceFailed(f"cannot run {said}: {exc}") from exc
    try:
        written, complaint = _read(program, timeout_s, most)
        if written is None:
            raise SourceFailed(f"{said}: {complaint}")
        if program.returncode:
            raise SourceFailed(
                f"{said} ended with {program.returncode}: {complaint.strip()[:200] or 'no words'}"
            )
        return written
    finally:
        _end(program, command[0])


def _read(
    program: subprocess.Popen[bytes], timeout_s: float, most: int
) -> tuple[bytes | None, str]:
    """(output, complaint); the output is None when it took too long or was too much."""
    assert program.stdout is not None and program.stderr is not None
    until = time.monotonic() + timeout_s
    out, err = bytearray(), bytearray()
    with selectors.DefaultSelector() as streams:
        streams.register(program.stdout, selectors.EVENT_READ, out)
        streams.register(program.stderr, selectors.EVENT_READ, err)
        while streams.get_map():
            left_s = until - time.monotonic()
            ready = streams.select(left_s) if left_s > 0 else []
            if not ready:
                return None, f"no answer within {timeout_s:g} s"
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    streams.unregister(key.fileobj)
                elif key.data is out:
                    out += chunk
                else:
                    err += chunk[: COMPLAINT_MAX - len(err)]
            if len(out) > most:
                return None, f"more than {most} bytes"
    try:
        program.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None, f"did not end within {timeout_s:g} s"
    return bytes(out), err.decode(errors="replace")


def _end(program: subprocess.Popen[bytes], name: str) -> None:
    """See that it is gone. One that hangs in the kernel stays behind."""
    if program.poll() is None:
        try:
            os.killpg(program.pid, signal.SIGKILL)  # with what it may have started
        except OSError:
            program.kill()
        try:
            program.wait(GONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            _stayed[name] = program
    for stream in (program.stdout, program.stderr):
        if stream is not None:
            stream.close()

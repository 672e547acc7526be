"""deploy/systemd/joulegram-agent.service is sound, hardened, and has what sensors need."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers import joulegram, need

UNIT = Path(__file__).resolve().parents[2] / "deploy/systemd/joulegram-agent.service"
EXPOSURE_MAX = 2.5  # of 10; what is left is what it is for: reading other people's processes
NEIGHBOUR, AGENT = 61234, 61235
OF_A_NEIGHBOUR = """
import sys
from pathlib import Path
from joulegram.agent.owners.environ import start_of
from joulegram.agent.sensors.drm.fdinfo import descriptors
pid = int(sys.argv[1])
print(start_of(Path("/proc"), pid, ["SLURM_JOB_ID"]).variables)
print(*dict(descriptors(f"/proc/{pid}")).values())
"""


def analyze(*arguments: str | Path) -> str:
    done = subprocess.run(
        [need("systemd-analyze"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


@pytest.fixture
def unit(tmp_path):
    """The unit, its program one that is here."""
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub("(?m)^ExecStart=[^ ]+", f"ExecStart={sys.executable}", UNIT.read_text()))
    return copy


def test_systemd_understands_every_line(unit):
    assert analyze("verify", "--man=no", unit) == ""


def test_it_is_exposed_no_more_than_it_must_be(unit):
    said = analyze("security", "--offline=yes", "--no-pager", unit)
    assert float(said.partition("exposure level for")[2].split()[1]) <= EXPOSURE_MAX, said


def test_its_command_is_one_that_the_command_line_takes():
    command = re.search("(?m)^ExecStart=[^ ]*/joulegram (.*)", UNIT.read_text())
    assert command is not None
    flags = re.findall(r"--[a-z-]+", command[1])
    taken = subprocess.run(joulegram("agent", "--help"), capture_output=True, text=True, check=True)
    assert command[1].startswith("agent ") and all(flag in taken.stdout for flag in flags)


def granted(*, commented: bool = False) -> str:
    """Ambient capabilities of the unit, those in its comments too where asked."""
    text = UNIT.read_text()
    names = re.findall(r"(?m)^AmbientCapabilities=(\S+)", text)
    if commented:
        names += re.findall(r"(?m)^#\s+AmbientCapabilities=(\S+)", text)
    return ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in names)


def as_agent(capabilities: str, *argv: str | Path) -> str:
    """Run as systemd would start it: a user of its own, these capabilities and no others."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    caps = [f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]
    who = [f"--reuid={AGENT}", f"--regid={AGENT}", "--clear-groups", "--no-new-privs"]
    done = subprocess.run(
        [need("setpriv"), *who, *caps, *map(str, argv)],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def neighbour() -> Iterator[int]:
    """A program of another user: a job, by its environment."""
    who = [f"--reuid={NEIGHBOUR}", f"--regid={NEIGHBOUR}", "--clear-groups"]
    program = subprocess.Popen(
        [need("setpriv"), *who, "sh", "-c", "echo; exec sleep 600"],
        env={**os.environ, "SLURM_JOB_ID": "4711"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert program.stdout is not None
        program.stdout.readline()  # it is who it shall be
        yield program.pid
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait(10)


def test_with_its_capability_it_reads_counters_that_are_for_root(tmp_path):
    zone = tmp_path / "class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "262143328850")):
        (zone / name).write_text(text + "\n")
    (zone / "energy_uj").write_text("1000000\n")
    (zone / "energy_uj").chmod(0o400)
    asked = ("agent", "--print", "--frames", "1", "--window", "1", "--sysfs", tmp_path)
    frame = json.loads(as_agent(granted(), *joulegram(*asked)))
    assert [(d["name"], d["quality"]) for d in frame["devices"]] == [("cpu0", "measured")]


@pytest.mark.parametrize("more", [False, True])
def test_others_environments_and_files_take_the_right_to_trace(more):
    """What the unit leaves out is what its comment says, and that is enough."""
    with neighbour() as pid:
        seen = as_agent(granted(commented=more), sys.executable, "-c", OF_A_NEIGHBOUR, str(pid))
    assert ("4711" in seen, "/dev/null" in seen) == (more, more)

"""Whatever the files hold: the agent's loop goes on and no frame breaks conservation.

`make fuzz` does the same for as long as one likes, guided by coverage (tests/fuzz/guided.py).
"""

import ast
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joulegram.agent import textfile
from joulegram.agent.owners import environ
from joulegram.agent.sensors import cray, hwmon, powercap
from joulegram.agent.sensors.drm import cards, clients, fdinfo, kfd
from joulegram.agent.sensors.load import cpufreq, cpuinfo, model, rating
from joulegram.agent.use import cgroups, delegation, procfs
from tests.fuzz.harness import Script, fresh, meter, play
from tests.fuzz.tree import KINDS, SYSTEMS, tree

# Who reads files of <sysfs>, <procfs> or <cgroupfs>.
READERS = (
    *(powercap, hwmon, cray, cards, clients, fdinfo, kfd, cpufreq, cpuinfo, model, rating),
    *(procfs, cgroups, delegation, environ, textfile),
)
# What they define that no machine's files lead a meter to.
ELSEWHERE = {
    "cards.unmetered": "`joulegram check` asks, of the cards that are found here too",
    "cgroups.Cgroups._drop": "a cgroup that left",
    "cgroups.Cgroups._hold_above": "a cgroup that left with its file still open",
    "clients.Clients.__len__": "a gauge",
    "clients.Clients._let_go": "a descriptor that was closed",
    "cray.accelerators": "for a comparison: they are read as the other parts are",
    "model.LoadModel.basis": "what `joulegram check` says",
    "procfs.Processes._in_turn": "more than 20,000 processes",
    "rating._azure": "an instance type by that name comes from the configuration",
}

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*"))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=2_000))
def test_no_file_stops_the_loop_or_breaks_conservation(tmp_path, data):
    play(fresh(tmp_path / "machine"), data)


@pytest.mark.parametrize("kept", CORPUS, ids=lambda path: path.name)
def test_what_was_once_found_holds(tmp_path, kept):
    play(fresh(tmp_path / "machine"), kept.read_bytes())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_unspoilt_machine_is_metered(tmp_path, kind):
    """Else the tests above would hold for an agent that reads nothing."""
    frame = meter(tree(fresh(tmp_path / "machine"), kind), Script(b""))[1]
    assert {device.name for device in frame.devices if device.coverage > 0.9} == kind.devices
    assert {w.kind for w in frame.workloads} >= {"slurm", "kubernetes", "vm", "systemd", "user"}


def test_every_parser_is_reached(tmp_path):
    """Between them the machines have a file for each function that makes something of one."""
    entered: set[tuple[str, str]] = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            entered.add((frame.f_code.co_filename, frame.f_code.co_qualname))

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        for kind in KINDS:
            for system in SYSTEMS:
                meter(tree(fresh(tmp_path / "machine"), kind, *system), Script(b""))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    missed = {
        f"{path.stem}.{name}"
        for path in (Path(str(module.__file__)) for module in READERS)
        for name in functions(path)
        if (str(path), name) not in entered
    }
    assert sorted(missed - ELSEWHERE.keys()) == []


def functions(path: Path) -> Iterator[str]:
    """The qualified names of the functions and methods that a module defines."""
    module = ast.parse(path.read_bytes())
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            inside = (n for n in node.body if isinstance(n, ast.FunctionDef))
            yield from (f"{node.name}.{method.name}" for method in inside)

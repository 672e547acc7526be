"""Whose process is the run's, and how much CPU time the run has used by now."""

import contextlib
import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram.agent.one_run.lineage import KIND, Lineage
from joulegram.agent.use.procfs import Processes
from joulegram.agent.workloads import Owner
from tests.agent.played import Machine

SHELL, RUN, METER, COMMAND, WORKER, HELPER = 9, 10, 11, 12, 13, 14
OWNER = Owner(KIND, "1")


class Seen:
    """A lineage, and the processes as a scan just found them."""

    def __init__(self, machine):
        self.processes = Processes(machine.root / "proc", counts_forks=False)
        self.lineage = Lineage(machine.root / "proc", OWNER, own=METER)
        self.lineage.add(RUN)

    def ours(self):
        self.processes.scan(0, 0)
        return {
            process.pid
            for process in self.processes.all()
            if self.lineage.holds(process, self.processes.get)
        }


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    machine.task(1, b"init", parent=0)
    machine.task(SHELL, b"bash")
    machine.task(RUN, b"joulegram", parent=SHELL)
    machine.task(METER, b"joulegram", parent=RUN)
    machine.task(HELPER, b"ipmi-dcmi", parent=METER)
    machine.task(COMMAND, b"train", parent=RUN)
    machine.task(WORKER, b"worker", parent=COMMAND)
    machine.task(20, b"other", parent=SHELL)
    return machine


def rewrite(machine, pid, **changes):
    for name, value in changes.items():
        setattr(machine.tasks[pid], name, value)
    machine.advance(0)


def test_descendants_are_the_runs_and_the_meter_is_nobodys(machine):
    assert Seen(machine).ours() == {COMMAND, WORKER}


def test_a_child_that_was_there_before_the_command_is_not_the_runs(machine):
    """`sleep 9 & exec joulegram run -- train`: the shell's child, now ours to wait for."""
    (machine.root / f"proc/{RUN}/task/{RUN}").mkdir(parents=True)
    (machine.root / f"proc/{RUN}/task/{RUN}/children").write_text(f"{METER} {HELPER} 15 ")
    machine.task(15, b"sleep", parent=RUN)
    assert Seen(machine).ours() == {COMMAND, WORKER}


def test_once_the_runs_always_the_runs(machine):
    seen = Seen(machine)
    assert WORKER in seen.ours()
    machine.end(COMMAND)
    rewrite(machine, WORKER, parent=1)
    assert seen.ours() == {WORKER}


def test_a_process_first_seen_after_its_parent_ended_is_found_by_who_adopted_it(machine):
    seen = Seen(machine)
    seen.ours()
    machine.task(30, b"daemon", parent=29)  # read while its parent was ending
    assert 30 not in seen.ours()
    rewrite(machine, 30, parent=RUN)
    assert 30 in seen.ours()


def test_a_process_that_cannot_be_met_does_not_cut_the_way(machine):
    seen = Seen(machine)
    machine.task(31, b"grandchild", parent=30)
    seen.processes.scan(0, 0)
    machine.task(30, b"late", parent=WORKER)
    grandchild = seen.processes.get(31)
    assert grandchild and seen.lineage.holds(grandchild, seen.processes.get)


def test_whoever_has_a_pid_next_is_somebody_else(machine):
    seen = Seen(machine)
    assert WORKER in seen.ours()
    machine.end(WORKER)
    machine.task(WORKER, b"stranger", parent=SHELL, start=9000)
    assert seen.ours() == {COMMAND}


def test_a_root_that_is_gone_leads_nobody_to_the_run(machine):
    seen = Seen(machine)
    assert seen.ours() == {COMMAND, WORKER}
    seen.lineage.end(RUN, 5)
    machine.end(RUN)
    machine.task(RUN, b"stranger", parent=SHELL, start=9000)
    machine.task(40, b"strangers-child", parent=RUN, start=9001)
    assert seen.ours() == {COMMAND, WORKER}


def test_parents_in_a_circle_end_the_search(machine):
    machine.task(50, parent=51)
    machine.task(51, parent=50)
    assert Seen(machine).ours() == {COMMAND, WORKER}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["fork", "burn", "end", "look"]), st.integers(0, 9)), max_size=20
    )
)
def test_cpu_time_is_never_overstated_and_exact_once_all_is_waited_for(events):
    """Whatever forks, burns, ends and is adopted between two looks."""
    with TemporaryDirectory() as folder:
        machine = Machine(Path(folder) / "machine")
        machine.task(1, b"init", parent=0)
        machine.task(RUN, parent=1, reaped_s=7.0)  # of a shell that became this run
        machine.task(COMMAND, parent=RUN)
        seen = Seen(machine)
        pids, alive, burnt = itertools.count(100), [COMMAND], 0
        for what, n in [*events, *[("end", 0)] * (len(events) + 1)]:
            pid = alive[n % len(alive)] if alive else 0
            if pid and what == "fork":
                alive.append(next(pids))
                machine.task(alive[-1], parent=pid, start=1000 + alive[-1])
            elif pid and what == "burn":
                machine.tasks[pid].used_s += n
                burnt += n
            elif pid and what == "end":
                _end(machine, pid)
                alive.remove(pid)
            with contextlib.suppress(ValueError):
                machine.advance(0)
            if what == "look":
                seen.ours()
                assert (seen.lineage.used_ns() or 0) <= burnt * 1_000_000_000
        seen.ours()
        assert seen.lineage.used_ns() == burnt * 1_000_000_000


def _end(machine, pid):
    """Its parent waits for it; the run adopts its children."""
    gone = machine.tasks[pid]
    machine.tasks[gone.parent].reaped_s += gone.used_s + gone.reaped_s
    for task in machine.tasks.values():
        if task.parent == pid:
            task.parent = RUN
    machine.end(pid)

"""Live state shows the newest window of every node, adds up, and forgets within bounds."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.collector import live
from joulegram.collector.live import Live
from joulegram.collector.packed import PackedFrame
from joulegram.v1.telemetry_pb2 import Device, Frame, Workload
from tests.collector.made import IDLE, SYSTEM, Node, Row, workload

T0 = 1_770_000_000_000
STEP = 10_000


@dataclass
class Clock:
    ms: int = T0

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> Live:
    return Live(now_ms=clock)


YES = workload("user", "1000", name="ann", user="ann")
WEB = workload("systemd", "nginx.service", name="nginx.service")


def window(clock: Clock, state: Live, node: Node, rows: list[Row], number: int = 0) -> Frame:
    """Play one window: it ends, and its frame becomes durable a moment later."""
    start_ms = T0 + number * STEP
    frame = node.frame(start_ms, rows)
    clock.ms = start_ms + STEP + 200
    state.on_durable([frame])
    return frame


def test_watts_are_energy_by_the_windows_length(clock: Clock, state: Live) -> None:
    rows = [
        Row(YES, cpu_j=400.0, dram_j=20.0, pid=11, command="yes"),
        Row(WEB, cpu_j=30.0, pid=12, command="nginx"),
        Row(WEB, cpu_j=10.0),
        Row(IDLE, cpu_j=100.0, dram_j=10.0),
    ]
    window(clock, state, Node(), rows)
    now = state.now()
    assert now.power_w == pytest.approx({"cpu": 54.0, "dram": 3.0})
    assert [(w.id, w.total_w) for w in now.workloads] == [
        ("1000", pytest.approx(42.0)),
        ("nginx.service", pytest.approx(4.0)),
    ]
    assert [(w.kind, w.total_w) for w in now.reserved] == [("idle", pytest.approx(11.0))]
    assert [(p.command, p.pid, p.power_w) for p in now.processes] == [
        ("yes", 11, pytest.approx(42.0)),
        ("nginx", 12, pytest.approx(3.0)),
    ]
    assert now.processes[0].workload.name == "ann"
    assert now.coverage == 1.0


def test_a_node_silent_for_three_windows_adds_no_watts(clock: Clock, state: Live) -> None:
    window(clock, state, Node("a"), [Row(YES, cpu_j=100.0, pid=1, command="yes")])
    window(clock, state, Node("b"), [Row(IDLE, cpu_j=50.0)])
    received_ms = clock.ms
    clock.ms = received_ms + 3 * STEP
    assert len(state.now().nodes) == 2
    clock.ms += 1
    now = state.now()
    assert (now.total_w, now.workloads, now.processes) == (0, [], [])
    assert len(now.silent) == 2
    assert now.coverage == 0.0


def test_half_of_the_nodes_silent_is_half_the_coverage(clock: Clock, state: Live) -> None:
    a, b = Node("a"), Node("b")
    window(clock, state, a, [Row(IDLE, cpu_j=10.0)])
    for number in range(5):
        window(clock, state, b, [Row(IDLE, cpu_j=10.0)], number)
    now = state.now()
    assert [node.node for node in now.silent] == ["a"]
    assert now.coverage == 0.5


def test_an_old_window_changes_nothing(clock: Clock, state: Live) -> None:
    node = Node()
    old = node.frame(T0, [Row(YES, cpu_j=900.0, pid=1, command="old")])
    window(clock, state, node, [Row(WEB, cpu_j=10.0, pid=2, command="new")], number=1)
    before = state.now()
    state.on_durable([old])
    assert state.now() == before


def test_a_replay_of_an_outage_is_not_now(clock: Clock, state: Live) -> None:
    node = Node()
    frame = node.frame(T0, [Row(YES, cpu_j=900.0)])
    clock.ms = T0 + 7_200_000
    frame.sent_at_ms = clock.ms - 50  # sent late, by a clock that is right
    state.on_durable([frame])
    assert state.now().total_w == 0


def test_a_clock_that_is_off_is_judged_by_the_sending(clock: Clock, state: Live) -> None:
    frame = Node().frame(T0, [Row(YES, cpu_j=100.0)])  # sent as its window ended, by its clock
    clock.ms = T0 + STEP + 600_000
    state.on_durable([frame])
    assert state.now().total_w == pytest.approx(10.0)


def test_two_frames_of_one_window_add_and_a_repeated_one_does_not(
    clock: Clock, state: Live
) -> None:
    before = Node(epoch=1, coverage=0.5)
    after = Node(epoch=2, coverage=0.25)
    first = window(clock, state, before, [Row(YES, cpu_j=50.0)])
    window(clock, state, after, [Row(YES, cpu_j=25.0)])
    state.on_durable([first])
    now = state.now()
    assert now.total_w == pytest.approx(7.5)
    assert now.coverage == 0.75


def test_a_workload_on_two_nodes_is_one(clock: Clock, state: Live) -> None:
    job = workload("slurm", "42", scope="cluster", name="train")
    window(clock, state, Node("a"), [Row(job, cpu_j=10.0), Row(SYSTEM, cpu_j=1.0)])
    window(clock, state, Node("b"), [Row(job, cpu_j=30.0), Row(SYSTEM, cpu_j=1.0)])
    now = state.now()
    assert [w.total_w for w in now.workloads] == [pytest.approx(4.0)]
    assert [w.total_w for w in now.reserved] == [pytest.approx(0.2)]


def test_a_guest_is_counted_in_its_host_alone(clock: Clock, state: Live) -> None:
    vm = workload("vm", "guest1")
    window(clock, state, Node("host"), [Row(vm, cpu_j=100.0)])
    window(clock, state, Node("guest1", more={"host_node": "host"}), [Row(YES, cpu_j=90.0)])
    now = state.now()
    assert now.total_w == pytest.approx(10.0)
    assert {node.node for node in now.nodes} == {"host", "guest1"}


def test_a_process_on_two_gpus_is_one(clock: Clock, state: Live) -> None:
    job = workload("slurm", "42")
    frame = Node().frame(
        T0,
        [
            Row(job, cpu_j=10.0, gpu_j=100.0, pid=5, command="python"),
            Row(job, gpu_j=200.0, pid=5, command="python"),
        ],
    )
    clock.ms = T0 + STEP
    state.on_durable([frame])
    assert [(p.pid, p.power_w) for p in state.now().processes] == [(5, pytest.approx(31.0))]


def test_empty_columns_are_defaults(clock: Clock, state: Live) -> None:
    frame = Frame(node="n", epoch=1, seq=1, window_start_ms=T0, window_ms=STEP)
    frame.workloads.append(Workload(kind="idle"))
    frame.devices.append(Device(name="cpu0", component="cpu", energy_uj=5_000_000, coverage=1))
    frame.rows.workload = np.array([0], "<u4").tobytes()
    frame.rows.cpu_uj = np.array([5_000_000], "<u8").tobytes()
    clock.ms = T0 + STEP
    state.on_durable([frame])
    assert state.now().total_w == pytest.approx(0.5)
    assert state.now().processes == []


def test_an_unknown_component_is_other(clock: Clock, state: Live) -> None:
    frame = Frame(node="n", epoch=1, seq=1, window_start_ms=T0, window_ms=STEP)
    frame.devices.append(Device(name="dpu", component="dpu", energy_uj=10_000_000, coverage=1))
    clock.ms = T0 + STEP
    state.on_durable([frame])
    assert state.now().power_w == {"other": pytest.approx(1.0)}


def test_at_the_bound_the_node_heard_from_least_recently_goes(clock: Clock) -> None:
    state = Live(now_ms=clock, max_nodes=3)
    nodes = [Node(name) for name in "abcd"]
    for node in nodes[:3]:
        window(clock, state, node, [Row(IDLE, cpu_j=1.0)])
    window(clock, state, nodes[0], [Row(IDLE, cpu_j=1.0)], number=1)
    window(clock, state, nodes[3], [Row(IDLE, cpu_j=1.0)], number=1)
    assert sorted(node.node for node in state.now().nodes) == ["a", "c", "d"]
    assert (len(state), state.forgotten) == (3, 1)


def test_teams_by_the_operators_rules(clock: Clock) -> None:
    rules = [{"team": "web", "unit": "nginx.*"}, {"team": "people", "user": "*"}]
    state = Live(team_of=live.by_rules(rules, clock), now_ms=clock)
    window(clock, state, Node(), [Row(YES, cpu_j=2.0), Row(WEB, cpu_j=1.0), Row(IDLE, cpu_j=1.0)])
    now = state.now()
    assert [w.team for w in now.workloads] == ["people", "web"]
    assert [w.team for w in now.reserved] == ["unassigned"]


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=500))
def test_rows_sum_to_the_power_beyond_every_bound(joules: list[float]) -> None:
    """More workloads than are shown: the rest is one row, and nothing is lost."""
    clock = Clock()
    state = Live(now_ms=clock)
    rows = [Row(workload("container", str(i)), cpu_j=j, pid=i + 1) for i, j in enumerate(joules)]
    window(clock, state, Node(), [*rows, Row(IDLE, cpu_j=5.0)])
    now = state.now()
    shown_w = sum(w.total_w for w in (*now.workloads, *now.reserved))
    assert shown_w == pytest.approx(now.total_w)
    assert len(now.workloads) <= live.MAX_WORKLOADS + 1
    assert len(now.processes) <= live.MAX_PROCESSES


def play(clock: Clock, state: Live, sequence: str) -> list[bool]:
    """Frames of agents named by letters, as `a0 b0 a1`; after each, whether two are alive."""
    epochs = {"a": Node("n1", epoch=1), "b": Node("n1", epoch=2), "c": Node("n1", epoch=3)}
    said = []
    for word in sequence.split():
        frame = epochs[word[0]].frame(T0 + int(word[1:]) * STEP, [Row(IDLE, cpu_j=10.0)])
        clock.ms = max(clock.ms, frame.window_start_ms + STEP + 200)
        state.on_durable([frame])
        said.append(state.now().nodes[0].doubled)
    return said


@pytest.mark.parametrize(
    "sequence",
    [
        "a0 a1 a2 a3 a4 a5 a6",
        "a0 a1 a2 b3 b4 b5 b6",  # a restart
        "a0 a1 a2 b2 b3 b4 b5",  # within a window
        "a0 b3 a1 a2 b4 b5 b6",  # its spool comes after its first frame
        "a0 b0 b1 c1 c2 c3",  # two restarts
        "a0 a0 a1 a1 a2 a2 a3 a3",  # everything twice: a replay
    ],
)
def test_a_restart_is_no_duplicate_node(clock: Clock, state: Live, sequence: str) -> None:
    assert not any(play(clock, state, sequence))


@pytest.mark.parametrize(
    "sequence",
    [
        "a0 b0 a1 b1 a2 b2",
        "b0 a0 a1 b1 a2 b2",
        "a0 a1 b0 a2 b1 a3 b2",  # one of them is late
        "a0 b0 c0 a1 b1 c1 a2 b2",
    ],
)
def test_two_epochs_alive_at_once_are_a_duplicate_node(
    clock: Clock, state: Live, sequence: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = play(clock, state, sequence)
    assert said.index(True) == len(said) - 1  # as soon as three windows are shared
    assert "duplicate_node: two agents report as node 'n1'" in caplog.text
    # One of them ends: three windows later all is well.
    assert play(clock, state, "a3 a4 a5 a6")[-1] is False
    assert caplog.text.count("duplicate_node") == 2


@pytest.mark.parametrize("odd", ["a text that is not UTF-8", "a row of no workload"])
def test_a_frame_that_cannot_be_shown_costs_its_node_alone(
    clock: Clock, state: Live, odd: str
) -> None:
    """A follower shows what is in the topic, before any writer has looked into it."""
    window(clock, state, Node("a"), [Row(YES, cpu_j=100.0, pid=1, command="yes")])
    made = Node("b").frame(T0, [Row(WEB, cpu_j=50.0, pid=2, command="nginx")])
    frame = PackedFrame.FromString(made.SerializeToString())
    if odd == "a row of no workload":
        frame.rows.workload = b"\x63\0\0\0"
    else:
        frame.workloads[0] = b"\x0a\x01\xff"
    state.on_durable([frame])
    for _ in range(2):
        assert [node.node for node in state.now().nodes] == ["a"]
    window(clock, state, Node("b"), [Row(IDLE, cpu_j=50.0)], 1)
    assert [node.node for node in state.now().nodes] == ["a", "b"]

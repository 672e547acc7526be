"""Processes that have ended are known for a while, and nobody's storm makes others forgotten."""

from joulegram.agent.use.ended import ALL_MAX, PER_CGROUP_MAX, REMEMBERED_NS, Ended, uptime_ns
from joulegram.agent.use.procfs import Process

JOB, STORM = b"0::/job_1\n", b"0::/user.slice\n"


def process(pid: int, groups: bytes = JOB, start_ticks: int = 1) -> Process:
    return Process(pid, start_ticks, groups=groups)


def test_who_ended_is_known_for_a_while_the_last_one_first():
    ended = Ended()
    first, second = process(7), process(7, start_ticks=2)
    ended.note([first], 10)
    ended.note([second, process(8)], 20)
    assert ended.of(7, 0) == [second, first]
    assert ended.of(7, 10) == [second]
    assert ended.of(9, 0) == []
    ended.note([], 20 + REMEMBERED_NS)
    assert ended.of(7, 0) == [second]
    ended.note([], 21 + REMEMBERED_NS)
    assert len(ended) == 0


def test_a_storm_of_processes_makes_its_own_forgotten():
    ended = Ended()
    ended.note([process(1)], 1)
    for second in range(20):
        ended.note([process(10 + pid, STORM) for pid in range(1000)], second)
    assert len(ended) == 1 + PER_CGROUP_MAX
    assert len(ended.of(1, 0)) == 1


def test_a_storm_in_many_cgroups_is_bounded_too():
    ended = Ended()
    for second in range(3):
        many = [process(10 + pid, b"0::/a/%d\n" % (pid % 100)) for pid in range(10_000)]
        ended.note([process(1), *many], second)
    assert ALL_MAX // 2 < len(ended) <= ALL_MAX
    assert ended.of(1, 0)
    ended.note([process(2)], 3)
    ended.note([process(10 + pid, b"0::/b/%d\n" % pid) for pid in range(10_000)], 4)
    assert len(ended) == ALL_MAX


def test_who_was_nowhere_is_not_remembered():
    ended = Ended()
    ended.note([process(1, b"")], 1)
    assert len(ended) == 0


def test_uptime_is_told_or_not(tmp_path):
    assert uptime_ns(tmp_path) is None
    for text, told in (("12.34 99.0\n", 12_340_000_000), ("", None), ("nan 1\n", None)):
        (tmp_path / "uptime").write_text(text)
        assert uptime_ns(tmp_path) == told

"""What the spool took it gives back, bit for bit, until it is acknowledged; or it says so."""

import contextlib
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from joulegram.agent.errors import SpoolFailed, SpoolInUse
from joulegram.agent.spool.fold import fold
from joulegram.agent.spool.home import KEEP_ASIDE, energy_uj
from joulegram.agent.spool.spool import KEEP_ACKED_MS, Spool, Spooled
from joulegram.v1.telemetry_pb2 import Frame
from tests.agent.made_frames import made_frame, serialised

BIG_EPOCH = 2**64 - 5  # beyond SQLite's signed integers


def give_all(spool: Spool) -> list[Spooled]:
    """Everything pending, in order, now offered."""
    return spool.offer(10**6, recent=False) + spool.offer(10**6, recent=True)


def keys(spooled: list[Spooled]) -> list[tuple[int, int]]:
    return [(one.epoch, one.seq) for one in spooled]


def filled(state: Path, count: int, processes: int = 40) -> list[bytes]:
    spool = Spool.open(state, "n1")
    bodies = []
    for seq in range(1, count + 1):
        frame = made_frame(seq, processes=processes)
        spool.append(frame)
        bodies.append(serialised(frame))
    spool.close()
    return bodies


def test_frames_come_back_in_order_and_unchanged(tmp_path: Path) -> None:
    sent = [made_frame(seq, BIG_EPOCH) for seq in range(1, 6)]
    spool = Spool.open(tmp_path, "n1", "machine")
    for frame in sent:
        assert spool.append(frame)
    spool.close()
    spool = Spool.open(tmp_path, "n1", "machine")
    assert [one.body for one in give_all(spool)] == [serialised(frame) for frame in sent]
    assert keys(give_all(spool)) == [(BIG_EPOCH, seq) for seq in range(1, 6)]
    spool.close()


def test_the_time_of_sending_is_not_kept(tmp_path: Path) -> None:
    frame = made_frame(1)
    stamped = Frame()
    stamped.CopyFrom(frame)
    stamped.sent_at_ms = 5
    spool = Spool.open(tmp_path, "n1")
    spool.append(stamped)
    assert give_all(spool)[0].body == serialised(frame)
    assert stamped.sent_at_ms == 5
    spool.close()


def test_recent_frames_and_the_backlog_are_asked_for_apart(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "n1")
    for seq in range(1, 11):
        spool.append(made_frame(seq))
    recent = spool.offer(8, recent=True)
    assert [one.seq for one in recent] == [8, 9, 10]
    backlog = spool.offer(4, recent=False)
    assert [one.seq for one in backlog] == [1, 2, 3, 4]
    more = spool.offer(4, recent=False, in_flight=[one.position for one in backlog])
    assert [one.seq for one in more] == [5, 6, 7]
    spool.close()


def test_only_what_was_offered_can_be_acknowledged(tmp_path: Path) -> None:
    """A collector that acknowledges everything loses us nothing."""
    spool = Spool.open(tmp_path, "n1")
    for seq in range(1, 5):
        spool.append(made_frame(seq, BIG_EPOCH))
    assert spool.ack([(BIG_EPOCH, 0, 2**64 - 1)]) == 0
    spool.offer(1, recent=False)
    assert spool.ack([(BIG_EPOCH, 0, 2**64 - 1), (BIG_EPOCH, 1, 1), (3, 1, 9), (1, 9, 0)]) == 1
    assert not spool.quarantine(BIG_EPOCH, 1, "late", "")
    assert spool.pending() == 3
    spool.close()


def test_a_refused_frame_is_kept_apart(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "n1")
    spool.append(made_frame(1))
    give_all(spool)
    assert spool.quarantine(1, 1, "sums", "cpu rows do not sum")
    stats = spool.stats()
    assert (stats.pending, stats.refused, stats.acked) == (0, 1, 0)
    assert give_all(spool) == []
    spool.close()


def test_an_identity_is_used_once(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "n1")
    spool.append(made_frame(1))
    with pytest.raises(ValueError, match="in the spool already"):
        spool.append(made_frame(1))
    assert spool.pending() == 1
    spool.close()


def test_acknowledged_frames_stay_a_day(tmp_path: Path) -> None:
    now = [1_000_000]
    spool = Spool.open(tmp_path, "n1", now_ms=lambda: now[0])
    spool.append(made_frame(1))
    give_all(spool)
    spool.ack([(1, 1, 1)])
    now[0] += KEEP_ACKED_MS
    spool.append(made_frame(2))
    assert spool.stats().acked == 1
    now[0] += 1
    spool.append(made_frame(3))
    assert spool.stats().acked == 0
    spool.close()


def test_a_frame_that_waited_too_long_is_dropped_and_counted(tmp_path: Path) -> None:
    """Not its window's age: a clock that was a year behind metered real joules."""
    now = [1_000_000]
    spool = Spool.open(tmp_path, "n1", now_ms=lambda: now[0], up_ms=lambda: now[0], max_age_ms=1000)
    for seq in range(1, 5):
        spool.append(made_frame(seq))
    spool.offer(1, recent=False)
    now[0] += 1000
    spool.append(made_frame(5))
    assert spool.pending() == 5
    now[0] += 1
    spool.append(made_frame(6))
    assert [one.seq for one in give_all(spool)] == [3, 4, 5, 6]  # two at once, no more
    gone = sum(energy_uj(made_frame(seq)) for seq in (1, 2))
    assert spool.stats().dropped_uj == {"age": gone}
    spool.append(made_frame(7))
    assert [one.seq for one in give_all(spool)] == [5, 6, 7]
    spool.close()


YEAR_MS = 366 * 24 * 3600 * 1000


@pytest.mark.parametrize("leap_ms", [YEAR_MS, -YEAR_MS])
def test_a_clock_that_leaps_costs_no_frame_of_this_process(tmp_path: Path, leap_ms: int) -> None:
    """It waited no longer than the process runs; and dropped while in flight, it counts twice."""
    now = [2 * YEAR_MS]
    spool = Spool.open(tmp_path, "n1", now_ms=lambda: now[0], up_ms=lambda: 0)
    for seq in range(1, 31):
        now[0] += leap_ms if seq == 11 else -leap_ms if seq == 21 else 0
        spool.append(made_frame(seq))
    left = give_all(spool)
    assert [one.body for one in left] == [serialised(made_frame(seq)) for seq in range(1, 31)]
    assert spool.stats().dropped_uj == {}
    spool.close()


def test_a_clock_that_leaps_for_a_moment_costs_few_frames_of_an_earlier_process(
    tmp_path: Path,
) -> None:
    now = [1_000_000]
    with contextlib.closing(Spool.open(tmp_path, "n1", now_ms=lambda: now[0])) as spool:
        for seq in range(1, 101):
            spool.append(made_frame(seq))
    bodies = [serialised(made_frame(seq)) for seq in range(1, 101)]
    with contextlib.closing(Spool.open(tmp_path, "n1", now_ms=lambda: now[0])) as spool:
        now[0] += YEAR_MS
        for seq in range(101, 104):
            spool.append(made_frame(seq))
        now[0] -= YEAR_MS
        spool.append(made_frame(104))
        left = give_all(spool)
        assert [one.seq for one in left] == list(range(7, 105))
        assert [one.body for one in left][:94] == bodies[6:]  # windows as they were


# -- a disk that takes nothing ---------------------------------------------------------------------


def test_what_memory_lost_is_written_down_once_the_disk_takes_it(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "n1")
    spool.count_lost(made_frame(1), "disk")
    lost = {"disk": energy_uj(made_frame(1))}
    assert spool.stats().dropped_uj == lost
    spool.append(made_frame(2))
    assert spool.stats().dropped_uj == lost
    spool.close()
    spool = Spool.open(tmp_path, "n1")
    assert spool.stats().dropped_uj == lost
    spool.close()


def test_a_read_only_disk_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was kept stays, what is lost can be read all the while."""
    with mounted(tmp_path / "disk", "size=20m") as disk:
        filled(disk / "state", 3)
        remount(disk, "ro")
        spool = Spool.open(disk / "state", "n1")
        assert "Read-only file system" in caplog.text
        with pytest.raises(SpoolFailed, match="Check that the disk"):
            spool.append(made_frame(4))
        spool.count_lost(made_frame(4), "disk")
        stats = spool.stats()
        assert (stats.usable, stats.dropped_uj) == (False, {"disk": energy_uj(made_frame(4))})
        remount(disk, "rw")
        spool.append(made_frame(5))
        assert (spool.stats().usable, spool.stats().pending) == (True, 4)
        assert [one.seq for one in give_all(spool)] == [1, 2, 3, 5]
        spool.close()


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=6m") as disk:
        bodies = filled(disk / "state", 5)
        ballast = disk / "ballast"
        fill(ballast)
        spool = Spool.open(disk / "state", "n1")  # full from the start
        kept, seq = len(bodies), 5
        with pytest.raises(SpoolFailed):
            while seq < 1000:
                spool.append(made_frame(seq + 1, processes=300))
                seq, kept = seq + 1, kept + 1
        assert not spool.stats().dropped_uj
        ballast.unlink()
        spool.append(made_frame(seq + 1, processes=300))
        found = give_all(spool)
        assert len(found) == kept + 1
        assert [one.body for one in found][:5] == bodies
        assert spool.stats().salvages == 0
        spool.close()


@contextlib.contextmanager
def mounted(at: Path, options: str) -> Iterator[Path]:
    """A small disk of its own; skips where this user may not mount."""
    at.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", at], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs: {made.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)


def remount(at: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", at], check=True)


def fill(file: Path) -> None:
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as ballast:
        while ballast.write(bytes(4096)):
            pass


# -- at the bound ----------------------------------------------------------------------------------


def test_at_the_bound_detail_goes_before_joules_and_no_joule_goes_uncounted(
    tmp_path: Path,
) -> None:
    limit = 1_000_000
    spool = Spool.open(tmp_path, "n1", max_bytes=limit)
    acked = made_frame(1, epoch=2, processes=300)
    spool.append(acked)
    offered = made_frame(2, epoch=2, processes=300)
    spool.append(offered)
    give_all(spool)
    spool.ack([(2, 1, 1)])

    made: dict[int, Frame] = {}
    seen = set()
    for seq in range(1, 800):
        made[seq] = made_frame(seq, processes=300, workloads=60)
        spool.append(made[seq])
        stats = spool.stats()
        assert stats.used_bytes <= limit
        assert (tmp_path / "spool/frames.db").stat().st_size <= limit
        if stats.acked == 0:
            seen.add("acked")
        if stats.folded:
            assert "acked" in seen
            seen.add("folded")
        if stats.dropped_uj:
            assert stats.folded >= seq - 2  # all that was never offered is folded
            seen.add("dropped")
    assert seen == {"acked", "folded", "dropped"}

    left = give_all(spool)
    assert left[0].body == serialised(offered)
    rest = {one.seq: one.body for one in left[1:]}
    assert list(rest) == list(range(min(rest), 800))  # the oldest went
    assert all(body in (serialised(made[s]), serialised(fold(made[s]))) for s, body in rest.items())
    dropped = sum(energy_uj(frame) for seq, frame in made.items() if seq not in rest)
    assert spool.stats().dropped_uj == {"full": dropped}
    spool.close()
    spool = Spool.open(tmp_path, "n1", max_bytes=limit)
    assert spool.stats().dropped_uj == {"full": dropped}
    spool.close()


def test_where_all_was_offered_the_new_frame_is_dropped(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "n1", max_bytes=1_000_000)
    seq, dropped = 0, 0
    while not dropped:
        seq += 1
        frame = made_frame(seq, processes=300)
        if not spool.append(frame):
            dropped = energy_uj(frame)
        give_all(spool)
    assert spool.stats().dropped_uj == {"full": dropped}
    assert [one.seq for one in give_all(spool)] == list(range(1, seq))
    spool.close()


def test_a_lowered_bound_gives_the_disk_back(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "n1")
    for seq in range(1, 200):
        spool.append(made_frame(seq, processes=300))
        give_all(spool)
        spool.ack([(1, seq, seq)])
    spool.close()
    Spool.open(tmp_path, "n1", max_bytes=1_000_000).close()
    assert (tmp_path / "spool/frames.db").stat().st_size <= 1_000_000


def test_a_frame_beyond_a_grpc_message_is_folded(tmp_path: Path) -> None:
    frame = made_frame(1, processes=60_000)
    assert frame.ByteSize() > 3 << 20
    spool = Spool.open(tmp_path, "n1")
    spool.append(frame)
    assert give_all(spool)[0].body == serialised(fold(frame))
    spool.close()


def test_a_bound_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpoolFailed, match=r"spool_max_mb = 0\.5"):
        Spool.open(tmp_path, "n1", max_bytes=500_000)


# -- whose it is -----------------------------------------------------------------------------------


def test_a_second_agent_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    """Another process, since a lock of our own would not stop us."""
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import sys, pathlib; from joulegram.agent.spool.spool import Spool\n"
         "spool = Spool.open(pathlib.Path(sys.argv[1]), 'n1'); print('held', flush=True)\n"
         "sys.stdin.read()", str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with pytest.raises(SpoolInUse, match=rf"process id {holder.pid}\b.*--state DIR"):
        Spool.open(tmp_path, "n1")
    holder.kill()
    holder.communicate()
    Spool.open(tmp_path, "n1").close()


@pytest.mark.parametrize(("node", "machine"), [("n2", "m"), ("n1", "other")])
def test_a_foreign_spool_is_set_aside(
    tmp_path: Path, node: str, machine: str, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool.open(tmp_path, "n1", "m")
    spool.append(made_frame(1))
    spool.close()
    spool = Spool.open(tmp_path, node, machine)
    assert give_all(spool) == []
    (aside,) = tmp_path.glob("spool.foreign-*")
    assert "belongs to node 'n1'" in caplog.text and aside.name in caplog.text
    spool.close()
    # Nothing of it is lost: in its place again, it is the first node's.
    shutil.rmtree(tmp_path / "spool")
    aside.rename(tmp_path / "spool")
    spool = Spool.open(tmp_path, "n1", "m")
    assert keys(give_all(spool)) == [(1, 1)]
    spool.close()


@pytest.mark.parametrize(("first", "second"), [("", "m"), ("m", ""), ("m", "m\n")])
def test_a_machine_id_that_cannot_be_read_disowns_nothing(
    tmp_path: Path, first: str, second: str
) -> None:
    spool = Spool.open(tmp_path, "n1", first)
    spool.append(made_frame(1))
    spool.close()
    spool = Spool.open(tmp_path, "n1", second)
    assert spool.pending() == 1
    spool.close()
    # Whichever of the two was known is known from here on.
    spool = Spool.open(tmp_path, "n1", "another")
    assert spool.pending() == 0
    spool.close()


def test_few_spools_are_kept_aside(tmp_path: Path) -> None:
    for turn in range(KEEP_ASIDE + 3):
        Spool.open(tmp_path, f"n{turn}").close()
    assert len(list(tmp_path.glob("spool.foreign-*"))) == KEEP_ASIDE


def test_a_spool_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    with sqlite3.connect(tmp_path / "spool/frames.db") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(SpoolFailed, match="newer joulegram"):
        Spool.open(tmp_path, "n1")
    assert not list(tmp_path.glob("spool.*"))


# -- damage ----------------------------------------------------------------------------------------


def test_every_frame_that_a_truncated_file_still_holds_is_carried_over(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    bodies = filled(whole, 60)
    database = whole / "spool/frames.db"
    size = database.stat().st_size
    carried = []
    for at in [*range(0, size, 3 * 4096 + 511), size - 4096]:
        state = tmp_path / f"cut{at}"
        shutil.copytree(whole, state)
        os.truncate(state / "spool/frames.db", at)
        spool = Spool.open(state, "n1")
        found = [one.body for one in give_all(spool)]
        assert set(found) <= set(bodies)
        assert [body for body in bodies if body in found] == found  # in order, none twice
        assert spool.stats().salvages == 1
        carried.append(len(found))
        # Life goes on, and the damaged spool is there to look at.
        spool.append(made_frame(1000))
        assert spool.pending() == len(found) + 1
        assert len(list(state.glob("spool.corrupt-*"))) == 1
        spool.close()
        assert Spool.open(state, "n1").stats().salvages == 0
    assert carried == sorted(carried)
    assert carried[-1] >= 58
    assert carried[len(carried) // 2] >= 20  # half a file gives about half the frames


def test_bytes_that_changed_on_disk_are_never_sent(tmp_path: Path) -> None:
    """Whatever a disk does to the file, what is offered is what was appended."""
    whole = tmp_path / "whole"
    bodies = set(filled(whole, 40))
    rng = random.Random(7)
    recovered = 0
    for turn in range(60):
        state = tmp_path / f"turn{turn}"
        shutil.copytree(whole, state)
        database = state / "spool/frames.db"
        with database.open("r+b") as file:
            for _ in range(rng.choice((1, 3, 40))):
                file.seek(rng.randrange(database.stat().st_size))
                file.write(rng.randbytes(rng.choice((1, 8, 600))))
        spool = Spool.open(state, "n1")
        found = give_all(spool)
        assert {one.body for one in found} <= bodies
        assert len(set(keys(found))) == len(found)
        spool.append(made_frame(1000))
        recovered += len(found)
        spool.close()
    assert recovered > 60 * 40 / 2


@pytest.mark.parametrize("processes", [4, 40, 300], ids=["several a page", "a page", "pages"])
@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed"])
def test_a_lost_page_costs_what_it_held_and_no_more(
    tmp_path: Path, processes: int, killed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Any page: SQLite's header and the root of its tree too, whose loss hides every frame."""
    spool = Spool.open(tmp_path / "whole", "n1")
    made = {seq: made_frame(seq, processes=processes) for seq in range(1, 31)}
    bodies = {}
    for seq, frame in made.items():
        spool.append(frame)
        bodies[seq] = serialised(frame)
    spool.offer(10, recent=False)
    spool.ack([(1, 1, 6)])
    if killed:  # its last transactions are in the log alone
        shutil.copytree(tmp_path / "whole", tmp_path / "copy")
    spool.close()
    whole = tmp_path / ("copy" if killed else "whole")
    database = "spool/frames.db"
    pages = (tmp_path / "whole" / database).stat().st_size // 4096
    a_page_holds = max(1, 4096 // len(bodies[1]) + 1)
    rng = random.Random(1)
    for page in {0, 1, 2, 3, 4, pages - 1, *rng.sample(range(pages), min(pages, 12))}:
        state = tmp_path / "state"
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(whole, state)
        with (state / database).open("r+b") as file:
            file.seek(page * 4096)
            file.write(rng.randbytes(4096))
        caplog.clear()
        spool = Spool.open(state, "n1")
        given = give_all(spool)
        stats = spool.stats()
        spool.close()
        assert all(one.body == bodies[one.seq] for one in given)
        assert not {one.seq for one in given} & set(range(1, 7))  # acknowledged is acknowledged
        lost = 30 - stats.acked - len(given)
        assert lost <= a_page_holds, page
        if lost and not stats.dropped_uj:
            assert stats.salvages == 1
            assert "is damaged" in caplog.text
            assert stats.unreadable == lost
        if stats.dropped_uj:
            gone = set(range(7, 31)) - {one.seq for one in given}
            assert stats.dropped_uj == {"damaged": sum(energy_uj(made[seq]) for seq in gone)}


def test_frames_that_were_let_go_do_not_come_back_from_a_damaged_spool(tmp_path: Path) -> None:
    now = [1_000_000]
    spool = Spool.open(tmp_path, "n1", now_ms=lambda: now[0])
    for seq in range(1, 101):
        spool.append(made_frame(seq))
    spool.offer(60, recent=False)
    spool.ack([(1, 1, 60)])
    now[0] += KEEP_ACKED_MS + 1
    for seq in range(101, 111):
        spool.append(made_frame(seq))
    assert spool.stats().acked == 0
    spool.close()
    with (tmp_path / "spool/frames.db").open("r+b") as file:
        file.seek(2 * 4096)  # the root of the tree
        file.write(bytes(4096))
    spool = Spool.open(tmp_path, "n1", now_ms=lambda: now[0])
    assert spool.stats().salvages == 1
    assert {one.seq for one in give_all(spool)} <= set(range(61, 111))
    assert len(give_all(spool)) >= 49
    assert spool.stats().acked == 0
    spool.close()


def test_damage_met_while_running_is_repaired(tmp_path: Path) -> None:
    bodies = filled(tmp_path, 300, processes=300)  # more than SQLite's cache holds
    spool = Spool.open(tmp_path, "n1")
    os.truncate(tmp_path / "spool/frames.db", 2 << 20)
    found = [one.body for one in give_all(spool)]
    spool.append(made_frame(301))
    assert spool.stats().salvages == 1
    assert 50 < len(found) < 300
    assert set(found) <= set(bodies)
    spool.close()


def test_frames_after_a_repair_are_this_processs_as_those_before(tmp_path: Path) -> None:
    """Positions may be given out again then; a clock that leaps makes none of them old."""
    filled(tmp_path, 300, processes=300)
    now = [1_000_000]
    spool = Spool.open(tmp_path, "n1", now_ms=lambda: now[0], up_ms=lambda: 0)
    os.truncate(tmp_path / "spool/frames.db", 2 << 20)
    for one in give_all(spool):
        spool.ack([(one.epoch, one.seq, one.seq)])
    assert (spool.stats().salvages, spool.pending()) == (1, 0)
    for seq in range(1, 5):
        spool.append(made_frame(seq, epoch=9))
    now[0] += YEAR_MS
    spool.append(made_frame(5, epoch=9))
    assert [one.seq for one in give_all(spool)] == [1, 2, 3, 4, 5]
    assert "age" not in spool.stats().dropped_uj
    spool.close()


def test_counts_of_lost_joules_survive_a_salvage(tmp_path: Path) -> None:
    filled(tmp_path, 60)
    with contextlib.closing(sqlite3.connect(tmp_path / "spool/frames.db")) as db:
        db.execute("INSERT INTO meta VALUES ('dropped_uj:full', 123)")
        db.commit()
    with (tmp_path / "spool/frames.db").open("r+b") as file:
        file.seek(30 * 4096)
        file.write(bytes(5 * 4096))
    spool = Spool.open(tmp_path, "n1")
    assert spool.stats().salvages == 1
    assert spool.stats().dropped_uj == {"full": 123}
    spool.close()


def test_a_salvage_that_was_killed_between_its_renames_is_finished(tmp_path: Path) -> None:
    bodies = filled(tmp_path, 3)
    (tmp_path / "spool/complete").touch()
    (tmp_path / "spool").rename(tmp_path / "spool.new")
    spool = Spool.open(tmp_path, "n1")
    assert [one.body for one in give_all(spool)] == bodies
    spool.close()


def test_a_half_built_database_is_built_again(tmp_path: Path) -> None:
    (tmp_path / "spool.new").mkdir(parents=True)
    (tmp_path / "spool.new/frames.db").write_bytes(b"half")
    filled(tmp_path, 3)
    assert Spool.open(tmp_path, "n1").pending() == 3


def test_a_lock_that_is_a_link_leads_us_nowhere(tmp_path: Path) -> None:
    """In a folder that others may write to, they choose where it leads."""
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    (tmp_path / "state").mkdir()
    (tmp_path / "state/lock").symlink_to(precious)
    with pytest.raises(SpoolFailed, match="lock"):
        Spool.open(tmp_path / "state", "n1")
    assert precious.read_text() == "as it was"


def test_a_folder_that_others_may_write_to_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o755)
    Spool.open(tmp_path, "n1").close()
    assert "others may write" not in caplog.text
    tmp_path.chmod(0o777)
    Spool.open(tmp_path, "n1").close()
    assert "others may write" in caplog.text


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolFailed, match=re.escape(f"{tmp_path}/file") + ".*--state DIR"):
        Spool.open(tmp_path / "file", "n1")


# -- any order of operations -----------------------------------------------------------------------


class Spooling(RuleBasedStateMachine):
    """A spool against a list: nothing lost, changed, invented or reordered over restarts."""

    state: Path

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[tuple[int, int], bytes] = {}  # pending, in order
        self.offered: set[tuple[int, int]] = set()
        self.done = 0
        self.epoch, self.seq = 1, 0

    @initialize()
    def begin(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)
        self.spool = Spool.open(self.state, "n1")

    @rule(processes=st.sampled_from((0, 3, 90)))
    def append(self, processes: int) -> None:
        self.seq += 1
        frame = made_frame(self.seq, self.epoch, processes=processes)
        assert self.spool.append(frame)
        self.model[self.epoch, self.seq] = serialised(frame)

    @rule(limit=st.integers(0, 5), recent=st.booleans())
    def offer(self, limit: int, recent: bool) -> None:
        given = self.spool.offer(limit, recent=recent)
        every = list(self.model)
        assert [self.model[key] for key in keys(given)] == [one.body for one in given]
        assert keys(given) == [key for key in every if key in keys(given)]
        if not recent:
            assert keys(given) == every[: len(given)]
        assert len(given) <= limit
        self.offered |= set(keys(given))

    @rule(first=st.integers(0, 12), count=st.integers(0, 12), back=st.integers(0, 1))
    def ack(self, first: int, count: int, back: int) -> None:
        epoch = self.epoch - back
        news = {key for key in self.offered if key[0] == epoch and first <= key[1] <= first + count}
        assert self.spool.ack([(epoch, first, first + count)]) == len(news)
        self.settle(news)

    @precondition(lambda self: self.offered)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.offered)))
        assert self.spool.quarantine(*key, "sums", "made up")
        self.settle({key})

    def settle(self, settled: set[tuple[int, int]]) -> None:
        for key in settled:
            del self.model[key]
        self.offered -= settled
        self.done += len(settled)

    @rule(new_epoch=st.booleans())
    def restart(self, new_epoch: bool) -> None:
        self.spool.close()
        self.spool = Spool.open(self.state, "n1")
        if new_epoch:
            self.epoch, self.seq = self.epoch + 1, 0

    @invariant()
    def all_is_accounted_for(self) -> None:
        stats = self.spool.stats()
        assert stats.pending == len(self.model) == self.spool.pending()
        assert stats.acked + stats.refused == self.done
        assert not stats.dropped_uj

    def teardown(self) -> None:
        assert [one.body for one in give_all(self.spool)] == list(self.model.values())
        self.spool.close()


def test_any_order_of_operations(tmp_path: Path) -> None:
    class Here(Spooling):
        state = tmp_path / "state"

    run_state_machine_as_test(
        Here, settings=settings(max_examples=40, stateful_step_count=25, deadline=None)
    )

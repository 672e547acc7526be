"""Slots hold what the rows hold, after anything."""

import asyncio
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from joulegram.collector import columns
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.rollup import MAX_SLOTS, QUIET_S, SHARED_EVERY_S, SLOT_S, Rollup
from joulegram.collector.writer import Writer
from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.ledgers import ledger
from tests.collector.made_frames import START_MS, WINDOW_MS, checked, energy_uj, frame

__all__ = ["ledger"]

EVER = datetime.fromtimestamp(0, UTC), datetime(2100, 1, 1, tzinfo=UTC)
NEWEST = (
    "(node, slot, generation) IN "
    "(SELECT node, slot, max(generation) FROM slots GROUP BY node, slot)"
)


def keep(ledger: Ledger, frames: Sequence[Frame], rollup: Rollup | None = None) -> None:
    async def send() -> None:
        writer = Writer(ledger, group_s=0.0, on_durable=[rollup.touch] if rollup else [])
        running = asyncio.create_task(writer.run())
        assert await writer.send(checked(*frames)) == []
        writer.close()
        await running

    asyncio.run(send())


def slots(ledger: Ledger) -> dict[tuple[str, int], tuple[int, int, int]]:
    """{(node, slot): (frames, uJ of workloads, uJ of devices)}, as readers see them."""
    found = ledger.query(
        "SELECT node, toUInt32(slot) AS slot_s, sum(frames) AS n, "
        "sum(cpu_uj + dram_uj + gpu_uj + other_uj) AS rows_uj, sum(energy_uj) AS devices_uj "
        f"FROM slots WHERE {NEWEST} GROUP BY node, slot_s"
    ).to_pylist()
    return {(r["node"], r["slot_s"]): (r["n"], r["rows_uj"], r["devices_uj"]) for r in found}


def expected(frames: Sequence[Frame]) -> dict[tuple[str, int], tuple[int, int, int]]:
    sums: dict[tuple[str, int], list[Frame]] = {}
    for f in frames:
        sums.setdefault((f.node, f.window_start_ms // 1000 // SLOT_S * SLOT_S), []).append(f)
    return {key: (len(of), energy_uj(of), energy_uj(of)) for key, of in sums.items()}


def test_slots_equal_rows_whatever_comes_when(ledger: Ledger) -> None:
    rng = random.Random(3)
    rollup = Rollup(ledger)
    frames = [frame(seq, node=n, gpu=seq % 2 == 0) for n in ("n1", "n2") for seq in range(1, 90)]
    rng.shuffle(frames)
    for first in range(0, len(frames), 40):
        keep(ledger, frames[first : first + 40], rollup)
        rollup.refresh(*EVER)
        assert slots(ledger) == expected(frames[: first + 40])
    assert rollup.refresh(*EVER) == 0


def test_a_start_finds_what_a_kill_left_undone(ledger: Ledger) -> None:
    frames = [frame(seq) for seq in range(1, 70)]
    keep(ledger, frames)
    assert slots(ledger) == {}
    assert Rollup(ledger).refresh(*EVER) == 3
    assert slots(ledger) == expected(frames)
    assert Rollup(ledger).refresh(*EVER) == 0
    late = frame(1, epoch=77)
    keep(ledger, [late])
    assert Rollup(ledger).refresh(*EVER) == 1
    assert slots(ledger) == expected([*frames, late])


def test_a_report_of_a_range_pays_for_that_range_only(ledger: Ledger) -> None:
    rollup = Rollup(ledger)
    frames = [frame(seq) for seq in range(1, 70)]
    keep(ledger, frames, rollup)
    second = datetime.fromtimestamp(START_MS / 1000 + SLOT_S, UTC)
    last = datetime.fromtimestamp(START_MS / 1000 + SLOT_S + 1, UTC)
    assert rollup.refresh(second, last) == 1
    assert list(slots(ledger)) == [("n1", START_MS // 1000 + SLOT_S)]


def test_a_frame_without_its_header_or_all_its_rows_does_not_count(ledger: Ledger) -> None:
    good, headless, short = frame(1), frame(2), frame(3)
    keep(ledger, [good])
    for broken, kept in ((headless, slice(1, None)), (short, slice(0, -1))):
        content = columns.content_of(broken)
        made = columns.of_rows(checked(broken), [columns.hash_of(content)], 1)
        ledger.insert("rows", {name: column[kept] for name, column in made.items()})
        devices = columns.of_devices(checked(broken))
        assert devices is not None
        ledger.insert("devices", devices)
    rollup = Rollup(ledger)
    rollup.refresh(*EVER)
    assert slots(ledger) == expected([good])
    assert Rollup(ledger).refresh(*EVER) == 0


def test_rows_that_lie_there_twice_count_once(ledger: Ledger) -> None:
    ledger.execute("SYSTEM STOP MERGES rows")
    frames = [frame(seq, gpu=True) for seq in range(1, 4)]
    keep(ledger, frames)
    content = columns.content_of(frames[0])
    made = columns.of_rows(checked(frames[0]), [columns.hash_of(content)], 1)
    ledger.insert("rows", made)
    Rollup(ledger).refresh(*EVER)
    assert slots(ledger) == expected(frames)


def test_generations_grow_even_when_the_clock_steps_back(ledger: Ledger) -> None:
    clock = iter(range(10_000, 0, -1))
    rollup = Rollup(ledger, now_ms=lambda: next(clock))
    frames = [frame(seq) for seq in range(1, 6)]
    for n, one in enumerate(frames, start=1):
        keep(ledger, [one], rollup)
        rollup.refresh(*EVER)
        assert slots(ledger) == expected(frames[:n])


def test_older_generations_may_be_merged_away(ledger: Ledger) -> None:
    rollup = Rollup(ledger)
    frames = [frame(seq, gpu=True) for seq in range(1, 6)]
    for one in frames:
        keep(ledger, [one], rollup)
        rollup.refresh(*EVER)
    ledger.execute("OPTIMIZE TABLE slots FINAL")
    assert slots(ledger) == expected(frames)
    (left,) = ledger.query("SELECT uniqExact(generation) AS n FROM slots").to_pylist()
    assert left == {"n": 1}


def test_quality_coverage_and_reservations_add_up(ledger: Ledger) -> None:
    frames = [frame(seq) for seq in range(1, 4)]
    frames[1].devices[0].quality = "derived"
    frames[2].devices[0].quality = "modelled"
    frames[2].devices[0].coverage = 0.5
    frames[2].simulated = True
    keep(ledger, frames)
    Rollup(ledger).refresh(*EVER)
    (cpu,) = ledger.query(
        "SELECT energy_uj, derived_uj, modelled_uj, covered_ms, idle_uj, simulated FROM slots "
        "WHERE entry = 'device' AND device = 'cpu0'"
    ).to_pylist()
    cpus = [f.devices[0] for f in frames]
    assert cpu == {
        "energy_uj": sum(d.energy_uj for d in cpus),
        "derived_uj": cpus[1].energy_uj,
        "modelled_uj": cpus[2].energy_uj,
        "covered_ms": 2.5 * WINDOW_MS,
        "idle_uj": sum(d.idle_uj for d in cpus),
        "simulated": 1,
    }
    (reserved,) = ledger.query(
        "SELECT sum(reserved_ms) AS ms FROM slots WHERE entry = 'reserved'"
    ).to_pylist()
    assert reserved == {"ms": 3 * 4 * WINDOW_MS}


def test_the_background_waits_until_a_slot_is_quiet(ledger: Ledger) -> None:
    now_s = [100.0]
    rollup = Rollup(ledger, monotonic_s=lambda: now_s[0])
    keep(ledger, [frame(1)], rollup)
    assert rollup.catch_up() == 0
    now_s[0] += 0.6 * QUIET_S
    keep(ledger, [frame(2)], rollup)
    now_s[0] += 0.6 * QUIET_S
    assert rollup.catch_up() == 0
    now_s[0] += 0.6 * QUIET_S
    assert rollup.catch_up() == 1
    assert slots(ledger) == expected([frame(1), frame(2)])


def test_a_failed_roll_up_is_tried_again(ledger: Ledger) -> None:
    class Broken:
        failing = True
        cluster = ""

        def insert(self, *arguments: object) -> None:
            if self.failing:
                raise OSError("no space left on device")
            ledger.insert(*arguments)  # type: ignore[arg-type]

        def query(self, sql: str) -> object:
            return ledger.query(sql)

    broken = Broken()
    rollup = Rollup(broken)  # type: ignore[arg-type]
    keep(ledger, [frame(1)], rollup)
    with pytest.raises(OSError, match="no space"):
        rollup.refresh(*EVER)
    broken.failing = False
    assert rollup.refresh(*EVER) == 1
    assert slots(ledger) == expected([frame(1)])


def test_a_batch_is_of_nodes_that_lie_next_to_each_other(ledger: Ledger) -> None:
    """Whatever the order they came in: else each batch would read all that there is."""
    written: list[list[str]] = []

    class Watched:
        cluster = ""

        def insert(self, table: str, columns: Mapping[str, Any]) -> None:
            written.append(columns["node"].to_pylist())
            ledger.insert(table, columns)

        def query(self, sql: str) -> object:
            return ledger.query(sql)

    rollup = Rollup(Watched())  # type: ignore[arg-type]
    frames = [frame(1, node=f"n{number:04}") for number in range(MAX_SLOTS + 90)]
    random.Random(5).shuffle(frames)
    keep(ledger, frames, rollup)
    assert rollup.refresh(*EVER) == len(frames)
    assert len(written) > 1
    written.sort()
    for batch, following in itertools.pairwise(written):
        assert max(batch) < min(following)


class Meanwhile:
    """A ledger to which something happens between a roll-up's reading and its writing."""

    exclusive = False
    cluster = ""

    def __init__(self, ledger: Ledger, happens: Callable[[], None]) -> None:
        self._ledger = ledger
        self._happens = happens

    def insert(self, table: str, columns: Mapping[str, Any]) -> None:
        if table == "slots":
            self._happens()
        self._ledger.insert(table, columns)

    def query(self, *arguments: Any) -> Any:
        return self._ledger.query(*arguments)


@pytest.mark.parametrize("slow_clock_ahead_ms", [-3_600_000, 0, 3_600_000])
def test_of_two_writers_that_race_on_a_slot_more_frames_win(
    ledger: Ledger, slow_clock_ahead_ms: int
) -> None:
    """The slow one read 3 frames and writes last; the other read all 5 and wrote meanwhile."""
    frames = [frame(seq) for seq in range(1, 6)]
    keep(ledger, frames[:3])

    def other() -> None:
        keep(ledger, frames[3:])
        assert Rollup(ledger, now_ms=lambda: START_MS).refresh(*EVER) == 1

    slow = Meanwhile(ledger, other)
    now_ms = START_MS + slow_clock_ahead_ms
    Rollup(slow, now_ms=lambda: now_ms).refresh(*EVER)  # type: ignore[arg-type]
    assert slots(ledger) == expected(frames)
    ledger.execute("OPTIMIZE TABLE slots FINAL")
    assert slots(ledger) == expected(frames)
    assert Rollup(ledger).refresh(*EVER) == 0


def test_what_others_wrote_is_found_without_a_start(ledger: Ledger) -> None:
    now_s = [0.0]
    rollup = Rollup(ledger, monotonic_s=lambda: now_s[0])
    frames = [frame(seq) for seq in range(1, 4)]
    keep(ledger, frames)  # by a process that is not ours
    assert rollup.refresh(*EVER) == 0
    now_s[0] += SHARED_EVERY_S
    rollup.look_at_others()
    assert rollup.refresh(*EVER) == 1
    assert slots(ledger) == expected(frames)


def test_a_slot_knows_when_its_frames_began_and_ended(ledger: Ledger) -> None:
    frames = [frame(seq) for seq in range(4, 8)]
    keep(ledger, frames)
    Rollup(ledger).refresh(*EVER)
    (spoken_of,) = ledger.query(
        "SELECT first_s, end_s FROM slots WHERE entry = 'frames'"
    ).to_pylist()
    assert spoken_of == {
        "first_s": frames[0].window_start_ms // 1000,
        "end_s": (frames[-1].window_start_ms + WINDOW_MS) // 1000,
    }

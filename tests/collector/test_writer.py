"""Exactly once: whatever is sent, repeated, shuffled or interrupted, the ledger holds it once."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.stages import Busy
from joulegram.collector.workloads import workload_id
from joulegram.collector.writer import INSERT_MAX_ROWS, Store, Writer, inserts
from joulegram.v1.telemetry_pb2 import Frame, Workload
from tests.collector.ledgers import Unreliable, ledger
from tests.collector.made_frames import START_MS, checked, energy_uj, frame, identities

__all__ = ["ledger"]

ENERGY = "sum(cpu_uj + dram_uj + gpu_uj + other_uj)"


@contextlib.asynccontextmanager
async def writing(store: Any, **options: Any) -> AsyncIterator[Writer]:
    writer = Writer(store, **{"group_s": 0.0, **options})
    running = asyncio.create_task(writer.run())
    yield writer
    writer.close()
    await running


def stored(ledger: Ledger) -> tuple[list[tuple[str, int, int]], int, int]:
    """(identities, uJ of rows, uJ of devices), nothing deduplicated but devices."""
    headers = ledger.query("SELECT node, epoch, seq FROM rows WHERE row = 0").to_pylist()
    (rows,) = ledger.query(f"SELECT {ENERGY} AS uj FROM rows").to_pylist()
    (devices,) = ledger.query(
        "SELECT sum(energy_uj) AS uj FROM devices FINAL "
        "WHERE (node, epoch, seq) IN (SELECT node, epoch, seq FROM rows WHERE row = 0)"
    ).to_pylist()
    return sorted(tuple(h.values()) for h in headers), rows["uj"], devices["uj"]


def whole(frames: Sequence[Frame]) -> tuple[list[tuple[str, int, int]], int, int]:
    return identities(frames), energy_uj(frames), energy_uj(frames)


def copied(one: Frame) -> Frame:
    other = Frame()
    other.CopyFrom(one)
    return other


async def test_every_column_arrives(ledger: Ledger) -> None:
    sent = frame(3, rows=4, gpu=True)
    async with writing(ledger, now_ms=lambda: 1_790_000_500_000) as writer:
        assert await writer.send(checked(sent)) == []
    header, *rows = ledger.query("SELECT * FROM rows ORDER BY row").to_pylist()
    assert (header["row_count"], header["window_ms"]) == (6, 10_000)
    assert header["total_uj"] == energy_uj([sent])
    assert header["landed_at_ms"] == 1_790_000_500_000
    assert header["window"] == sent.window_start_ms // 1000
    job, idle = workload_id("cluster", "slurm", "77"), workload_id("n1", "idle", "")
    assert rows[0]["workload"] == idle and header["workload"] == 0
    for name in ("pid", "start_ticks", "cpu_uj", "dram_uj", "cpu_ns", "gpu_uj"):
        width = "<u4" if name == "pid" else "<u8"
        assert [r[name] for r in rows] == np.frombuffer(getattr(sent.rows, name), width).tolist()
    assert [r["command"] for r in rows] == list(sent.rows.command)
    assert [r["device"] for r in rows] == ["", "", "", "", "gpu:a", "gpu:a"]
    assert [r["holder"] for r in rows] == [0, 0, 0, 0, 0, job]
    (details,) = ledger.query(f"SELECT * FROM workloads WHERE workload = {job}").to_pylist()
    assert (details["user"], details["name"]) == ("ada", "train")
    assert dict(zip(details["labels"], details["label_values"], strict=True)) == {"tier": "gold"}
    assert ledger.query("SELECT workload, device, amount FROM reservations").to_pylist() == [
        {"workload": job, "device": "", "amount": 4.0}
    ]
    devices = ledger.query("SELECT name, energy_uj, boot_id FROM devices ORDER BY device")
    assert [d["name"] for d in devices.to_pylist()] == ["cpu0", "dram0", "gpu:a"]


async def test_any_order_any_repetition_counts_once(ledger: Ledger) -> None:
    rng = random.Random(5)
    frames = [frame(seq, node=node) for node in ("n1", "n2") for seq in range(1, 60)]
    offered = [copied(rng.choice(frames)) for _ in range(300)] + list(frames)
    rng.shuffle(offered)
    async with writing(ledger) as writer:
        while offered:
            some, offered = offered[:23], offered[23:]
            assert await writer.send(checked(*some)) == []
    assert stored(ledger) == whole(frames)


async def test_a_restart_knows_what_is_stored(ledger: Ledger) -> None:
    frames = [frame(seq) for seq in range(1, 9)]
    for _ in range(3):
        async with writing(ledger) as writer:
            assert await writer.send(checked(*frames)) == []
    assert stored(ledger) == whole(frames)


async def test_a_smaller_seq_is_no_duplicate(ledger: Ledger) -> None:
    async with writing(ledger) as writer:
        await writer.send(checked(frame(9)))
        await writer.send(checked(frame(2), frame(9, epoch=7)))
    assert stored(ledger) == whole([frame(9), frame(2), frame(9, epoch=7)])


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "after a restart"])
@pytest.mark.parametrize("change", ["energy", "window"])
async def test_the_same_identity_with_other_content_is_refused(
    ledger: Ledger, together: bool, change: str
) -> None:
    first, other = frame(1), frame(1)
    if change == "energy":
        other.devices[0].raw_uj += 1
    else:
        other.window_start_ms += 600_000
    resent = frame(1)
    resent.sent_at_ms = START_MS + 99_000
    if together:
        async with writing(ledger) as writer:
            refused = await writer.send(checked(first, other, resent))
    else:
        async with writing(ledger) as writer:
            await writer.send(checked(first))
        async with writing(ledger) as writer:
            refused = await writer.send(checked(other, resent))
    packed = other.SerializeToString()
    assert [(r.reason, r.frame.packed == packed) for r in refused] == [("conflict", True)]
    assert stored(ledger) == whole([first])


@pytest.mark.parametrize("table", ["workloads", "devices", "reservations", "rows"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_one_failed_insert_is_made_good(ledger: Ledger, table: str, when: str) -> None:
    store = Unreliable(ledger, [(table, when)])
    async with writing(store) as writer:
        assert await writer.send(checked(frame(1), frame(2))) == []
    assert not store.faults
    assert stored(ledger) == whole([frame(1), frame(2)])


async def test_a_ledger_that_keeps_failing_says_busy_and_nothing_is_lost(
    ledger: Ledger,
) -> None:
    seen: list[Frame] = []
    store = Unreliable(ledger, [("rows", "before")] * 2)
    async with writing(store, on_durable=[seen.extend]) as writer:
        with pytest.raises(Busy):
            await writer.send(checked(frame(1)))
        assert seen == []
        assert await writer.send(checked(frame(1))) == []
        assert await writer.send(checked(frame(1))) == []
    assert identities(seen) == identities([frame(1)])
    assert stored(ledger) == whole([frame(1)])


async def test_what_waits_is_bounded(ledger: Ledger) -> None:
    writer = Writer(ledger, group_s=60.0, group_max_rows=100, queue_max_rows=100)
    waiting = asyncio.create_task(writer.send(checked(frame(1, rows=90))))
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await writer.send(checked(frame(2, rows=90)))
    writer.close()
    await writer.run()
    assert await waiting == []
    with pytest.raises(Busy):
        await writer.send(checked(frame(3)))


async def test_a_group_is_one_insert_per_day(ledger: Ledger) -> None:
    ledger.execute("SYSTEM STOP MERGES rows")
    yesterday = [frame(s, epoch=2, start_ms=START_MS - 86_400_000) for s in range(1, 5)]
    today = [frame(s, node=f"n{s}") for s in range(1, 9)]
    async with writing(ledger, group_s=0.05) as writer:
        await asyncio.gather(*(writer.send(checked(f)) for f in [*yesterday, *today]))
    parts = ledger.query(
        "SELECT partition, rows FROM system.parts WHERE active AND table = 'rows' "
        "AND database = currentDatabase() ORDER BY partition"
    ).to_pylist()
    day = datetime.fromtimestamp(START_MS / 1000, UTC)
    assert parts == [
        {"partition": f"{day - timedelta(days=1):%Y%m%d}", "rows": 4 * 6},
        {"partition": f"{day:%Y%m%d}", "rows": 8 * 6},
    ]


@dataclass
class Slow:
    """A ledger whose inserts wait until they may."""

    ledger: Ledger
    may: threading.Event
    exclusive: bool = True
    cluster: str = ""

    def insert(self, table: str, columns: Mapping[str, Any]) -> None:
        assert self.may.wait(60.0)
        self.ledger.insert(table, columns)

    def query(self, sql: str) -> Any:
        return self.ledger.query(sql)


async def test_what_came_during_a_commit_does_not_wait_anew(ledger: Ledger) -> None:
    slow = Slow(ledger, threading.Event())
    async with writing(slow, group_s=3.0, group_max_rows=50) as writer:
        first = asyncio.create_task(writer.send(checked(frame(1, rows=60))))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(writer.send(checked(frame(2, rows=1))))
        await asyncio.sleep(3.1)
        slow.may.set()
        released_s = time.monotonic()
        await asyncio.gather(first, second)
        assert time.monotonic() - released_s < 2.5


def test_an_insert_never_grows_beyond_one_part() -> None:
    frames = [frame(seq, rows=90_000) for seq in range(1, 9)]
    parts = list(inserts(checked(*frames)))
    assert identities([one.frame for part in parts for one in part]) == identities(frames)
    for part in parts:
        assert sum(one.rows + 1 for one in part) <= INSERT_MAX_ROWS


async def test_the_version_of_the_latest_window_is_the_one_readers_see(
    ledger: Ledger,
) -> None:
    def named(seq: int, name: str) -> Frame:
        made = frame(seq)
        made.workloads[2].name = name
        return made

    async with writing(ledger) as writer:
        for seq, name in ((1, "old"), (5, "new"), (9, "new"), (7, "back-filled"), (3, "old")):
            await writer.send(checked(named(seq, name)))
    (seen,) = ledger.query(
        "SELECT argMax(name, seen_at_ms) AS name FROM workloads "
        f"WHERE workload = {workload_id('cluster', 'slurm', '77')}"
    ).to_pylist()
    assert seen == {"name": "new"}


@pytest.mark.parametrize("at_first", [("", "train"), ("train", "")])
async def test_nodes_that_come_to_agree_on_a_name_leave_no_doubt_of_it(
    ledger: Ledger, at_first: tuple[str, str]
) -> None:
    def named(seq: int, names: tuple[str, str]) -> list[Frame]:
        made = [frame(seq, node="n1"), frame(seq, node="n2")]
        for one, name in zip(made, names, strict=True):
            one.workloads[2].name = name
        return made

    async with writing(ledger) as writer:
        for seq, names in ((1, at_first), (2, ("train", "train")), (3, ("train", "train"))):
            await writer.send(checked(*named(seq, names)))
    versions = ledger.query(
        "SELECT name, seen_at_ms FROM workloads FINAL "
        f"WHERE workload = {workload_id('cluster', 'slurm', '77')}"
    ).to_pylist()
    newest = max(version["seen_at_ms"] for version in versions)
    assert [v["name"] for v in versions if v["seen_at_ms"] == newest] == ["train"]


async def test_names_are_only_data(ledger: Ledger) -> None:
    odd = frame(1, node="n'); DROP TABLE rows; --\\")
    odd.workloads.append(Workload(scope="ü", kind="vm", id="a'b\\"))
    async with writing(ledger) as writer:
        assert await writer.send(checked(odd)) == []
        assert await writer.send(checked(odd)) == []
    async with writing(ledger) as writer:
        assert await writer.send(checked(odd)) == []
    assert stored(ledger) == whole([odd])


@pytest.mark.parametrize("label", ["v" * 990, "訓練" * 60], ids=["ascii", "utf8"])
def test_what_is_known_of_workloads_is_bounded_by_bytes(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    """Labels may be long; who is forgotten is written again, and the latest name stays."""
    monkeypatch.setattr("joulegram.collector.writer.KNOWN_MAX_BYTES", 200_000)
    store = Store(ledger, lambda: START_MS)

    def of_many(seq: int) -> Frame:
        one = frame(seq)
        for job in range(40):
            labels = {f"label{number}": label for number in range(20)}
            one.workloads.add(scope="c", kind="slurm", id=f"{job}", attributes=labels)
        one.workloads[2].name = f"name{seq}"
        return one

    for seq in range(1, 5):
        assert store.keep(checked(of_many(seq))).refused == {}
        kept = [version for version, _ in store._known.values()]
        assert 5 < len(kept) < 12
        assert store._known_bytes == sum(version.size_bytes for version in kept) <= 200_000
    (found,) = ledger.query(
        "SELECT uniqExact(workload) AS n, argMaxIf(name, seen_at_ms, id = '77') AS name "
        "FROM workloads"
    ).to_pylist()
    assert found == {"n": 44, "name": "name4"}

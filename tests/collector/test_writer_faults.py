"""The writer against a model: whatever is offered, in whatever order, and whatever fails."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from joulegram.collector import columns
from joulegram.collector import writer as writer_module
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.stages import Busy
from joulegram.collector.writer import Writer
from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.ledgers import ledger
from tests.collector.made_frames import START_MS, checked, energy_uj, frame, identities

__all__ = ["ledger"]

DAY_MS = 86_400_000


@dataclass
class Shaky:
    """A ledger whose calls fail as `fails` says: "", "before" or "after" they did their work."""

    ledger: Ledger
    fails: Any  # (call) -> str; call: "query" or a table
    exclusive: bool = field(init=False)
    cluster: str = ""

    def __post_init__(self) -> None:
        self.exclusive = self.ledger.exclusive

    def insert(self, table: str, columns: Mapping[str, Any]) -> None:
        fault = self.fails(table)
        if fault == "before":
            raise OSError("no space left on device")
        self.ledger.insert(table, columns)
        if fault:
            raise TimeoutError("no answer")

    def query(self, sql: str) -> Any:
        if self.fails("query"):
            raise TimeoutError("no answer")
        return self.ledger.query(sql)


class Once:
    """These calls fail, in this order, whatever succeeds between them."""

    def __init__(self, *faults: tuple[str, str]) -> None:
        self.left = list(faults)

    def __call__(self, call: str) -> str:
        if self.left and self.left[0][0] == call:
            return self.left.pop(0)[1]
        return ""


@contextlib.asynccontextmanager
async def writing(store: Any, heard: list[Frame]) -> AsyncIterator[Writer]:
    writer = Writer(store, group_s=0.0, on_durable=[heard.extend])
    running = asyncio.create_task(writer.run())
    yield writer
    writer.close()
    await running


def stored(ledger: Ledger) -> tuple[list[tuple[str, int, int]], int]:
    """(identities of headers, uJ of rows), nothing deduplicated."""
    headers = ledger.query("SELECT node, epoch, seq FROM rows WHERE row = 0").to_pylist()
    (rows,) = ledger.query(
        "SELECT sum(cpu_uj + dram_uj + gpu_uj + other_uj) AS uj FROM rows"
    ).to_pylist()
    return sorted(tuple(header.values()) for header in headers), rows["uj"]


async def test_frames_that_landed_unseen_are_heard_of_when_they_are_offered_again(
    ledger: Ledger,
) -> None:
    """The insert landed, and neither it nor the look-up after it said so."""
    heard: list[Frame] = []
    faults = Once(("rows", "after"), ("query", "before"))
    frames = [frame(1), frame(2)]
    async with writing(Shaky(ledger, faults), heard) as writer:
        with pytest.raises(Busy):
            await writer.send(checked(*frames))
        assert not faults.left and heard == []
        assert await writer.send(checked(*frames)) == []
        assert identities(heard) == identities(frames)
        assert await writer.send(checked(*frames)) == []
    assert identities(heard) == identities(frames)
    assert stored(ledger) == (identities(frames), energy_uj(frames))


async def test_days_that_landed_before_one_failed_are_heard_of(ledger: Ledger) -> None:
    heard: list[Frame] = []
    frames = [frame(1), frame(2, start_ms=START_MS + DAY_MS), frame(3, start_ms=START_MS - DAY_MS)]
    # The first day is well; the second fails, and so does looking for it.
    faults = Once(("rows", ""), ("rows", "before"), ("query", "before"))
    async with writing(Shaky(ledger, faults), heard) as writer:
        with pytest.raises(Busy):
            await writer.send(checked(*frames))
        assert not faults.left
        assert identities(heard) == identities([frames[2]])
        assert await writer.send(checked(*frames)) == []
    assert identities(heard) == identities(frames)
    assert stored(ledger) == (identities(frames), energy_uj(frames))


def changed(one: Frame) -> Frame:
    """The same identity and window, another microjoule."""
    other = Frame()
    other.CopyFrom(one)
    other.devices[0].energy_uj += 1
    other.devices[0].raw_uj += 1
    cpu = np.frombuffer(other.rows.cpu_uj, "<u8").copy()
    cpu[-1] += 1
    other.rows.cpu_uj = cpu.tobytes()
    return other


def hash_of(one: Frame) -> int:
    return columns.hash_of(columns.content_of(one))


@pytest.mark.parametrize("recent", [2, 25, 100_000])
@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_is_offered_and_whatever_fails_each_frame_is_stored_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, recent: int, seed: int
) -> None:
    """Days and epochs, repeats, conflicts, faults before and after, restarts."""
    monkeypatch.setattr(writer_module, "RECENT_MAX_FRAMES", recent)
    monkeypatch.setattr(writer_module, "LOOKUP_MAX_FRAMES", 3)
    rng = random.Random(seed)
    originals = [
        frame(seq, node=node, epoch=epoch, rows=rng.randrange(1, 5), gpu=rng.random() < 0.2,
              start_ms=START_MS + rng.choice((-1, 0, 0)) * DAY_MS)
        for node in ("n1", "n2", "n3")
        for epoch in (7, 2**64 - 1)
        for seq in range(1, 14)
    ]  # fmt: skip
    pool = [*originals, *map(changed, rng.sample(originals, 12))]
    faulty = [0.0]

    def fails(call: str) -> str:
        return rng.choice(("before", "after")) if rng.random() < faulty[0] else ""

    said: list[tuple[Frame, bool]] = []  # and whether it was refused
    known: set[tuple[str, int, int]] = set()  # to whoever looked at the ledger before a start
    for _ in range(4):
        heard: list[Frame] = []
        async with writing(Shaky(ledger, fails), heard) as writer:
            for _ in range(12):
                faulty[0] = rng.choice((0.0, 0.0, 0.1, 0.4))
                groups = [rng.choices(pool, k=rng.randrange(1, 20)) for _ in range(2)]
                answers = await asyncio.gather(
                    *(writer.send(checked(*group)) for group in groups), return_exceptions=True
                )
                for group, answer in zip(groups, answers, strict=True):
                    assert isinstance(answer, Sequence | Busy)
                    if not isinstance(answer, Busy):
                        no = {one.frame.packed for one in answer}
                        said += [(f, f.SerializeToString() in no) for f in group]
            faulty[0] = 0.0
            left = [f for f in pool if not any(f is other for other, _ in said)]
            if left:
                no = {one.frame.packed for one in await writer.send(checked(*left))}
                said += [(f, f.SerializeToString() in no) for f in left]
        now = identities(heard)
        assert len(now) == len(set(now)) and known.isdisjoint(now)
        known = set(stored(ledger)[0])
        assert known >= set(now)

    headers = ledger.query("SELECT node, epoch, seq, hash FROM rows WHERE row = 0").to_pylist()
    winner = {(h["node"], h["epoch"], h["seq"]): h["hash"] for h in headers}
    assert sorted(winner) == identities(originals) and len(winner) == len(headers)
    kept = [f for f in pool if hash_of(f) == winner[f.node, f.epoch, f.seq]]
    assert stored(ledger) == (identities(kept), energy_uj(kept))
    for f, refused in said:
        assert refused == (hash_of(f) != winner[f.node, f.epoch, f.seq])

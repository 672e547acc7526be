"""The last stage of the pipeline: frames -> the ledger, committed in groups, each exactly once.

Order of a group: look up which frames are stored already; then workloads, devices and
reservations; then the rows with each frame's header as row 0 in the same insert. A frame counts
once its header is there, so a kill in between leaves nothing that counts twice.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

from joulegram.collector import columns, counters
from joulegram.collector.checked import Checked, Identity
from joulegram.collector.ledger.ledger import Ledger, literal
from joulegram.collector.seqs import Seqs
from joulegram.collector.stages import Busy, Refused
from joulegram.collector.workloads import Workload
from joulegram.v1.telemetry_pb2 import Frame

log = logging.getLogger(__name__)

DAY_S = 86_400

# Larger inserts may land as several parts, and a kill could leave one of them.
INSERT_MAX_ROWS = 500_000
INSERT_MAX_BYTES = 128 * 2**20
ROW_BYTES = 150  # of the fixed columns of `rows`

LOOKUP_MAX_FRAMES = 2_000
RECENT_MAX_FRAMES = 20_000
IN_DOUBT_MAX_FRAMES = 100_000
KNOWN_MAX_WORKLOADS = 100_000
KNOWN_MAX_BYTES = 64 * 2**20  # as Python keeps them
# Days of agents whose stored seqs are known, and runs of seqs of each.
WHOLE_MAX_DAYS = 100_000
WHOLE_MAX_RUNS = 1_000


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Frames of one `send`, and where its outcome goes."""

    frames: Sequence[Checked]
    done: asyncio.Future[list[Refused]]


@dataclass(slots=True)
class Writer:
    """A Stage whose `send` returns once the frames are in the ledger.

    `run` commits what was sent, until `close`. Frames that became durable (duplicates not
    among them) are shown to `on_durable` before anybody hears that they are.
    """

    ledger: Ledger
    group_s: float = 0.5
    group_max_rows: int = 200_000
    queue_max_rows: int = 400_000
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    on_durable: list[Callable[[Sequence[Frame]], None]] = field(default_factory=list)

    _queue: list[_Waiting] = field(default_factory=list)
    _queued_rows: int = 0
    _since_s: float = 0.0  # when the first of the queue came
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _full: asyncio.Event = field(default_factory=asyncio.Event)
    _closing: bool = False

    async def send(self, frames: Sequence[Checked]) -> Sequence[Refused]:
        """Return once the frames, but for the refused, are durable. Raises Busy."""
        rows = sum(frame.rows + 1 for frame in frames)
        if self._closing or (self._queue and self._queued_rows + rows > self.queue_max_rows):
            counters.FRAMES.labels("busy").inc(len(frames))
            raise Busy(f"{self._queued_rows} rows are waiting to be written")
        if not self._queue:
            self._since_s = time.monotonic()
        waiting = _Waiting(frames, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._queued_rows += rows
        counters.QUEUED.set(self._queued_rows)
        self._arrived.set()
        if self._queued_rows >= self.group_max_rows:
            self._full.set()
        return await waiting.done

    async def run(self) -> None:
        """Commit groups until `close`; then whatever is left."""
        # One thread, so that the look-ups keep their session.
        with ThreadPoolExecutor(1, "writer") as thread:
            store = Store(self.ledger, self.now_ms)
            while True:
                await self._arrived.wait()
                if self.group_s and not self._closing:
                    # From the first arrival: what came during a commit has waited already.
                    due_s = self._since_s + self.group_s
                    await _wait(self._full, max(0.0, due_s - time.monotonic()))
                group, self._queue, self._queued_rows = self._queue, [], 0
                self._full.clear()
                if not self._closing:
                    self._arrived.clear()
                counters.QUEUED.set(0)
                if group:
                    await self._commit(store, thread, group)
                    group = []  # its memory is for the next one
                elif self._closing:
                    return

    def close(self) -> None:
        """Take nothing more; `run` returns when all that was sent has its answer."""
        self._closing = True
        self._arrived.set()
        self._full.set()

    async def _commit(
        self, store: "Store", thread: ThreadPoolExecutor, group: Sequence[_Waiting]
    ) -> None:
        frames = [frame for waiting in group for frame in waiting.frames]
        loop = asyncio.get_running_loop()
        with counters.COMMIT_SECONDS.time():
            try:
                outcomes = await loop.run_in_executor(thread, store.keep, frames)
            except Exception as exc:
                # Looking up failed: nobody knows, so everybody offers it again.
                store.forget()
                log.warning("commit of %d frames failed: %s", len(frames), exc)
                outcomes = Outcomes([], {}, set(frames))
        stored = [checked.frame for checked in outcomes.stored]
        for hook in self.on_durable:
            try:
                hook(stored)
            except Exception:
                log.exception("a listener failed on durable frames; they stay durable")
        for waiting in group:
            if waiting.done.done():  # its stream is gone
                continue
            if not outcomes.busy.isdisjoint(waiting.frames):
                waiting.done.set_exception(Busy("the ledger did not take an insert"))
                continue
            refused = map(outcomes.refused.get, waiting.frames)
            waiting.done.set_result([r for r in refused if r is not None])


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of a group."""

    stored: list[Checked]  # now, by us
    refused: dict[Checked, Refused]
    busy: set[Checked]


@dataclass(slots=True)
class Store:
    """Puts groups of frames into the ledger. Used by one thread."""

    ledger: Ledger
    now_ms: Callable[[], int]
    _recent: "OrderedDict[Identity, int]" = field(default_factory=OrderedDict)  # content hashes
    # (node, epoch, day) -> the seqs stored of it, all of them: where nobody else writes, what is
    # not among these is not stored, and need not be looked up.
    _whole: "OrderedDict[tuple[str, int, int], Seqs]" = field(default_factory=OrderedDict)
    # A version that is not known here is written again, which changes no answer.
    _known: "OrderedDict[int, tuple[Workload, int]]" = field(default_factory=OrderedDict)
    _known_bytes: int = 0
    # Frames that we tried to insert, and that may be found to have landed only when their agent
    # offers them again: they are stored then, by us, and no duplicates.
    _in_doubt: "OrderedDict[Identity, None]" = field(default_factory=OrderedDict)

    def keep(self, frames: Sequence[Checked]) -> Outcomes:
        """Make each frame durable once, refuse conflicts, and say which to offer again."""
        outcomes = Outcomes([], {}, set())
        hashes = {checked: columns.hash_of(columns.content_of(checked.frame)) for checked in frames}
        stored = self._look_up(frames)
        fresh: dict[Identity, Checked] = {}
        repeated: list[tuple[Checked, Checked]] = []
        for checked in frames:
            key = checked.identity
            there = stored.get(key)
            if there is None and key in fresh:
                there = hashes[fresh[key]]
                repeated.append((checked, fresh[key]))
            if there is None:
                fresh[key] = checked
            elif there != hashes[checked]:
                outcomes.refused[checked] = _conflict(checked)
            elif key in self._in_doubt and key not in fresh:
                # It is there since an insert of ours that nobody has heard of yet.
                del self._in_doubt[key]
                outcomes.stored.append(checked)
                counters.FRAMES.labels("stored").inc()
                counters.ROWS.inc(checked.rows)
            else:
                counters.FRAMES.labels("duplicate").inc()
        lost = False
        for part in inserts(sorted(fresh.values(), key=_place)):
            missing: Sequence[Checked] = part
            if not lost:
                try:
                    missing = self._insert(part, hashes)
                except Exception as exc:
                    # Nobody knows whether it landed; what landed before it counts.
                    lost = True
                    self.forget()
                    log.warning("looking for %d frames failed: %s", len(part), exc)
            outcomes.busy.update(missing)
            kept = [checked for checked in part if checked not in outcomes.busy]
            outcomes.stored.extend(kept)
            for checked in kept:
                self._remember(checked, hashes[checked])
            counters.FRAMES.labels("stored").inc(len(kept))
            counters.FRAMES.labels("busy").inc(len(missing))
            counters.ROWS.inc(sum(checked.rows for checked in kept))
        for checked, first in repeated:
            if first in outcomes.busy:
                outcomes.refused.pop(checked, None)
                outcomes.busy.add(checked)
        return outcomes

    def forget(self) -> None:
        """Trust nothing but the ledger from here on."""
        self._recent.clear()
        self._whole.clear()

    def _insert(
        self, frames: Sequence[Checked], hashes: Mapping[Checked, int]
    ) -> Sequence[Checked]:
        """Insert frames of one day. Returns: those that are not in the ledger."""
        missing = frames
        for _ in range(2):
            try:
                self._insert_once(missing, hashes)
                return ()
            except Exception as exc:
                self._whole.clear()
                self._doubt(missing)
                counters.FAILED.inc()
                log.warning("insert of %d frames failed: %s", len(missing), exc)
            # The insert may have landed all the same.
            stored = self._look_up(missing)
            missing = [checked for checked in missing if checked.identity not in stored]
            if not missing:
                return ()
        return missing

    def _insert_once(self, frames: Sequence[Checked], hashes: Mapping[Checked, int]) -> None:
        self._insert_workloads(frames)
        devices = columns.of_devices(frames)
        if devices is not None:
            self.ledger.insert("devices", devices)
        reservations = columns.of_reservations(frames)
        if reservations is not None:
            self.ledger.insert("reservations", reservations)
        of_frames = [hashes[checked] for checked in frames]
        self.ledger.insert("rows", columns.of_rows(frames, of_frames, self.now_ms()))

    def _insert_workloads(self, frames: Sequence[Checked]) -> None:
        """Insert versions of workloads that differ from the last one known.

        Frames may come in any order, so a version is stamped with its window; when versions meet,
        all are written as last seen, and the latest window wins for every reader.
        """
        latest: dict[Workload, int] = {}
        for checked in sorted(frames, key=_window_of):
            latest.update(dict.fromkeys(checked.workloads, _window_of(checked)))
        # workload -> details -> when last seen
        changed: dict[int, dict[int, tuple[Workload, int]]] = {}
        for workload, seen_ms in latest.items():
            key = workload.workload
            last = self._known.get(key)
            if last is None or last[0].details != workload.details:
                versions = changed.setdefault(key, {})
                there = versions.get(workload.details)
                if there is None or there[1] < seen_ms:
                    versions[workload.details] = workload, seen_ms
            elif last[1] < seen_ms:
                self._known[key] = workload, seen_ms
                self._known.move_to_end(key)
        for key, versions in changed.items():
            if (last := self._known.get(key)) is not None:
                versions[last[0].details] = last
        if changed:
            new = (version for versions in changed.values() for version in versions.values())
            inserted, seen_at_ms = zip(*new, strict=True)
            self.ledger.insert("workloads", columns.of_workloads(inserted, seen_at_ms))
        for key, versions in changed.items():
            newest = max(versions.values(), key=_seen_at)
            if sum(version[1] == newest[1] for version in versions.values()) > 1:
                # Nodes differ within one window: whatever is seen after it is written again.
                self._know(key, None)
            else:
                self._know(key, newest)
        while len(self._known) > KNOWN_MAX_WORKLOADS or self._known_bytes > KNOWN_MAX_BYTES:
            self._know(next(iter(self._known)), None)

    def _know(self, key: int, version: tuple[Workload, int] | None) -> None:
        if (last := self._known.pop(key, None)) is not None:
            self._known_bytes -= last[0].size_bytes
        if version is not None:
            self._known[key] = version
            self._known_bytes += version[0].size_bytes

    def _look_up(self, frames: Sequence[Checked]) -> dict[Identity, int]:
        """Content hashes of those of these frames that are stored, by identity."""
        stored = {}
        unknown = []
        for checked in frames:
            key = node, epoch, seq = checked.identity
            there = self._recent.get(key)
            if there is not None:
                stored[key] = there
                continue
            seqs = self._whole.get((node, epoch, day_of(checked)))
            if seqs is None or seq in seqs:
                unknown.append(checked)
        for start_s, day in by_day(self._of_known_agents(unknown)):
            for first in range(0, len(day), LOOKUP_MAX_FRAMES):
                some = day[first : first + LOOKUP_MAX_FRAMES]
                found = self.ledger.query(_headers(start_s, some)).to_pydict()
                keys = zip(found["node"], found["epoch"], found["seq"], strict=True)
                stored.update(zip(keys, found["hash"], strict=True))
        return stored

    def _of_known_agents(self, frames: Sequence[Checked]) -> list[Checked]:
        """Those of agents of whose day something is stored; of the others all will be known."""
        if not self.ledger.exclusive:
            return list(frames)
        known = []
        for start_s, day in by_day(frames):
            agents = list({checked.identity[:2] for checked in day})
            there: set[tuple[str, int]] = set()
            # Far more at once would take longer than a query may.
            for first in range(0, len(agents), LOOKUP_MAX_FRAMES):
                some = agents[first : first + LOOKUP_MAX_FRAMES]
                found = self.ledger.query(_agents(start_s, some)).to_pydict()
                there.update(zip(found["node"], found["epoch"], strict=True))
            known += [checked for checked in day if checked.identity[:2] in there]
            for node, epoch in set(agents) - there:
                self._whole[node, epoch, start_s // DAY_S] = Seqs()
        while len(self._whole) > WHOLE_MAX_DAYS:
            self._whole.popitem(last=False)
        return known

    def _doubt(self, frames: Iterable[Checked]) -> None:
        for checked in frames:
            self._in_doubt[checked.identity] = None
        while len(self._in_doubt) > IN_DOUBT_MAX_FRAMES:
            self._in_doubt.popitem(last=False)

    def _remember(self, checked: Checked, content_hash: int) -> None:
        self._in_doubt.pop(checked.identity, None)
        self._recent[checked.identity] = content_hash
        if len(self._recent) > RECENT_MAX_FRAMES:
            self._recent.popitem(last=False)
        node, epoch, seq = checked.identity
        whole = node, epoch, day_of(checked)
        seqs = self._whole.get(whole)
        if seqs is not None:
            seqs.add(seq)
            if seqs.runs > WHOLE_MAX_RUNS:
                del self._whole[whole]


def _window_of(checked: Checked) -> int:
    return checked.window_start_ms


def _seen_at(version: tuple[Workload, int]) -> int:
    return version[1]


def _place(checked: Checked) -> tuple[str, int, int, int]:
    """Its place in the order of the table's key: rows so ordered need no sorting."""
    node, epoch, seq = checked.identity
    return node, checked.window_start_ms, epoch, seq


def day_of(checked: Checked) -> int:
    """The UTC day of a frame's window, days since 1970."""
    return checked.window_start_ms // 1000 // DAY_S


def by_day(frames: Iterable[Checked]) -> Iterator[tuple[int, list[Checked]]]:
    """(start of the UTC day in s, its frames)."""

    for number, of_day in groupby(sorted(frames, key=day_of), key=day_of):
        yield number * DAY_S, list(of_day)


def inserts(frames: Iterable[Checked]) -> Iterator[list[Checked]]:
    """Whole frames of one day each, as many as surely land as one part."""
    for _, day in by_day(frames):
        part: list[Checked] = []
        rows = size = 0
        for frame in day:
            more = frame.rows + 1
            more_bytes = more * ROW_BYTES + len(frame.packed)
            if part and (rows + more > INSERT_MAX_ROWS or size + more_bytes > INSERT_MAX_BYTES):
                yield part
                part, rows, size = [], 0, 0
            part.append(frame)
            rows += more
            size += more_bytes
        yield part


def _headers(day_start_s: int, frames: Sequence[Checked]) -> str:
    keys = {checked.identity for checked in frames}
    nodes = ", ".join(sorted({literal(node) for node, _, _ in keys}))
    seqs = ", ".join(map(str, sorted({seq for _, _, seq in keys})))
    epochs = ", ".join(map(str, sorted({epoch for _, epoch, _ in keys})))
    # Sets of plain values are cheap to parse and let the index skip the rest of the day. Whole
    # identities are dear; only frames scattered over many nodes need them, to get few answers.
    whole = ""
    agents, numbers = {key[:2] for key in keys}, {key[2] for key in keys}
    if len(agents) * len(numbers) > 16 * len(keys):
        wanted = ", ".join(
            f"({literal(node)}, {epoch}, {seq})" for node, epoch, seq in sorted(keys)
        )
        whole = f"AND (node, epoch, seq) IN ({wanted}) "
    return (
        "SELECT node, epoch, seq, max(hash) AS hash FROM rows "
        f"WHERE window >= toDateTime({day_start_s}, 'UTC') "
        f"AND window < toDateTime({day_start_s + DAY_S}, 'UTC') AND row = 0 "
        f"AND node IN ({nodes}) AND seq IN ({seqs}) AND epoch IN ({epochs}) {whole}"
        "GROUP BY node, epoch, seq"
    )


def _agents(day_start_s: int, agents: Iterable[tuple[str, int]]) -> str:
    nodes = ", ".join(sorted({literal(node) for node, _ in agents}))
    epochs = ", ".join(map(str, sorted({epoch for _, epoch in agents})))
    return (
        "SELECT DISTINCT node, epoch FROM rows "
        f"WHERE window >= toDateTime({day_start_s}, 'UTC') "
        f"AND window < toDateTime({day_start_s + DAY_S}, 'UTC') AND row = 0 "
        f"AND node IN ({nodes}) AND epoch IN ({epochs})"
    )


def _conflict(checked: Checked) -> Refused:
    node, epoch, seq = checked.identity
    return Refused(
        checked,
        "conflict",
        f"frame {seq} of epoch {epoch:#x} of {node} is stored with other "
        "content; a frame never changes once sent. Look for two agents with one name, or for a "
        "copied state directory",
    )


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass

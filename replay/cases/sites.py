"""What arrives: outages, ended jobs, idle policies, hostile names, the grid's feed."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from joulegram.collector.grid import neso, yearly
from replay.agent import played as as_played
from replay.agent import watch
from replay.case import Case, Part, Stage
from replay.cases.names import SLURM
from replay.feeder import Feeder
from replay.site import Site, collector, drawn_uj, metrics, of_key, reporting, samples
from replay.tree import Machine
from tests.neso_server import HALF_HOUR_S, NesoServer, neso_server
from tests.servers import wait_until

OFFLINE = "--neso-url="


def ended_job(stage: Stage) -> Sequence[Part]:
    """Scaled: 4 s stand for 4 minutes."""
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    job = f"{SLURM}/job_123"
    of_job = machine.task(10, f"{job}/step_0", cores=1.0)
    machine.task(11, "/system.slice/b.service", cores=1.0)

    def rest() -> None:
        of_job.cores = 0.0

    def end() -> None:
        machine.end(10)
        machine.remove_group(f"{job}/step_0")
        machine.remove_group(job)

    with (
        Feeder(machine, stage) as feeder,
        collector(stage, OFFLINE) as site,
        reporting(stage, machine, site) as agent,
    ):
        agent.await_frames(5)
        feeder.at(time.monotonic(), rest)
        feeder.at(time.monotonic() + 0.6, end)  # what it used after its last tick, nobody could see
        ended_at_s = time.time()
        time.sleep(4.6)
        now = site.get("/api/v1/now?top=100")
        families = site.metrics()
        frames = agent.finish(site)
        report = site.report()
    played = as_played(stage, feeder, frames)
    windows, last_s = divmod(ended_at_s - frames[0]["window_start_ms"] / 1000, 1)
    ran_j = 50 * windows + 100 * last_s / (1 + last_s)  # beside one that ran for all of the last
    shown = [w["power_w"] for w in now["workloads"] if w["id"] == "123"]
    in_ledger_j = of_key(report, "123")["energy_uj"] / 1e6
    in_frames_j = played.joules("slurm", "123")
    shown_w = samples(families, "joulegram_workload_power_watts", id="123")
    return [
        Part("now", 0, sum(shown), "W"),
        Part("/metrics", 0, sum(shown_w), "W"),
        Part("its joules", ran_j, in_ledger_j, within=played.within(100)),
        Part("as in its frames", in_frames_j, in_ledger_j, within=1e-6),
    ]


def outage(stage: Stage) -> Sequence[Part]:
    """Scaled: 10 s stand for 10 minutes. The collector is killed, its address answers nobody."""
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    machine.task(10, "/system.slice/a.service", cores=1.0)
    with (
        Feeder(machine, stage) as feeder,
        collector(stage, OFFLINE) as site,
        reporting(stage, machine, site) as agent,
    ):
        agent.await_frames(3)
        site.await_ledger(1)
        site.kill()
        time.sleep(10)
        site.start()
        frames = agent.finish(site)
        energy_uj = drawn_uj(frames)
        report = site.report()
        twice = samples(site.metrics(), "joulegram_intake_frames_total", outcome="refused")
    played = as_played(stage, feeder, frames)
    covered_s = sum(played.of_device("cpu0", "coverage"))
    starts = [frame["window_start_ms"] for frame in frames]
    return [
        Part("in the ledger", energy_uj, report["metered_uj"], "uJ"),
        Part("drawn", 100 * covered_s, report["metered_uj"] / 1e6, within=played.within(100)),
        Part("windows", (starts[-1] - starts[0]) // 1000 + 1, len(set(starts)), ""),
        Part("refused", 0, sum(twice), ""),
    ]


def idle_policies(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine", cpus=64)
    machine.zone("intel-rapl:0", "package-0", 200.0)
    machine.task(10, f"{SLURM}/job_1/step_0", cores=16.0)
    machine.task(11, f"{SLURM}/job_2/step_0", cores=4.0)
    machine.task(12, "/system.slice", cores=4.0)
    floor = "--idle-w=cpu0=125"
    with (
        Feeder(machine, stage) as feeder,
        collector(stage, OFFLINE) as site,
        reporting(stage, machine, site, floor) as agent,
    ):
        played = watch(stage, feeder, flags=[floor])
        agent.finish(site)
        report = site.report("--idle-policy=by_active")
    seconds = played.seconds
    parts = [
        Part(f"{name}, separate", right_w, played.joules(kind, id_) / seconds, "W",
             within=played.within(times * right_w) / seconds)
        for name, kind, id_, right_w, times in (
            ("A", "slurm", "1", 50.0, 4), ("B", "slurm", "2", 12.5, 4),
            ("system", "system", "", 12.5, 4), ("idle", "idle", "", 125.0, 1),
        )
    ]  # fmt: skip
    # In watts: energy in the report by the time in which a package of 200 W draws all of it.
    ran_s = report["metered_uj"] / 200e6
    parts += [
        Part(f"{name}, by_active", right_w, of_key(report, id_)["energy_uj"] / 1e6 / ran_s, "W",
             within=0.01 * right_w + played.within(200) / ran_s)
        for name, id_, right_w in (
            ("A", "1", 400 / 3), ("B", "2", 100 / 3), ("system", "system", 100 / 3)
        )
    ]  # fmt: skip
    return [
        *parts,
        Part("policy", "by_active", report["idle_policy"]),
        Part("total", report["metered_uj"], report["total"]["energy_uj"], "uJ"),
    ]


COMMANDS = {20: b"\xff\xfe) R 1 (", 21: b'q"b\n{c}\\', 22: b"x) R 1 (\n", 23: b"#\t\x1b[31m"}
GROUPS = {
    20: "/system.slice/caf\udce9.service",
    21: '/system.slice/a"b{c="d"}.service',
    22: "/system.slice/new\nline.service",
    23: "/system.slice/) R 1 (.service",
}
IDS = ("caf\\xe9.service", 'a"b{c="d"}.service', "new\\x0aline.service", ") R 1 (.service")


def hostile_names(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    for pid, comm in COMMANDS.items():
        machine.task(pid, GROUPS[pid], cores=1.0, comm=comm)
    with (
        Feeder(machine, stage) as feeder,
        collector(stage, OFFLINE) as site,
        reporting(stage, machine, site) as agent,
    ):
        agent.await_frames(6)
        now = site.get("/api/v1/now?top=100")
        families = site.metrics()
        own = metrics(agent.http)
        page = httpx.get(f"{site.url}/", timeout=20)
        frames = agent.finish(site)
        report = site.report()
    played = as_played(stage, feeder, frames[1:-1])
    in_report = {str(row["key"]) for row in report["rows"]}
    shown = {
        "the page's API": {w["id"] for w in now["workloads"]},
        "/metrics": {
            s.labels["id"]
            for family in families
            for s in family.samples
            if s.name == "joulegram_workload_power_watts"
        },
        "frames": {w["id"] for frame in frames for w in frame["workloads"]},
        "report": {id_ for id_ in IDS if any(key.endswith(id_) for key in in_report)},
    }
    commands = {row["command"] for row in played.rows("systemd") if row["pid"]}
    return [
        *(Part(f"names in {w}", 4, sum(id_ in ids for id_ in IDS), "") for w, ids in shown.items()),
        Part("commands", 4, len(commands), ""),
        Part("a command", "\\xff\\xfe) R 1 (", min(commands & {"\\xff\\xfe) R 1 ("}, default="")),
        Part("one name's", 25 * played.seconds, played.joules("systemd", IDS[0]),
             within=played.within(100)),
        Part("in the ledger", drawn_uj(frames), report["metered_uj"], "uJ"),
        Part("page", 200, page.status_code, ""),
        Part("agent's /metrics", "parses", "parses" if own else "empty"),
    ]  # fmt: skip


@contextlib.contextmanager
def totals(site: Site, agent_http: str) -> Iterator[list[tuple[float, float]]]:
    """What two readers of /metrics see, several times a second: the agent's and the site's."""
    seen: list[tuple[float, float]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.3):
            with contextlib.suppress(httpx.HTTPError):
                of_agent = samples(
                    metrics(agent_http), "joulegram_agent_device_energy_joules_total"
                )
                of_site = samples(site.metrics(), "joulegram_energy_joules_total")
                seen.append((sum(of_agent), sum(of_site)))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def standstill(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    zone = machine.zone("intel-rapl:0", "package-0", 100.0)
    machine.task(10, "/system.slice/a.service", cores=1.0)

    def draw(watts: float) -> None:
        zone.watts = watts

    with (
        Feeder(machine, stage) as feeder,
        collector(stage, OFFLINE) as site,
        reporting(stage, machine, site) as agent,
        totals(site, agent.http) as seen,
    ):
        agent.await_frames(3)
        half = 1.5 - time.time() % 1  # in the middle of a window
        feeder.at(time.monotonic() + half, lambda: draw(0.0))
        feeder.at(time.monotonic() + half + 5, lambda: draw(100.0))
        time.sleep(half + 8)
        frames = agent.finish(site)
        report = site.report()
    played = as_played(stage, feeder, frames)
    drawn = played.of_device("cpu0")
    covered_s = sum(played.of_device("cpu0", "coverage"))
    falls = sum(b < a for pair in zip(*map(list, (seen, seen[1:])), strict=False)
                for a, b in zip(*pair, strict=True))  # fmt: skip
    return [
        Part("windows of 0 J", 4, sum(joules == 0 for joules in drawn), ""),
        Part("energy", 100 * (covered_s - 5), sum(drawn), within=played.within(100)),
        Part("totals that fell", 0, falls, ""),
        Part("totals were read", "often", "often" if len(seen) >= 5 else f"{len(seen)} times"),
        Part("in the ledger", drawn_uj(frames), report["metered_uj"], "uJ"),
    ]


LAST_GOOD, REAL = 210, 90  # g/kWh


def grid_fails(stage: Stage) -> Sequence[Part]:
    """The same hour as it is known by and by; the feed is asked every 0.3 s, not 10 minutes.

    First nothing newer than 2 hours is known; then the API's last value is of half an hour ago
    and its answers change their shape, and end; at last real values arrive.
    """
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    machine.task(10, "/system.slice/a.service", cores=1.0)
    now_s = int(time.time())
    with neso_server() as grid:

        def known_until(cut_s: float) -> None:
            grid.actual = lambda start_s: LAST_GOOD if start_s + HALF_HOUR_S <= cut_s else None

        grid.forecast = lambda _start_s: None
        known_until(now_s - 7200)
        with (
            Feeder(machine, stage),
            collector(stage, "--zone=GB", f"--neso-url={grid.url}", "--neso-poll-s=0.3") as site,
            reporting(stage, machine, site) as agent,
        ):
            agent.await_frames(4)
            energy_uj = drawn_uj(agent.finish(site))
            after_2_h = settled(site, grid, yearly.PROVIDER)
            known_until(now_s - HALF_HOUR_S)
            settled(site, grid, neso.PROVIDER)
            troubles = broken(site, grid)
            held = settled(site, grid, neso.PROVIDER)
            first = now_s // HALF_HOUR_S * HALF_HOUR_S
            grid.changes = {first + n * HALF_HOUR_S: {"actual": REAL} for n in range(2)}
            real = settled(site, grid, neso.PROVIDER, "estimated")
    kwh = energy_uj / 3.6e12
    year = next(
        row.g_per_kwh
        for row in yearly.rows("GB", now_s * 1000)
        if row.valid_from_s <= now_s < row.valid_to_s
    )
    parts = []
    for when, report, quality, g_per_kwh in (
        ("2 h after the last value", after_2_h, "fallback", year),
        ("half an hour after it", held, "fallback", LAST_GOOD),
        ("real values came", real, "estimated", REAL),
    ):
        flags = ", ".join(report["intensity"])
        grams = report["total"]["g_co2e"] * 1000
        right = kwh * g_per_kwh * 1000
        parts += [
            Part(when, quality, flags),
            Part("emissions", right, grams, "mg", within=right * 1e-4),
        ]
    return [*parts, Part("failures seen", "http_5xx shape", troubles)]


def settled(site: Site, grid: NesoServer, provider: str, quality: str = "") -> dict[str, Any]:
    """The report, once the feed was asked again and (in good time) this provider answers."""
    asked = len(grid.paths)
    wait_until(lambda: len(grid.paths) >= asked + 4, "two polls", 30)

    def holds() -> bool:
        report = site.report()
        return list(report["provider_share"]) == [provider] and quality in (
            "",
            *report["intensity"],
        )

    with contextlib.suppress(TimeoutError):
        wait_until(holds, provider, 15)
    return site.report()


def broken(site: Site, grid: NesoServer) -> str:
    """Let the API change its schema, then answer nothing but errors. What the feed counted."""
    for reason, change in (("shape", {"shape": "renamed"}), ("http_5xx", {"status": 500})):
        for name, value in change.items():
            setattr(grid, name, value)

        def counted(reason: str = reason) -> bool:
            return sum(_polls(site, reason)) > 0

        wait_until(counted, f"a failure for {reason}", 30)
    troubles = [r for r in ("http_5xx", "shape") if sum(_polls(site, r))]
    grid.shape, grid.status = "", 200
    return " ".join(troubles)


def _polls(site: Site, result: str) -> list[float]:
    return samples(
        site.metrics(), "joulegram_feed_polls_total", provider=neso.PROVIDER, result=result
    )


CASES = (
    Case(13, "the carbon API changes its schema, then is down", grid_fails, 40),
    Case(14, "a job ended 4 minutes ago (1 s stands for a minute)", ended_job, 25),
    Case(15, "the collector is unreachable for 10 minutes (1 s for a minute)", outage, 35),
    Case(17, "idle apart and by_active: 64 CPUs, 200 W, floor 125 W", idle_policies, 30),
    Case(19, "names that are not UTF-8, or hold quotes, newlines, braces", hostile_names, 25),
    Case(24, "a counter stands still for 5 s; no total falls", standstill, 35),
)

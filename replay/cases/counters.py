"""Energy counters: wraps, resets, gaps, twins; floors; the platform; power without a counter."""

from collections.abc import Sequence

from replay.agent import play
from replay.case import Case, Part, Stage
from replay.tree import Machine


def wrap(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    zone = machine.zone("intel-rapl:0", "package-0", value_uj=262_143_000_000)

    def come_round() -> None:
        zone.value_uj = 1_000_000

    played = play(stage, machine, 3, {1.3: come_round})
    energy_uj = sum(d["energy_uj"] for f in played.frames for d in f["devices"])
    return [
        Part("energy", 1_328_850, energy_uj, "uJ"),
        Part("coverage", 1.0, min(played.of_device("cpu0", "coverage")), ""),
    ]


def twins(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    machine.zone("intel-rapl:1", "package-1", 60.0)
    machine.zone("intel-rapl-mmio:0", "package-1", 60.0)
    machine.zone("intel-rapl-mmio:1", "package-0", 100.0)
    played = play(stage, machine)
    return [
        Part("devices", "cpu0 cpu1", played.devices),
        Part("energy", 160 * played.seconds, played.total_j, within=played.within(160)),
    ]


def dies(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0-die-0", 40.0)
    machine.zone("intel-rapl:1", "package-0-die-1", 60.0)
    machine.zone("intel-rapl:0:0", "core", 30.0)
    played = play(stage, machine)
    return [
        Part("devices", "cpu0-die0 cpu0-die1", played.devices),
        Part("energy", 100 * played.seconds, played.total_j, within=played.within(100)),
    ]


def platform(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 40.0)
    machine.zone("intel-rapl:0:0", "dram", 5.0)
    machine.zone("intel-rapl:1", "psys", 60.0)
    machine.task(10, "/system.slice/a.service", cores=1.0)
    played = play(stage, machine)
    seconds = played.seconds
    return [
        Part("all", 60 * seconds, played.total_j, within=played.within(60)),
        Part("other", 15 * seconds, played.device_j("platform"), within=played.within(105)),
        Part(
            "platform's reading",
            60 * seconds,
            played.device_j("platform", "raw_uj"),
            within=played.within(60),
        ),
        Part("a.service", 60 * seconds, played.joules("systemd"), within=played.within(60)),
    ]


def reload(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    zone = machine.zone("intel-rapl:0", "package-0", 100.0, value_uj=200_000_000_000)

    def begin_again() -> None:
        zone.value_uj = 5_000_000

    played = play(stage, machine, 5, {2.3: begin_again}, tick_s=0.1)
    covered = played.of_device("cpu0", "coverage")
    known_s = sum(covered)
    return [
        Part("windows with a gap", 1, sum(c < 0.99 for c in covered), ""),
        Part("time of the gap", 0.1, 5 - known_s, "s", within=played.worst_s),
        Part(
            "energy of the rest",
            100 * known_s,
            played.device_j("cpu0"),
            within=played.within(100, 2),
        ),
    ]


def samples(stage: Stage) -> Sequence[Part]:
    """Scaled: a second of the play stands for ten."""
    machine = Machine(stage.folder / "machine")
    meter = machine.power_meter(100.0)

    def rise() -> None:
        meter.watts = 300.0

    def fall() -> None:
        meter.watts = 100.0

    events = {0.5: rise, 2.5: fall, 4.5: rise}
    played = play(stage, machine, 3, events, tick_s=1.0, window_s=2.0)
    drawn = played.of_device("platform", "raw_uj")
    # Each reading that comes late reaches so much further into what follows it.
    room = 2 + played.within_window(200)
    return [
        Part("100, 300, 300 W at 0, 1, 2 s", 500, drawn[0], within=room),
        Part("300, 100, 100 W", 300, drawn[1], within=room),
        Part("100, 300, 300 W", 500, drawn[2], within=room),
    ]


def gap(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    zone = machine.zone("intel-rapl:0", "package-0", 80.0)
    machine.task(10, "/system.slice/a.service", cores=1.0)
    counter, hidden = zone.folder / "energy_uj", zone.folder / "hidden"

    def hide() -> None:
        zone.hidden = True
        counter.rename(hidden)

    def show() -> None:
        machine.write()
        hidden.write_bytes(zone.text)
        hidden.rename(counter)
        zone.hidden = False

    played = play(stage, machine, 8, {1.5: hide, 6.5: show})
    drawn = played.of_device("cpu0")
    qualities = played.of_device("cpu0", "quality")
    room = played.within_window(80)
    return [
        Part("energy", 80 * 8, sum(drawn), within=played.within(80)),
        Part("least window", 80, min(drawn), within=room),
        Part("greatest window", 80, max(drawn), within=room),
        Part("quality in the gap", "derived", " ".join(sorted(set(qualities[2:6]))), ""),
        Part("before and after", "measured", " ".join({qualities[0], qualities[-1]}), ""),
        Part("coverage", 1.0, min(played.of_device("cpu0", "coverage")), ""),
    ]


def four_counters(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    for entry, name, watts in (
        ("intel-rapl:0", "package-0", 100.0),
        ("intel-rapl:1", "package-1", 60.0),
        ("intel-rapl:0:0", "dram", 10.0),
        ("intel-rapl:1:0", "dram", 6.0),
    ):
        machine.zone(entry, name, watts)
    machine.task(10, "/system.slice/a.service", cores=3.0)
    machine.task(11, "/system.slice/b.service", cores=1.0)
    played = play(stage, machine)
    sum_j = 176 * played.seconds
    return [
        Part("devices", "cpu0 cpu1 dram0 dram1", played.devices),
        Part("energy", sum_j, played.total_j, within=played.within(176)),
        Part(
            "a.service",
            0.75 * sum_j,
            played.joules("systemd", "a.service"),
            within=played.within(176),
        ),
        Part(
            "b.service",
            0.25 * sum_j,
            played.joules("systemd", "b.service"),
            within=played.within(176),
        ),
    ]


def high_floor(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 50.0)
    machine.task(10, "/system.slice/a.service", cores=1.0)
    played = play(stage, machine, flags=["--idle-w=cpu0=70"])
    return [
        Part("idle", 50 * played.seconds, played.joules("idle"), within=played.within(50)),
        # A reading that comes late moves more than the floor into the next window.
        Part("a.service", 0, played.joules("systemd"), within=played.within(20)),
    ]


def low_platform(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 40.0)
    machine.zone("intel-rapl:1", "psys", 30.0)
    played = play(stage, machine)
    clamped = played.of_device("platform", "clamped")
    return [
        Part("other", 0, played.device_j("platform")),
        Part("windows flagged", len(clamped), sum(clamped), ""),
        Part(
            "platform's reading",
            30 * played.seconds,
            played.device_j("platform", "raw_uj"),
            within=played.within(30),
        ),
    ]


CASES = (
    Case(1, "energy_uj wraps between ticks", wrap),
    Case(2, "the mmio twin of a package is counted once, whatever its index", twins),
    Case(3, "two dies of a package are both counted", dies),
    Case(4, "psys and package: other is the rest", platform),
    Case(16, "a counter goes backwards by a driver reload", reload),
    Case(18, "power samples without a counter (1 s stands for 10 s)", samples, 15),
    Case(20, "a counter cannot be read for 5 s, then comes back", gap, 15),
    Case(23, "two packages, four counters", four_counters),
    Case(30, "floor above the measured power", high_floor),
    Case(31, "a platform reading below the sum of its parts", low_platform),
)

"""/metrics parses whatever things are called, stays bounded, and its counters never fall."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from joulegram.collector import counters, metrics
from joulegram.collector.grid.feeds import FeedMetrics
from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.migrate import migrate
from joulegram.collector.live import Live
from joulegram.collector.metrics import CollectorMetrics
from joulegram.collector.standing import Standing
from joulegram.collector.totals import EnergyTotals, TeamGrams
from joulegram.collector.writer import Store
from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.made import IDLE, Node, Row, workload
from tests.collector.made_frames import checked
from tests.servers import check_metrics

T0 = 1_770_000_000_000
OPENMETRICS = "application/openmetrics-text; version=1.0.0"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[ChdbLedger]:
    ledger = ChdbLedger(tmp_path / "ledger")
    migrate(ledger)
    yield ledger
    ledger.close()


class NoLedger:
    """Stands where a test needs no query to be answered."""


class Nothing:
    def refresh(self, since: object, until: object) -> int:
        return 0


def registry_of(frames: list[Frame], teams: TeamGrams | None = None) -> CollectorRegistry:
    """A collector's registry after these frames have become durable."""
    none: ChdbLedger = NoLedger()  # type: ignore[assignment]
    live = Live(now_ms=lambda: T0 + 10_200)
    energy = EnergyTotals()
    live.on_durable(frames)
    energy.on_durable(frames)
    standing = Standing(none, Nothing(), teams or TeamGrams(none))
    standing.grid = {
        "zone": "GB",
        "pue": 1.2,
        "basis": "average-direct-consumption",
        "g_per_kwh": 123.5,
        "quality": "estimated",
        "provider": "neso",
    }
    registry = CollectorRegistry()
    registry.register(CollectorMetrics(live, energy, standing))
    return registry


def samples(registry: CollectorRegistry) -> Samples:
    """Every sample, read back from the Prometheus text; a series twice fails."""
    body, _ = metrics.exposition(registry, "text/plain")
    found: Samples = {}
    for family in parse_text(body.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def named(found: Samples, name: str) -> dict[tuple[str, ...], float]:
    return {tuple(value for _, value in labels): v for (n, labels), v in found.items() if n == name}


JOB = workload("slurm", "42", scope="cluster", name="train", user="ann")


def test_the_reference_is_made_from_the_code() -> None:
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert page.read_text() == metrics.reference(), (
        "run: python -m joulegram.collector.metrics > docs/metrics.md"
    )


def test_joules_watts_and_grams_per_kwh_are_there() -> None:
    frame = Node("n1").frame(T0, [Row(JOB, cpu_j=300.0, dram_j=20.0), Row(IDLE, cpu_j=100.0)])
    found = samples(registry_of([frame]))
    assert named(found, "joulegram_energy_joules_total") == {
        ("cpu", "n1"): 400.0,
        ("dram", "n1"): 20.0,
    }
    assert named(found, "joulegram_node_power_watts") == {("cpu", "n1"): 40, ("dram", "n1"): 2}
    assert named(found, "joulegram_node_coverage_ratio") == {("n1",): 1.0}
    assert named(found, "joulegram_grid_intensity_grams_per_kwh") == {
        ("average-direct-consumption", "GB"): 123.5
    }
    assert sum(named(found, "joulegram_workload_power_watts").values()) == pytest.approx(42.0)
    assert named(found, "joulegram_build_info") == {(metrics.running_version(),): 1.0}


NASTY = [
    'qu"ote',
    "new\nline",
    "back\\slash",
    "tab\t",
    "\x00nul",
    "\u2028sep",
    "naïve ☃",
    "\r",
    "x" * 500,
]


def nasty_registry(names: list[str]) -> CollectorRegistry:
    rows = [
        Row(workload("container", name, name=name, user=name), cpu_j=10.0, pid=i + 1)
        for i, name in enumerate(names)
    ]
    return registry_of([Node(name).frame(T0, rows) for name in names[:5]])


def test_promtool_finds_nothing_to_say() -> None:
    registry = nasty_registry(NASTY)
    counters.register(registry)
    FeedMetrics(registry)
    body, content_type = metrics.exposition(registry, "")
    assert content_type.startswith("text/plain")
    check_metrics(body.decode())


def test_openmetrics_when_the_scraper_asks_for_it() -> None:
    body, content_type = metrics.exposition(nasty_registry(NASTY), OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert len(list(parse_openmetrics(body.decode()))) >= 10


@given(st.lists(st.text(max_size=200), min_size=1, max_size=30, unique=True))
def test_any_name_parses_and_no_series_comes_twice(names: list[str]) -> None:
    found = samples(nasty_registry(names))
    watts = named(found, "joulegram_node_power_watts")
    assert sum(watts.values()) == pytest.approx(len(names) * min(5, len(names)))


def test_names_alike_in_their_shown_part_add_up() -> None:
    long = "n" * 300
    found = samples(
        registry_of([Node(long + end).frame(T0, [Row(IDLE, cpu_j=10.0)]) for end in "ab"])
    )
    assert list(named(found, "joulegram_energy_joules_total").values()) == [20.0]


def test_a_thousand_jobs_are_twenty_series_and_other() -> None:
    rows = [Row(workload("slurm", str(i)), cpu_j=1.0 + i) for i in range(1000)]
    found = samples(registry_of([Node().frame(T0, [*rows, Row(IDLE, cpu_j=7.0)])]))
    watts = named(found, "joulegram_workload_power_watts")
    assert len(watts) == 20 + 1 + 1
    total_j = sum(row.cpu_j for row in rows) + 7.0
    assert sum(watts.values()) == pytest.approx(total_j / 10)


def test_nodes_beyond_the_bound_share_a_label() -> None:
    energy = EnergyTotals(max_nodes=2)
    energy.on_durable([Node(name).frame(T0, [Row(IDLE, cpu_j=1.0)]) for name in "abcd"])
    assert energy.items() == [
        ("a", "cpu", 1_000_000),
        ("b", "cpu", 1_000_000),
        ("other", "cpu", 2_000_000),
    ]


def test_joules_go_on_after_a_restart(ledger: ChdbLedger) -> None:
    store = Store(ledger, lambda: T0)
    node = Node("n1")
    frames = [
        node.frame(T0 + i * 10_000, [Row(JOB, cpu_j=3.0, dram_j=0.5), Row(IDLE, cpu_j=1.000001)])
        for i in range(5)
    ]
    before = EnergyTotals()
    before.load(ledger)
    assert before.items() == []
    before.on_durable(kept(store, frames[:4]))
    assert kept(store, frames[2:4]) == []  # a duplicate is not counted twice
    after = EnergyTotals()
    after.load(ledger)
    assert after.items() == before.items()
    assert after.newest_window_s == before.newest_window_s
    after.on_durable(kept(store, frames[4:]))
    assert {(n, c): uj for n, c, uj in after.items()} == {
        ("n1", "cpu"): 5 * 4_000_001,
        ("n1", "dram"): 5 * 500_000,
    }


def kept(store: Store, frames: Sequence[Frame]) -> list[Frame]:
    return [one.frame for one in store.keep(checked(*frames)).stored]


def test_joules_without_their_frames_header_are_not_there(ledger: ChdbLedger) -> None:
    """A kill may leave devices whose frame is not durable yet; it will come again."""
    Store(ledger, lambda: T0).keep(checked(Node("n1").frame(T0, [Row(IDLE, cpu_j=1.0)])))
    ledger.execute("ALTER TABLE rows DELETE WHERE 1 SETTINGS mutations_sync = 1")
    energy = EnergyTotals()
    energy.load(ledger)
    assert energy.items() == []


def test_grams_never_fall_and_catch_up(ledger: ChdbLedger) -> None:
    teams = TeamGrams(ledger)
    teams.update({"web": 10.0, "ml": 5.0})
    teams.update({"web": 8.0, "ml": 6.0})  # a revision of the grid's past
    assert list(teams.items()) == [("ml", 6.0, 0.0), ("web", 10.0, 2.0)]
    again = TeamGrams(ledger)  # the collector starts again
    again.update({"web": 9.0, "ml": 6.5})
    assert [(team, shown) for team, shown, _ in again.items()] == [("ml", 6.5), ("web", 10.0)]
    again.update({"web": 11.0})
    assert {team: shown for team, shown, _ in again.items()}["web"] == 11.0

"""/metrics: what the collector knows now, for Prometheus. `docs/metrics.md` is made from here.

Intake, feeds and roll-up register their own counters; the families below are made anew at
each scrape from live state and totals, so that a node that has gone leaves no stale series.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from joulegram.collector import counters
from joulegram.collector.grid.feeds import FeedMetrics
from joulegram.collector.kafka import counters as kafka_counters
from joulegram.collector.live import REST, Live, Now, WorkloadPower
from joulegram.collector.security import counts as security_counts
from joulegram.collector.standing import Standing
from joulegram.collector.totals import Totals

TOP_WORKLOADS = 20
MAX_LABEL_CHARACTERS = 120

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name without `_total`, what it says, and what bounds its label set."""

    name: str
    kind: str  # counter or gauge
    labels: Labels
    help: str
    bound: str


ENERGY = Family(
    "joulegram_energy_joules",
    "counter",
    ("node", "component"),
    "Energy that is durable in the ledger, J. Goes on across restarts from what the ledger keeps. "
    "With the embedded ledger at once. With ClickHouse it is all that is in the ledger, whoever "
    "stored it (of several collectors take one, never the sum): within 4 s at a small site, within "
    "a minute where no collector with a page saw the frame come; reading takes a tenth of the "
    "time at most, which at 10,000 nodes is minutes.",
    "20,000 nodes, later ones are `other`; 4 components",
)
NODE_POWER = Family(
    "joulegram_node_power_watts",
    "gauge",
    ("node", "component"),
    "Mean power of the node's newest window, W. Absent while the node is silent.",
    "20,000 nodes, the one heard from least recently goes first; 4 components",
)
NODE_COVERAGE = Family(
    "joulegram_node_coverage_ratio",
    "gauge",
    ("node",),
    "Measured fraction of the node's newest window; 0 while it is silent (3 windows).",
    "20,000 nodes",
)
NODE_REPORTING = Family(
    "joulegram_node_reporting",
    "gauge",
    ("node",),
    "1 while the node reports, 0 once it has been silent for 3 windows.",
    "20,000 nodes",
)
SIMULATED = Family(
    "joulegram_simulated_nodes",
    "gauge",
    (),
    "Nodes of which the newest window, or some energy in the totals, was made by a simulator; what "
    "is kept without its nodes counts as one. Above 0, totals hold made-up energy.",
    "one series",
)
DUPLICATE_NODE = Family(
    "joulegram_duplicate_node",
    "gauge",
    ("node",),
    "1 while two agents report under this node's name at once; absent otherwise. Their energy adds "
    "up under one name: give each node its own.",
    "20,000 nodes",
)
QUALITY_POWER = Family(
    "joulegram_quality_power_watts",
    "gauge",
    ("quality",),
    "Mean power of all nodes now by quality of the reading (measured, derived, modelled), W.",
    "8 qualities, further ones are `other`",
)
WORKLOAD_POWER = Family(
    "joulegram_workload_power_watts",
    "gauge",
    ("kind", "scope", "id", "name", "user", "team"),
    "Mean power now of the top workloads, of idle, system and unattributed, and of `other`, W. "
    "They sum to the power of all nodes.",
    "20 workloads, 3 reserved kinds, and `other`",
)
TEAM_POWER = Family(
    "joulegram_team_power_watts",
    "gauge",
    ("team",),
    "Mean power now of the team's workloads, W. Idle, system and unattributed are unassigned.",
    "20 teams, further ones are `other`",
)
TEAM_GRAMS = Family(
    "joulegram_team_co2e_grams",
    "counter",
    ("team",),
    "Operational emissions, location-based, average, g. A revision of the past that lowers them "
    "is withheld until new emissions have caught up; the report has it at once.",
    "500 teams, later ones are `other`",
)
TEAM_WITHHELD = Family(
    "joulegram_team_co2e_withheld_grams",
    "gauge",
    ("team",),
    "How far the counter stands above what the ledger says now, g.",
    "500 teams",
)
INTENSITY = Family(
    "joulegram_grid_intensity_grams_per_kwh",
    "gauge",
    ("zone", "basis"),
    "Grid carbon intensity in the running 5-minute slot, gCO2e/kWh.",
    "the site's zone, one basis at a time",
)
INTENSITY_INFO = Family(
    "joulegram_grid_intensity_info",
    "gauge",
    ("zone", "basis", "quality", "provider"),
    "1 for the quality (measured, estimated, forecast, fallback) and provider of the intensity.",
    "one series at a time",
)
PUE = Family(
    "joulegram_site_pue_ratio",
    "gauge",
    ("zone",),
    "Power usage effectiveness of the site: facility energy / IT energy.",
    "the site's zone",
)
NEWEST_WINDOW = Family(
    "joulegram_ledger_newest_window_timestamp_seconds",
    "gauge",
    (),
    "Start of the newest window that is durable, seconds since 1970 UTC.",
    "one series",
)
LIVE_NODES = Family("joulegram_live_nodes", "gauge", (), "Nodes held in live state.", "one series")
LIVE_NODES_LIMIT = Family(
    "joulegram_live_nodes_limit",
    "gauge",
    (),
    "How many nodes live state holds at most; then the one heard from least recently goes.",
    "one series",
)
LIVE_NODES_FORGOTTEN = Family(
    "joulegram_live_nodes_forgotten",
    "counter",
    (),
    "Nodes that left live state because it was full.",
    "one series",
)
REFRESH_FAILING = Family(
    "joulegram_refresh_failing",
    "gauge",
    ("what",),
    "1 while a number that costs a query cannot be refreshed; its last value stays.",
    "3 things",
)
BUILD_INFO = Family(
    "joulegram_build_info", "gauge", ("version",), "1, with the version that runs.", "one series"
)

FAMILIES = (
    ENERGY, NODE_POWER, NODE_COVERAGE, NODE_REPORTING, DUPLICATE_NODE, SIMULATED, QUALITY_POWER,
    WORKLOAD_POWER, TEAM_POWER, TEAM_GRAMS, TEAM_WITHHELD, INTENSITY, INTENSITY_INFO, PUE,
    NEWEST_WINDOW, LIVE_NODES, LIVE_NODES_LIMIT, LIVE_NODES_FORGOTTEN, REFRESH_FAILING, BUILD_INFO,
)  # fmt: skip

Sample = tuple[Sequence[str], float]


@dataclass(frozen=True, slots=True, eq=False)
class CollectorMetrics(Collector):
    """The families above, for a CollectorRegistry. Never blocks on the ledger."""

    live: Live
    energy: Totals
    standing: Standing

    def describe(self) -> Iterable[Metric]:
        return [_metric(family, []) for family in FAMILIES]

    def collect(self) -> Iterator[Metric]:
        now = self.live.now()
        yield _metric(ENERGY, [((n, c), uj / 1e6) for n, c, uj in self.energy.items()])
        yield from _of_nodes(now)
        made_up = {n.node for n in (*now.nodes, *now.silent) if n.simulated}
        yield _metric(SIMULATED, [((), len(made_up.union(self.energy.simulated)))])
        yield from _of_workloads(now)
        teams = list(self.standing.teams.items())
        yield _metric(TEAM_GRAMS, [((team,), shown) for team, shown, _ in teams])
        yield _metric(TEAM_WITHHELD, [((team,), withheld) for team, _, withheld in teams])
        yield from _of_grid(self.standing)
        if self.energy.newest_window_s:
            yield _metric(NEWEST_WINDOW, [((), self.energy.newest_window_s)])
        yield _metric(LIVE_NODES, [((), len(self.live))])
        yield _metric(LIVE_NODES_LIMIT, [((), self.live.max_nodes)])
        yield _metric(LIVE_NODES_FORGOTTEN, [((), self.live.forgotten)])
        yield _metric(REFRESH_FAILING, [((what,), 1) for what in sorted(self.standing.failing)])
        yield _metric(BUILD_INFO, [((running_version(),), 1)])


def _of_nodes(now: Now) -> Iterator[Metric]:
    everyone = [*now.nodes, *now.silent]
    yield _metric(
        NODE_POWER, [((n.node, c), watts) for n in now.nodes for c, watts in n.power_w.items()]
    )
    yield _metric(
        NODE_COVERAGE,
        [*(((n.node,), n.coverage) for n in now.nodes), *(((n.node,), 0) for n in now.silent)],
    )
    reporting = {n.node for n in now.nodes}
    yield _metric(NODE_REPORTING, [((n.node,), n.node in reporting) for n in everyone])
    yield _metric(DUPLICATE_NODE, [((n.node,), 1) for n in now.nodes if n.doubled])
    yield _metric(QUALITY_POWER, _top(now.quality_w, 8))


def _of_workloads(now: Now) -> Iterator[Metric]:
    top = [w for w in now.workloads if w.kind != REST][:TOP_WORKLOADS]
    # Everything else, so that the family sums to the power of all nodes.
    rest_w = now.total_w - sum(w.total_w for w in (*top, *now.reserved))
    samples: list[Sample] = [
        ((w.kind, w.scope, w.id, w.name, w.user, w.team), w.total_w) for w in top
    ]
    samples += [((w.kind, "", "", "", "", ""), w.total_w) for w in now.reserved]
    if now.nodes:
        samples.append((("other", "", "", "", "", ""), max(0.0, rest_w)))
    yield _metric(WORKLOAD_POWER, samples)
    by_team: dict[str, float] = {}
    for workload in (*now.workloads, *now.reserved):
        team = _team(workload)
        by_team[team] = by_team.get(team, 0.0) + workload.total_w
    yield _metric(TEAM_POWER, _top(by_team, TOP_WORKLOADS))


def _of_grid(standing: Standing) -> Iterator[Metric]:
    grid = standing.grid
    if grid is None:
        return
    yield _metric(PUE, [((grid["zone"],), grid["pue"])])
    if grid["g_per_kwh"] is None:
        return
    where = (grid["zone"], grid["basis"])
    yield _metric(INTENSITY, [(where, grid["g_per_kwh"])])
    yield _metric(INTENSITY_INFO, [((*where, grid["quality"], grid["provider"]), 1)])


def _team(workload: WorkloadPower) -> str:
    return workload.team or "other"


def _top(values: Mapping[str, float], most: int) -> list[Sample]:
    ordered = sorted(values, key=lambda key: (key == "other", -values[key], key))
    samples: list[Sample] = [((key,), values[key]) for key in ordered[:most]]
    if len(ordered) > most:
        samples.append((("other",), sum(values[key] for key in ordered[most:])))
    return samples


def _metric(family: Family, samples: Iterable[Sample]) -> Metric:
    make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = make(family.name, family.help, labels=family.labels)
    # Two values of which only the start is shown would be one series twice: they add.
    summed: dict[Labels, float] = {}
    for labels, value in samples:
        shown = tuple(label(text) for text in labels)
        summed[shown] = summed.get(shown, 0.0) + value
    for shown, value in summed.items():
        metric.add_metric(shown, value)
    return metric


def label(text: str) -> str:
    """A name as a label value: printable, of bounded length. The encoder escapes the rest."""
    printable = text if text.isprintable() else "".join(map(_printable, text))
    if len(printable) <= MAX_LABEL_CHARACTERS:
        return printable
    return printable[: MAX_LABEL_CHARACTERS - 1] + "…"


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Everything in the registry, and its content type: OpenMetrics where `accept` asks for it."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def running_version() -> str:
    """Of the installed package."""
    try:
        return version("joulegram")
    except PackageNotFoundError:
        return "unknown"


class _Noting(CollectorRegistry):
    """Notes what registers, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Collector] = []

    def register(self, collector: Collector) -> None:
        super().register(collector)
        self.noted.append(collector)


def reference() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics of the collector",
        "",
        "Served at `/metrics` as Prometheus text, or as OpenMetrics where the scraper asks for it.",
        "Made from the code by `python -m joulegram.collector.metrics`; a test compares.",
        "",
        "Label values show control characters as `\\xNN` and at most "
        f"{MAX_LABEL_CHARACTERS} characters.",
        "Totals for bills and reports come from the ledger (`joulegram report`): Prometheus is for",
        "now and for alerts.",
        "",
        "## What is drawn and emitted",
        "",
        "| metric | type | labels | meaning | bound |",
        "|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        name = family.name + ("_total" if family.kind == "counter" else "")
        lines.append(
            f"| `{name}` | {family.kind} | {_named(family.labels)} | {family.help} "
            f"| {family.bound} |"
        )
    lines += [
        "",
        "## What the collector counts of itself",
        "",
        "Counters begin at 0 when it starts; every label has a few fixed values.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    registry = _Noting()
    counters.register(registry)
    FeedMetrics(registry)
    security_counts.register(registry)
    kafka_counters.register(registry)
    for collector in registry.noted:
        for metric in collector.collect():
            name = metric.name + ("_total" if metric.type == "counter" else "")
            # prometheus_client has no public way to ask for label names before a value is set.
            labels = _named(getattr(collector, "_labelnames", ()))
            lines.append(f"| `{name}` | {metric.type} | {labels} | {metric.documentation} |")
    return "\n".join(lines) + "\n"


def _named(labels: Iterable[str]) -> str:
    return ", ".join(f"`{text}`" for text in labels) or "none"


if __name__ == "__main__":
    import sys

    sys.stdout.write(reference())

"""Reports from a real ledger: frames through the real writer, the real roll-up, real tables."""

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import numpy as np
import pytest

from joulegram.collector import reports, teams
from joulegram.collector.energy import COMPONENTS
from joulegram.collector.errors import BadQuestion
from joulegram.collector.settings import record
from joulegram.v1.telemetry_pb2 import Device, Frame, ReservedDevice, Workload
from tests.collector.carbon import START, START_S, Place, ms
from tests.collector.made import IDLE, SYSTEM, Node, Row, workload

HOUR = timedelta(hours=1)
KWH_J = 3_600_000.0


TRAIN = workload("slurm", "42", scope="cluster", user="ada", project="ml", name="train")
WEB = workload("systemd", "web.service", scope="node1", name="web.service")


def whole_slots(node: Node, count: int, rows: list[Row], start: datetime = START) -> list[Frame]:
    """One frame per slot."""
    return [node.frame(ms(start) + 300_000 * i, rows, window_ms=300_000) for i in range(count)]


def four_hours(site: Place) -> None:
    """1, 1, 0.5 and 2 kW over four hours of 400, 300, 100 and 200 g/kWh."""
    node = Node()
    for hour, kw in enumerate((1, 1, 0.5, 2)):
        per_slot_j = kw * KWH_J / 12
        site.store(whole_slots(node, 12, [Row(TRAIN, per_slot_j)], START + hour * HOUR))
    for hour, g in enumerate((400, 300, 100, 200)):
        site.grid(hour, g)


def test_energy_meets_the_grid_slot_by_slot(site: Place) -> None:
    site.configure(zone="GB")
    four_hours(site)
    answer = site.report()
    assert answer["total"]["energy_uj"] == answer["metered_uj"] == round(4.5 * KWH_J * 1e6)
    assert answer["total"]["g_co2e"] == pytest.approx(1150)
    assert answer["basis"] == "average-direct-consumption"
    assert answer["intensity"] == {"estimated": pytest.approx(1.0)}
    assert (answer["pue"], answer["zone"]) == (1.0, "GB")
    (row,) = answer["rows"]
    assert (row["key"], row["quality"]) == ("slurm/42", "measured")
    assert row["g_co2e"] == pytest.approx(1150)


def test_a_revision_changes_past_grams_and_the_past_still_answers(site: Place) -> None:
    site.configure(zone="GB", pue=1.2)
    four_hours(site)
    assert site.report()["total"]["g_co2e"] == pytest.approx(1380)
    revised = START + 5 * HOUR
    site.grid(2, 160, known=revised)
    site.now = START + 6 * HOUR
    assert site.report()["total"]["g_co2e"] == pytest.approx(1416)
    before = site.report(as_of=revised - timedelta(seconds=1))
    assert before["total"]["g_co2e"] == pytest.approx(1380)
    assert before["as_of"] == before["energy_as_of"] == "2026-09-21T16:59:59Z"


def test_a_new_pue_or_zone_changes_past_grams_and_the_past_still_answers(site: Place) -> None:
    site.configure(zone="GB")
    four_hours(site)
    site.now = START + 6 * HOUR
    site.configure(zone="FR", pue=1.5, at=START + 5 * HOUR)
    now, then = site.report(), site.report(as_of=START + 4.5 * HOUR)
    assert (now["zone"], now["pue"]) == ("FR", 1.5)
    assert (then["zone"], then["pue"]) == ("GB", 1.0)
    assert then["total"]["g_co2e"] == pytest.approx(1150)
    # France has no live feed here: its yearly lifecycle value answers, as a fallback.
    assert now["intensity"] == {"fallback": pytest.approx(1.0)}
    assert now["total"]["g_co2e"] == pytest.approx(4.5 * 1.5 * now["g_per_kwh"])
    assert now["credits"] == ["Electricity Maps yearly data, ODbL 1.0"]


def test_what_the_feed_missed_is_filled_from_another_basis_and_said(site: Place) -> None:
    site.configure(zone="GB")
    site.store(whole_slots(Node(), 48, [Row(TRAIN, 1000.0)]))
    site.grid(0, 100)
    answer = site.report()
    # An hour answered, 90 minutes held on, the other 90 from the yearly table.
    assert answer["basis_share"] == {
        "average-direct-consumption": pytest.approx(2.5 / 4),
        "average-lifecycle-production": pytest.approx(1.5 / 4),
    }
    assert answer["intensity"] == {
        "estimated": pytest.approx(1 / 4),
        "fallback": pytest.approx(3 / 4),
    }
    lifecycle = site.report(basis="lifecycle")
    assert lifecycle["basis_share"] == {"average-lifecycle-production": pytest.approx(1.0)}


def test_every_question_accounts_for_every_microjoule(site: Place) -> None:
    site.configure(zone="GB")
    reserving = Workload()
    reserving.CopyFrom(TRAIN)
    reserving.reserved_cpus = 3.5
    frames = []
    for name in ("node1", "node2"):
        node = Node(name, epoch=ord(name[-1]))
        rng = np.random.default_rng(node.epoch)
        for i in range(40):
            joules = iter(rng.integers(0, 10**9, 12) / 1e6)
            rows = [
                Row(workload("idle", scope=name), next(joules), next(joules), next(joules)),
                Row(workload("system", scope=name), next(joules)),
                Row(reserving, next(joules), next(joules), next(joules), pid=7),
                Row(WEB, next(joules), next(joules), pid=8),
            ]
            if i // 5 % 3 == 0:
                rows = rows[:1]  # nobody there to take the idle
            frames.append(node.frame(ms(START) + 60_000 * i, rows, window_ms=60_000))
    site.store(frames)
    sent_uj = sum(device.energy_uj for frame in frames for device in frame.devices)
    total = site.report(1)["total"]
    for by, idle_policy in product(reports.BY, reports.IDLE_POLICIES):
        answer = site.report(1, by=by, idle_policy=idle_policy)
        assert answer["metered_uj"] == answer["total"]["energy_uj"] == sent_uj
        assert answer["total"] == total
        energies = [row["energy_uj"] for row in answer["rows"]]
        assert sum(energies) == sent_uj and energies == sorted(energies, reverse=True)
        grams = sum(row["g_co2e"] for row in answer["rows"])
        assert grams == pytest.approx(total["g_co2e"])
        assert len({row["key"] for row in answer["rows"]}) == len(answer["rows"])
    for idle_policy in reports.IDLE_POLICIES:
        parts = [
            site.report(1, idle_policy=idle_policy, components=[c])["metered_uj"]
            for c in COMPONENTS
        ]
        assert sum(parts) == sent_uj and parts[3] == 0


def keyed(answer: dict[str, Any]) -> dict[str, int]:
    return {row["key"]: row["energy_uj"] for row in answer["rows"]}


def test_idle_policies(site: Place) -> None:
    """Golden: package 200 W, floor 125 W, A 50, B 12.5, system 12.5."""
    site.configure(zone="GB")
    a = workload("slurm", "1", scope="c", reserved_cpus=16)
    b = workload("slurm", "2", scope="c", reserved_cpus=48)
    rows = [Row(a, 15_000), Row(b, 3_750), Row(SYSTEM, 3_750), Row(IDLE, 37_500)]
    site.store(whole_slots(Node(), 1, rows))

    def watts(**more: Any) -> dict[str, float]:
        answer = site.report(1, **more)
        return {key: round(uj / 300e6, 1) for key, uj in keyed(answer).items()}

    assert watts() == {"idle": 125.0, "slurm/1": 50.0, "slurm/2": 12.5, "system": 12.5}
    assert watts(idle_policy="by_active") == {"slurm/1": 133.3, "slurm/2": 33.3, "system": 33.3}
    by_reservation = {"slurm/1": 81.2, "slurm/2": 106.2, "system": 12.5}
    assert watts(idle_policy="by_reservation") == by_reservation


def test_idle_that_nobody_takes_stays_idle(site: Place) -> None:
    site.configure(zone="GB")
    site.store(whole_slots(Node(), 2, [Row(IDLE, 900)]))
    for policy in reports.IDLE_POLICIES:
        assert keyed(site.report(1, idle_policy=policy)) == {"idle": 1_800_000_000}


def test_an_idle_gpu_is_seen_with_the_job_that_holds_it(site: Place) -> None:
    """Golden: 70 W on a GPU that a job holds and does not use."""
    site.configure(zone="GB")
    job = Workload()
    job.CopyFrom(TRAIN)
    job.reserved_devices.append(ReservedDevice(device=1, fraction=1.0))
    node = Node()
    frame = node.frame(ms(START), [Row(SYSTEM, 300), Row(job), Row(IDLE, 0, 0, 21_000)], 300_000)
    frame.rows.holder = np.array([-1, -1, 1], "<i4").tobytes()
    site.store([frame])
    apart = {row["key"]: row for row in site.report(1)["rows"]}
    assert apart["idle"]["energy_uj"] == 21_000_000_000
    assert apart["slurm/42"]["held_idle_uj"] == 21_000_000_000
    assert apart["slurm/42"]["energy_uj"] == 0
    held = site.report(1, idle_policy="by_reservation")
    assert keyed(held) == {"slurm/42": 21_000_000_000, "system": 300_000_000}


def test_a_silent_node_lowers_coverage_until_it_is_retired(site: Place) -> None:
    site.configure(zone="GB")
    site.store(whole_slots(Node("n1", epoch=1), 12, [Row(SYSTEM, 9)]))
    site.store(whole_slots(Node("n2", epoch=2), 6, [Row(SYSTEM, 9)]))
    answer = site.report(1, by="node")
    coverage = {row["key"]: row["coverage"] for row in answer["rows"]}
    assert coverage == {"n1": 1.0, "n2": 0.5}
    assert answer["total"]["coverage"] == 0.75
    # Silent for the whole of the next hour, and still there.
    later = site.report(since=START + HOUR, until=START + 2 * HOUR, by="node")
    assert [(r["key"], r["energy_uj"], r["coverage"]) for r in later["rows"]] == [
        ("n1", 0, 0.0),
        ("n2", 0, 0.0),
    ]
    record(
        site.ledger,
        "retired",
        True,
        name="n2",
        valid_from_s=START_S + 1800,
        now_ms=ms(site.now),
    )
    site.now += HOUR
    assert site.report(1)["total"]["coverage"] == 1.0
    assert site.report(1, as_of=site.now - 0.5 * HOUR)["total"]["coverage"] == 1.0
    assert site.report(1, as_of=site.now - 2 * HOUR)["total"]["coverage"] == 0.75


def test_a_node_is_expected_from_its_first_frame_to_now(site: Place) -> None:
    site.configure(zone="GB")
    node = Node()
    frames = [node.frame(ms(START) + 120_000 + 10_000 * i, [Row(SYSTEM, 1)]) for i in range(40)]
    site.store(frames)
    site.now = START + timedelta(seconds=525)
    # The range begins before the node did and ends in the slot that is still running.
    answer = site.report(since=START - HOUR, until=site.now)
    assert answer["total"]["coverage"] == 1.0
    assert (answer["since"], answer["until"]) == ("2026-09-21T11:00:00Z", "2026-09-21T12:10:00Z")


def test_a_node_that_has_just_begun_is_covered_and_one_that_has_just_stopped_is_not_yet_missed(
    site: Place,
) -> None:
    site.configure(zone="GB")
    node = Node()
    site.store([node.frame(ms(START) + 10_000 * i, [Row(SYSTEM, 1)]) for i in (1, 2)])
    coverage = {}
    for after_s in (31, 70, 110):
        site.now = START + timedelta(seconds=after_s)
        coverage[after_s] = site.report(1)["total"]["coverage"]
    assert coverage == {31: 1.0, 70: 1.0, 110: pytest.approx(20 / 55)}


def test_a_sensor_that_is_gone_lowers_coverage_and_a_model_says_so(site: Place) -> None:
    site.configure(zone="GB")
    site.store(whole_slots(Node("n1", coverage=0.4), 12, [Row(TRAIN, 9)]))
    site.store(whole_slots(Node("n2", quality="modelled", epoch=2), 12, [Row(WEB, 9)]))
    rows = {row["key"]: row for row in site.report(1)["rows"]}
    assert rows["slurm/42"]["coverage"] == pytest.approx(0.4)
    assert rows["slurm/42"]["quality"] == "measured"
    assert rows["systemd/web.service"]["quality"] == "modelled"
    assert site.report(1)["total"]["quality"] == "modelled"


def test_quality_is_that_of_the_components_used(site: Place) -> None:
    site.configure(zone="GB")
    node = Node()
    frame = node.frame(ms(START), [Row(TRAIN, 9), Row(WEB, 9, 5)], 300_000)
    frame.devices[1].quality = "derived"
    site.store([frame])
    quality = {row["key"]: row["quality"] for row in site.report(1)["rows"]}
    assert quality == {"slurm/42": "measured", "systemd/web.service": "derived"}


def test_as_of_a_past_date_only_the_frames_that_had_landed_count(site: Place) -> None:
    site.configure(zone="GB")
    node = Node()
    late = whole_slots(node, 3, [Row(TRAIN, 1), Row(IDLE, 2)])
    site.store(whole_slots(node, 3, [Row(TRAIN, 10)], START + 0.5 * HOUR))
    site.store(late, landed=START + 2 * HOUR)
    assert site.report(1)["metered_uj"] == 39_000_000
    then = site.report(1, as_of=START + 1.5 * HOUR)
    assert then["metered_uj"] == then["total"]["energy_uj"] == 30_000_000
    assert then["energy_as_of"] == "2026-09-21T13:30:00Z"
    for policy in reports.IDLE_POLICIES:
        again = site.report(1, as_of=START + 2.5 * HOUR, idle_policy=policy)
        assert again["metered_uj"] == again["total"]["energy_uj"] == 39_000_000


def test_when_raw_rows_are_gone_an_old_answer_says_that_its_energy_is_the_latest(
    site: Place,
) -> None:
    site.configure(zone="GB")
    site.store(whole_slots(Node(), 3, [Row(TRAIN, 10)]))
    site.report(1)
    site.ledger.execute("ALTER TABLE rows DROP PARTITION 20260921")
    then = site.report(1, as_of=START + 0.5 * HOUR)
    assert (then["metered_uj"], then["energy_as_of"]) == (30_000_000, "latest")


def test_teams_over_time_and_as_they_were_known(site: Place) -> None:
    site.configure(zone="GB")
    site.store(whole_slots(Node(), 12, [Row(TRAIN, 10), Row(WEB, 1), Row(SYSTEM, 2)]))
    at = site.now - 2 * HOUR
    teams.record_rules(site.ledger, [{"team": "research", "user": "ada"}], ms(at))
    assert keyed(site.report(1, by="team")) == {"research": 120_000_000, "unassigned": 36_000_000}
    moved: list[dict[str, Any]] = [
        {"team": "ml", "user": "ada", "since": START + 0.5 * HOUR},
        {"team": "research", "user": "ada"},
        {"team": "ops", "kind": "system"},
    ]
    teams.record_rules(site.ledger, moved, ms(site.now - HOUR))
    assert keyed(site.report(1, by="team")) == {
        "ml": 60_000_000,
        "research": 60_000_000,
        "ops": 24_000_000,
        "unassigned": 12_000_000,
    }
    then = site.report(1, by="team", as_of=site.now - 1.5 * HOUR)
    assert keyed(then) == {"research": 120_000_000, "unassigned": 36_000_000}
    by_workload = {row["key"]: row["team"] for row in site.report(1)["rows"]}
    assert by_workload == {"slurm/42": None, "systemd/web.service": "unassigned", "system": "ops"}
    grams = reports.team_grams(site.ledger, site.rollup, since=START, until=START + HOUR)
    assert set(grams) == {"ml", "research", "ops", "unassigned"}


def test_keys_stay_readable_and_become_unique_where_scopes_meet(site: Place) -> None:
    site.configure(zone="GB")
    rows = [Row(workload("systemd", "a.service", scope=s), 1) for s in ("n1", "n2")]
    rows += [Row(workload("idle", scope="n1"), 3), Row(TRAIN, 2)]
    site.store(whole_slots(Node(), 1, rows))
    assert set(keyed(site.report(1))) == {
        "idle",
        "slurm/42",
        "n1/systemd/a.service",
        "n2/systemd/a.service",
    }
    assert keyed(site.report(1, by="user")) == {
        "ada": 2_000_000,
        "idle": 3_000_000,
        "unknown": 2_000_000,
    }


def test_before_anything_is_known_grams_are_unknown_and_not_zero(site: Place) -> None:
    site.store(whole_slots(Node(), 1, [Row(TRAIN, 9)]))
    answer = site.report(1)
    assert answer["total"]["g_co2e"] is None and answer["rows"][0]["g_co2e"] is None
    assert answer["intensity"] == {"unknown": pytest.approx(1.0)}
    assert reports.team_grams(site.ledger, site.rollup, since=START, until=site.now) == {}


def test_an_empty_ledger_answers(site: Place) -> None:
    site.configure(zone="GB")
    answer = site.report(1)
    assert (answer["rows"], answer["metered_uj"], answer["total"]["g_co2e"]) == ([], 0, 0.0)


def test_simulated_energy_says_so(site: Place) -> None:
    site.configure(zone="GB")
    site.store(whole_slots(Node(more={"simulated": True}), 1, [Row(TRAIN, 9)]))
    assert site.report(1)["simulated"] is True


def test_a_guest_is_left_out_since_its_host_holds_its_energy(site: Place) -> None:
    site.configure(zone="GB")
    site.store(whole_slots(Node("host", epoch=1), 2, [Row(SYSTEM, 9)]))
    site.store(whole_slots(Node("guest", epoch=2, more={"host_node": "host"}), 2, [Row(TRAIN, 4)]))
    answer = site.report(1, by="node")
    assert [row["key"] for row in answer["rows"]] == ["host"]
    assert answer["total"]["energy_uj"] == answer["metered_uj"] == 2 * 9_000_000


def test_an_unknown_component_is_counted_as_other(site: Place) -> None:
    site.configure(zone="GB")
    frame = Node().frame(ms(START), [Row(SYSTEM, 9)], 300_000)
    npu = Device(name="npu0", component="npu", energy_uj=5, quality="measured", coverage=1.0)
    frame.devices.append(npu)
    frame.rows.other_uj = np.array([5], "<u8").tobytes()
    site.store([frame])
    assert keyed(site.report(1, by="component")) == {"cpu": 9_000_000, "other": 5}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"by": "job"}, "by = 'job': one of workload, user"),
        ({"idle_policy": "none"}, "separate, by_active"),
        ({"basis": "marginal"}, "lifecycle, direct"),
        ({"components": ["fan"]}, "cpu, dram"),
        ({"components": []}, "cpu, dram"),
        ({"until": START}, "not after since"),
        ({"since": datetime(2026, 1, 1)}, "add a time zone"),
        ({"since": datetime(1969, 1, 1, tzinfo=UTC)}, "from 1970"),
        ({"since": datetime(1990, 1, 1, tzinfo=UTC)}, "ask for less"),
    ],
)
def test_a_bad_question_is_told_what_is_accepted(
    site: Place, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadQuestion, match=says):
        site.report(**asked)

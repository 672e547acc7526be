"""Redfish: which chassis is the node's, how one is let in, and what nonsense may cost."""

import contextlib
import gzip
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joulegram.agent.config import AgentConfig
from joulegram.agent.errors import BadSetting, SensorDenied, SensorFailed
from joulegram.agent.integral import Integral
from joulegram.agent.sensors.bmc.background import Later, SlowPlatform
from joulegram.agent.sensors.bmc.redfish import NodePower, meters, redfish_power
from joulegram.agent.sensors.bmc.redfish_client import Access, RedfishClient
from joulegram.agent.sensors.bmc.redfish_readings import environment, power, sensor, supplies
from joulegram.agent.sensors.sensor import Sample
from tests.agent.played import Clock
from tests.certificates import Authority
from tests.redfish_server import (
    PASSWORD,
    ROOT,
    USER,
    RedfishServer,
    chassis,
    link,
    links,
    node,
    old_power,
    redfish_server,
)

METRICS = f"{ROOT}/Chassis/1U/EnvironmentMetrics"


@pytest.fixture
def bmc() -> Iterator[RedfishServer]:
    with redfish_server() as server:
        yield server


def password_file(folder: Path, password: str = PASSWORD) -> Path:
    path = folder / "password"
    path.touch(0o600)
    path.write_text(password + "\n")
    return path


def reader(server: RedfishServer, within_s: float = 10.0, **access: Any) -> NodePower:
    client = RedfishClient(Access(server.url, **access), within_s)
    return NodePower(client, Clock(), hostname="n7")


def watts(server: RedfishServer, *wanted: str, **access: Any) -> float:
    asking = reader(server, **access)
    asking.wanted = wanted
    sample = asking.ask()
    asking.client.close()
    assert sample is not None
    return sample.power_uw / 1e6


# Which reading


def test_the_newer_model(bmc: RedfishServer) -> None:
    assert watts(bmc) == 344
    asked = [one.removeprefix(f"GET {ROOT}/") for one in bmc.asked]
    assert asked[-1] == "Chassis/1U/EnvironmentMetrics"


def test_what_was_found_is_not_looked_for_again(bmc: RedfishServer) -> None:
    asking = reader(bmc)
    asking.ask()
    del bmc.asked[:]
    asking.ask()
    assert bmc.asked == [f"GET {METRICS}"]
    asking.clock.mono += 601 * 10**9  # type: ignore[attr-defined]
    asking.ask()
    assert f"GET {ROOT}/Chassis" in bmc.asked, "in ten minutes a chassis may have been added"


def test_the_older_model(bmc: RedfishServer) -> None:
    """Parts that are listed beside the whole are in it already."""
    old_power(
        bmc,
        "1U",
        {"MemberId": "0", "Name": "Server Power Control", "PowerConsumedWatts": 450.5},
        {"MemberId": "1", "PhysicalContext": "CPU", "PowerConsumedWatts": 85.2},
        {"MemberId": "2", "PhysicalContext": "Memory", "PowerConsumedWatts": 30},
    )
    assert watts(bmc) == 450.5


@pytest.mark.parametrize("reading", [None, 0, -3, "344", 1e9, True, [], float("inf")])
def test_what_is_no_power_falls_back_to_the_older_model(bmc: RedfishServer, reading: Any) -> None:
    bmc.resources[METRICS]["PowerWatts"] = {"Reading": reading}
    bmc.resources[f"{ROOT}/Chassis/1U"]["Power"] = link("/Chassis/1U/Power")
    bmc.put("/Chassis/1U/Power", PowerControl=[{"PowerConsumedWatts": 300}])
    assert watts(bmc) == 300


def test_supplies_that_are_listed_for_themselves_add_up() -> None:
    supplies = [{"PhysicalContext": "PowerSupply", "PowerConsumedWatts": w} for w in (200, 210)]
    assert power({"PowerControl": supplies}).watts == 410
    whole = {"PhysicalContext": "Chassis", "PowerConsumedWatts": 400}
    assert power({"PowerControl": [*supplies, whole]}).watts == 400
    assert not power({"PowerControl": [{**supplies[0], "PowerConsumedWatts": None}, supplies[1]]})


def test_what_the_supplies_take_in_where_nothing_says_the_whole() -> None:
    """Each that feeds must say it: the others alone would be too little."""
    one, two = {"PowerInputWatts": 180}, {"PowerInputWatts": 170, "LastPowerOutputWatts": 160}
    gone = {"PowerInputWatts": None, "Status": {"State": "Absent"}}
    unplugged = {"PowerInputWatts": 0, "Status": {"State": "Enabled"}}
    assert power({"PowerSupplies": [one, two, gone, unplugged]}).watts == 350
    assert not power({"PowerSupplies": [one, {"LastPowerOutputWatts": 160}]})
    assert (
        power({"PowerControl": [{"PowerConsumedWatts": 344}], "PowerSupplies": [one]}).watts == 344
    )


@pytest.mark.parametrize(("over_min", "taken"), [(1, 280), (20, None), (None, None), (0, None)])
def test_a_mean_over_a_minute_is_a_reading_and_one_over_longer_is_none(
    over_min: float | None, taken: float | None
) -> None:
    metrics = {"AverageConsumedWatts": 280, "IntervalInMin": over_min}
    control = {"PowerConsumedWatts": None, "PowerMetrics": metrics}
    assert power({"PowerControl": [control]}).watts == taken
    assert power({"PowerControl": [{**control, "PowerConsumedWatts": 300}]}).watts == 300


def test_a_sensor_that_the_metrics_name(bmc: RedfishServer) -> None:
    bmc.resources[METRICS]["PowerWatts"] = {"DataSourceUri": f"{ROOT}/Chassis/1U/Sensors/Power"}
    bmc.put("/Chassis/1U/Sensors/Power", Reading=312.5, ReadingType="Power", ReadingUnits="W")
    assert watts(bmc) == 312.5
    bmc.put("/Chassis/1U/Sensors/Power", Reading=0.3, ReadingUnits="kW")
    with pytest.raises(SensorFailed, match="no chassis of this node says its power"):
        watts(bmc)
    with redfish_server() as other:
        bmc.resources[METRICS]["PowerWatts"] = {"DataSourceUri": other.url + METRICS}
        with pytest.raises(SensorFailed, match="not on the same host"):
            watts(bmc)
        assert other.asked == []


def test_the_newest_model_s_supplies(bmc: RedfishServer) -> None:
    bmc.resources[METRICS]["PowerWatts"] = {"Reading": None}
    inside = "/Chassis/1U/PowerSubsystem"
    bmc.resources[f"{ROOT}/Chassis/1U"]["PowerSubsystem"] = link(inside)
    bmc.put(inside, PowerSupplies=link(f"{inside}/PowerSupplies"))
    bmc.collection(f"{inside}/PowerSupplies", "a", "b", "c")
    for name, takes in (("a", 151), ("b", 152), ("c", None)):
        path = f"{inside}/PowerSupplies/{name}"
        state = "Enabled" if takes else "Absent"
        bmc.put(path, Metrics=link(f"{path}/Metrics"), Status={"State": state})
        bmc.put(f"{path}/Metrics", InputPowerWatts={"Reading": takes})
    asking = reader(bmc)
    sample = asking.ask()
    assert sample is not None and sample.power_uw == 303 * 10**6
    del bmc.asked[:]
    asking.ask()
    assert len(bmc.asked) == 2, "one question for each that feeds"
    bmc.put(f"{inside}/PowerSupplies/b/Metrics", InputPowerWatts={"Reading": None})
    with pytest.raises(SensorFailed, match="says no power at this moment"):
        asking.ask()


@pytest.mark.parametrize(("member", "joules"), [("EnergyJoules", 1.0), ("EnergykWh", 3.6e6)])
def test_the_growth_of_an_energy_is_what_was_drawn(
    bmc: RedfishServer, member: str, joules: float
) -> None:
    """To the window, and over an answer that failed: it is a counter, not power."""
    clock, integral, drawn_j = Clock(), Integral(0.0, 5.0), []
    asking = reader(bmc)
    asking.clock = clock

    sample: Sample | None = None
    course_j = (
        7_000_000,
        7_001_000,
        7_004_100,
        7_004_100,
        7_012_100,
        None,
        7_014_000,
        5,
        1005,
        2505,
    )
    for joules_now in course_j:
        clock.mono += 5 * 10**9
        reading = None if joules_now is None else joules_now / joules
        bmc.put("/Chassis/1U/EnvironmentMetrics", **{member: {"Reading": reading}})
        try:
            sample = asking.ask() or sample  # what is not new is told again
            interval = integral.take(clock.mono_ns(), sample) if sample else None
        except SensorFailed:
            integral.failed()
            continue
        if interval is not None:
            drawn_j.append(interval.energy_uj / 1e6)
    # The first two begin; what was drawn before it started again is not known.
    assert drawn_j == pytest.approx([3100, 8000, 1900, 1500], abs=0.01)


def test_an_energy_that_hardly_moves_says_nothing_of_a_window(bmc: RedfishServer) -> None:
    """0.1 kWh are twenty minutes of a node: 300 W then would be 36 kW now."""
    asking = reader(bmc)
    bmc.put("/Chassis/1U/EnvironmentMetrics", EnergykWh={"Reading": 812.1})
    assert asking.ask() is None, "one reading is no power"
    asking.clock.mono += 31 * 10**9  # type: ignore[attr-defined]
    with pytest.raises(SensorFailed, match="has not moved for 30 s"):
        asking.ask()
    bmc.put("/Chassis/1U/EnvironmentMetrics", EnergykWh={"Reading": 812.2})
    with pytest.raises(SensorFailed, match="not told for too long"):
        asking.ask()


def test_what_an_energy_grew_by_is_told_until_it_begins_again(bmc: RedfishServer) -> None:
    """Whoever looks seldom takes the difference; across a beginning there is none."""
    asking, told = reader(bmc), []
    for joules in (1000, 1500, 4000, 20, 30, 50):
        bmc.put("/Chassis/1U/EnvironmentMetrics", EnergyJoules={"Reading": joules})
        with contextlib.suppress(SensorFailed):
            sample = asking.ask()
            told.append(sample and (sample.since_ns, sample.grown_uj / 1e6))
        asking.clock.mono += 5 * 10**9  # type: ignore[attr-defined]
    began_ns = Clock().mono_ns()
    again_ns = began_ns + 15 * 10**9
    assert told == [None, (began_ns, 500), (began_ns, 3000), (again_ns, 10), (again_ns, 30)]


def test_what_was_drawn_while_asleep_is_a_gap(bmc: RedfishServer) -> None:
    """8 h at 5 W: on the clock that stands still meanwhile it would be 29 kW."""
    clock, asking, integral = Clock(), reader(bmc), Integral(0.0, 5.0)
    asking.clock = clock
    joules, drawn_j = 0.0, []
    for grows_j, asleep_s in ((0, 0), (1000, 0), (1000, 0), (1000 + 8 * 3600 * 5, 8 * 3600),
                              (1000, 0), (1500, 0)):  # fmt: skip
        clock.mono += 5 * 10**9
        clock.suspend(asleep_s)
        joules += grows_j
        bmc.put("/Chassis/1U/EnvironmentMetrics", EnergyJoules={"Reading": joules})
        try:
            sample = asking.ask()
        except SensorFailed as failed:
            assert asleep_s and "too long" in str(failed)
            integral.failed()
            continue
        if sample and (interval := integral.take(clock.mono_ns(), sample)):
            drawn_j.append(interval.energy_uj / 1e6)
    assert drawn_j == pytest.approx([1000, 1500], abs=0.01)


def test_of_several_energies_none_is_lost_while_another_stands_still(bmc: RedfishServer) -> None:
    bmc.collection("/Chassis", "1U", "jbod")
    bmc.put("/Systems/437XR1138R2", Links={"Chassis": links("/Chassis/1U", "/Chassis/jbod")})
    chassis(bmc, "jbod", None, ["437XR1138R2"])
    asking = reader(bmc)
    drawn_j = 0.0
    for node_j, disks_j in ((0, 0), (1000, 0), (2000, 500), (2000, 1000)):
        bmc.put("/Chassis/1U/EnvironmentMetrics", EnergyJoules={"Reading": node_j})
        bmc.put("/Chassis/jbod/EnvironmentMetrics", EnergyJoules={"Reading": disks_j})
        if (sample := asking.ask()) is not None:
            drawn_j += sample.power_uw * 5 / 1e6
            assert sample.grown_uj == drawn_j * 1e6
        asking.clock.mono += 5 * 10**9  # type: ignore[attr-defined]
    assert drawn_j == 3000
    bmc.put("/Chassis/1U/EnvironmentMetrics", EnergyJoules={"Reading": 1000})
    bmc.put("/Chassis/jbod/EnvironmentMetrics", EnergyJoules={"Reading": 9000})
    with pytest.raises(SensorFailed, match="began again"):
        asking.ask()


# Which chassis


def test_a_sled_and_its_enclosure_are_not_added(bmc: RedfishServer) -> None:
    """Four nodes share the enclosure: its reading is not this node's."""
    names = ["sled1", "sled2", "sled3", "sled4"]
    systems = [f"node{n}" for n in range(1, 5)]
    bmc.collection("/Chassis", "enclosure", *names)
    chassis(bmc, "enclosure", 2000, systems, ChassisType="Enclosure", contains=names)
    for name, system in zip(names, systems, strict=True):
        chassis(bmc, name, 500, [system], ChassisType="Sled", contained_by="enclosure")
    bmc.collection("/Systems", "node2")  # this sled's own controller knows its own system
    bmc.put("/Systems/node2", Links={"Chassis": links("/Chassis/enclosure", "/Chassis/sled2")})
    assert watts(bmc) == 500


def test_an_enclosure_that_names_no_systems_but_holds_others_sleds(bmc: RedfishServer) -> None:
    bmc.collection("/Chassis", "enclosure", "sled1", "sled2")
    chassis(bmc, "enclosure", 900, [], ChassisType="Enclosure", contains=["sled1", "sled2"])
    chassis(bmc, "sled1", 400, ["437XR1138R2"], ChassisType="Sled")
    chassis(bmc, "sled2", 500, ["other"], ChassisType="Sled")
    bmc.put("/Systems/437XR1138R2", Links={})
    assert watts(bmc) == 400


@pytest.mark.parametrize("said_by", ["inner", "outer"])
def test_what_lies_inside_the_node_is_in_its_reading(bmc: RedfishServer, said_by: str) -> None:
    """A GPU tray two levels down, however the controller tells where it lies."""
    bmc.collection("/Chassis", "gpu", "tray", "1U", "jbod")
    bmc.put(
        "/Systems/437XR1138R2",
        Links={"Chassis": links("/Chassis/gpu", "/Chassis/1U", "/Chassis/jbod")},
    )
    inner, outer = said_by == "inner", said_by == "outer"
    chassis(bmc, "gpu", 700, [], **({"contained_by": "tray"} if inner else {}))
    chassis(
        bmc, "tray", 800, [],
        **({"contained_by": "1U"} if inner else {"contains": ["gpu"]}),
    )  # fmt: skip
    chassis(bmc, "1U", 1500, ["437XR1138R2"], **({"contains": ["tray"]} if outer else {}))
    chassis(bmc, "jbod", 120, ["437XR1138R2"], ChassisType="StorageEnclosure")
    assert watts(bmc) == 1620, "the node and the disks beside it"


def test_where_the_outer_one_does_not_measure_the_inner_ones_do(bmc: RedfishServer) -> None:
    bmc.collection("/Chassis", "1U", "a", "b")
    bmc.put(
        "/Systems/437XR1138R2", Links={"Chassis": links("/Chassis/1U", "/Chassis/a", "/Chassis/b")}
    )
    chassis(bmc, "1U", None, ["437XR1138R2"], contains=["a", "b"])
    chassis(bmc, "a", 100, [])
    chassis(bmc, "b", 200, [])
    assert watts(bmc) == 300


def test_one_chassis_and_no_systems(bmc: RedfishServer) -> None:
    del bmc.resources[ROOT]["Systems"]
    assert watts(bmc) == 344


def test_a_controller_of_many_nodes_knows_this_one_by_name(bmc: RedfishServer) -> None:
    bmc.collection("/Systems", "one", "two")
    bmc.collection("/Chassis", "b1", "b2")
    for system, blade, host in (("one", "b1", "n6"), ("two", "b2", "N7.example.org")):
        bmc.put(f"/Systems/{system}", HostName=host, Links={"Chassis": links(f"/Chassis/{blade}")})
    chassis(bmc, "b1", 100, ["one"])
    chassis(bmc, "b2", 200, ["two"])
    assert watts(bmc) == 200
    bmc.put("/Systems/two", HostName=None, Links={"Chassis": links("/Chassis/b2")})
    with pytest.raises(SensorFailed, match=r"serves 2 systems \(one, two\) and none is called 'n7"):
        watts(bmc)
    assert watts(bmc, "b2") == 200, "the operator's word goes before"
    with pytest.raises(SensorFailed, match="names b3; the controller's chassis are b1, b2"):
        watts(bmc, "b2", "b3")


def test_a_chassis_that_falls_silent_makes_no_smaller_sum(bmc: RedfishServer) -> None:
    bmc.collection("/Chassis", "1U", "jbod")
    bmc.put("/Systems/437XR1138R2", Links={"Chassis": links("/Chassis/1U", "/Chassis/jbod")})
    chassis(bmc, "jbod", 120, ["437XR1138R2"])
    asking = reader(bmc)
    sample = asking.ask()
    assert sample is not None and sample.power_uw == 464 * 10**6
    bmc.resources[f"{ROOT}/Chassis/jbod/EnvironmentMetrics"]["PowerWatts"]["Reading"] = None
    with pytest.raises(SensorFailed, match="jbod/EnvironmentMetrics says no power"):
        asking.ask()


def test_circles_of_chassis_end(bmc: RedfishServer) -> None:
    bmc.collection("/Chassis", "1U", "b")
    bmc.put("/Systems/437XR1138R2", Links={"Chassis": links("/Chassis/1U", "/Chassis/b")})
    chassis(bmc, "1U", 100, [], contained_by="b")
    chassis(bmc, "b", 100, [], contained_by="1U")
    assert watts(bmc) == 100


# Who is let in


def test_a_session_is_opened_used_and_ended(bmc: RedfishServer, tmp_path: Path) -> None:
    bmc.asks = "session"
    asking = reader(bmc, user=USER, password_file=password_file(tmp_path))
    asking.ask()
    asking.ask()
    assert bmc.opened == 1 and len(bmc.sessions) == 1
    asking.client.close()
    assert bmc.sessions == {}, "controllers hold few sessions"
    assert bmc.asked[-1] == f"DELETE {ROOT}/SessionService/Sessions/1"
    assert not any("Authorization" in headers for headers in bmc.headers)


def test_a_session_that_timed_out_is_opened_again(bmc: RedfishServer, tmp_path: Path) -> None:
    bmc.asks = "session"
    asking = reader(bmc, user=USER, password_file=password_file(tmp_path))
    asking.ask()
    bmc.sessions.clear()
    asking.ask()
    assert bmc.opened == 2


def test_a_controller_without_sessions_gets_basic(bmc: RedfishServer, tmp_path: Path) -> None:
    bmc.asks = "basic"
    assert watts(bmc, user=USER, password_file=password_file(tmp_path)) == 344
    assert [one for one in bmc.asked if one.startswith("POST")] == [
        f"POST {ROOT}/SessionService/Sessions"
    ]


def test_a_controller_that_refuses_sessions_and_offers_basic_gets_it(
    bmc: RedfishServer, tmp_path: Path
) -> None:
    bmc.asks, bmc.challenges = "basic", True
    asking = reader(bmc, user=USER, password_file=password_file(tmp_path))
    asking.ask()
    asking.ask()
    assert _sent(bmc) == (1, len(bmc.asked) - 2), "sessions are tried once"
    bmc.odd[METRICS] = (401, {}, b"")  # it restarts, say
    with pytest.raises(SensorDenied, match="refuses user"):
        asking.ask()
    bmc.odd.clear()
    assert asking.ask() is not None


@pytest.mark.parametrize("challenges", [False, True])
@pytest.mark.parametrize("asks", ["session", "basic"])
def test_a_wrong_password_is_said_rarely_and_never_shown(
    bmc: RedfishServer, tmp_path: Path, asks: str, challenges: bool
) -> None:
    bmc.asks, bmc.challenges = asks, challenges
    file = password_file(tmp_path, "not-the-one")
    asking = reader(bmc, user=USER, password_file=file)
    for attempt in range(3):
        del bmc.asked[:], bmc.headers[:]
        with pytest.raises(SensorDenied, match="refuses user") as refused:
            asking.ask()
        assert "not-the-one" not in str(refused.value)
        posts, basics = _sent(bmc)
        # Each brings the account nearer to being locked. Who answers 405 did not look.
        looked_at = posts * (asks == "session" or challenges) + basics
        assert looked_at == (2 if challenges and attempt != 1 else 1)
    password_file(tmp_path)
    assert asking.ask() is not None, "a corrected file needs no restart"


def _sent(bmc: RedfishServer) -> tuple[int, int]:
    """How often user and password were told: for a session, with a request."""
    posts = sum(one.startswith("POST") for one in bmc.asked)
    return posts, sum("Authorization" in headers for headers in bmc.headers)


def test_who_gives_no_name_is_told_to(bmc: RedfishServer) -> None:
    bmc.asks = "session"
    with pytest.raises(SensorDenied, match="Set redfish_user and redfish_password_file"):
        watts(bmc)


def test_a_password_that_all_may_read_is_not_sent(bmc: RedfishServer, tmp_path: Path) -> None:
    file = password_file(tmp_path)
    file.chmod(0o644)
    with pytest.raises(SensorDenied, match="chmod 0600"):
        watts(bmc, user=USER, password_file=file)
    with pytest.raises(SensorDenied, match="No such file"):
        watts(bmc, user=USER, password_file=tmp_path / "none")
    assert bmc.asked == []


# TLS


def test_only_a_certificate_that_the_operator_trusts(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path)
    pair = authority.issue("bmc", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    with redfish_server(context) as server:
        assert watts(server, ca=authority.cert) == 344
        assert watts(server, insecure=True) == 344
        for ca in (stranger.cert, None):
            with pytest.raises(SensorFailed, match=r"certificate is not accepted.*Set redfish_ca"):
                watts(server, ca=ca)
        with pytest.raises(SensorFailed, match=r"redfish_ca = .*no PEM certificates"):
            watts(server, ca=pair.key)
        server.url = server.url.replace("127.0.0.1", "localhost")
        with pytest.raises(SensorFailed, match=r"mismatch.*Set redfish_url"):
            watts(server, ca=authority.cert)


# One connection


@pytest.mark.parametrize("tls", [False, True])
def test_one_connection_is_kept_and_replaced_where_the_controller_closed_it(
    tmp_path: Path, tls: bool
) -> None:
    """A handshake costs a controller a second of its processor; many close what was idle 5 s."""
    context, authority = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), Authority(tmp_path)
    pair = authority.issue("bmc", "127.0.0.1")
    context.load_cert_chain(pair.cert, pair.key)
    with redfish_server(context if tls else None) as bmc:
        bmc.asks = "session"
        asking = reader(bmc, user=USER, password_file=password_file(tmp_path), ca=authority.cert)
        asking.ask()
        connections = len(bmc.connections)
        asking.ask()
        assert len(bmc.connections) == connections == 2, "one more to log in"
        bmc.hang_up()
        assert asking.ask() is not None
        bmc.odd[METRICS] = (500, {"Connection": "close"}, b"")
        with pytest.raises(SensorFailed, match="answered 500"):
            asking.ask()
        bmc.odd.clear()
        assert asking.ask() is not None
        bmc.hang_up()
        asking.client.close()
        assert (bmc.opened, bmc.sessions) == (1, {}), "it logs out all the same"


def test_one_who_closes_after_each_answer_is_logged_in_to(
    bmc: RedfishServer, tmp_path: Path
) -> None:
    bmc.asks, bmc.closes_after = "session", ("GET", "POST")
    asking = reader(bmc, user=USER, password_file=password_file(tmp_path))
    for _ in range(2):
        assert asking.ask() is not None
    assert bmc.opened == 1


def test_a_password_is_not_sent_again_where_no_answer_came(
    bmc: RedfishServer, tmp_path: Path
) -> None:
    """It may have been taken, and controllers hold few sessions."""
    bmc.asks, bmc.mute = "session", ("POST",)
    with pytest.raises(SensorFailed, match="RemoteDisconnected"):
        watts(bmc, user=USER, password_file=password_file(tmp_path))
    assert _sent(bmc) == (1, 0)


def test_an_answer_in_pieces(bmc: RedfishServer) -> None:
    body = b'b\r\n{"PowerWatt\r\n14\r\ns": {"Reading": 77}}\r\n0\r\n\r\n'
    bmc.odd[METRICS] = (200, {"Transfer-Encoding": "chunked"}, body)
    asking = reader(bmc)
    for _ in range(2):
        sample = asking.ask()
        assert sample is not None and sample.power_uw == 77 * 10**6
    assert len(bmc.connections) == 1


# Slowness, errors, nonsense


def test_a_controller_that_is_slow_is_waited_for(bmc: RedfishServer) -> None:
    bmc.slow_s = 0.1
    assert watts(bmc) == 344
    bmc.slow_s = 0.4
    with pytest.raises(SensorFailed, match=r"no answer in 0\.2 s"):
        reader(bmc, within_s=0.2).ask()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextlib.contextmanager
def trickling(begin: bytes, piece: bytes, every_s: float) -> Iterator[str]:
    """The URL of one who answers with `begin`, then `piece` 200 times."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(begin)
                for _ in range(200):
                    time.sleep(every_s)
                    connection.sendall(piece)

        thread = threading.Thread(target=trickle)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("begin", "piece", "every_s"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" ", 0.05),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{", b" ", 0.9),
        (b"HTTP/1.1 200 OK\r\nX: ", b"a", 0.05),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
        (CHUNKED + b"2;", b"a", 0.05),
        (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: a\r\n", 0.05),
    ],
    ids=["body", "halting body", "header", "continue", "chunk", "trailer"],
)
def test_an_answer_that_trickles_is_not_waited_for_without_end(
    begin: bytes, piece: bytes, every_s: float
) -> None:
    """Every byte comes in time, or hardly so; the whole does not."""
    with trickling(begin, piece, every_s) as url:
        asking = RedfishClient(Access(url), 1.0)
        before_s = time.monotonic()
        with pytest.raises(SensorFailed, match="no answer in 1 s"):
            asking.get(ROOT)
        assert time.monotonic() - before_s < 1.6
        asking.close()


LONG = b"a" * 60_000


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", LONG),
        (b"", b"HTTP/1.1 100 Continue\r\nX: " + LONG + b"\r\n\r\n"),
        (CHUNKED, b"1;" + LONG + b"\r\n \r\n"),
        (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: " + LONG + b"\r\n"),
    ],
    ids=["body", "continue", "chunk", "trailer"],
)
def test_an_answer_is_bounded_as_a_whole(begin: bytes, piece: bytes) -> None:
    with trickling(begin, piece, 0.0) as url:
        asking = RedfishClient(Access(url), 30.0)
        with pytest.raises(SensorFailed, match="larger than 1000000 bytes"):
            asking.get(ROOT)
        asking.close()


def test_a_busy_one_says_when(bmc: RedfishServer) -> None:
    bmc.odd[METRICS] = (503, {"Retry-After": "17"}, b"")
    with pytest.raises(Later) as busy:
        watts(bmc)
    assert busy.value.after_s == 17
    bmc.odd[METRICS] = (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"")
    with pytest.raises(Later) as busy:
        watts(bmc)
    assert busy.value.after_s == 0


def test_redirects_stay_on_the_host(bmc: RedfishServer) -> None:
    """Some answer /Chassis/1U with /Chassis/1U/; the token must not go anywhere else."""
    bmc.odd[f"{ROOT}/Chassis"] = (308, {"Location": f"{ROOT}/Moved"}, b"")
    bmc.collection("/Moved")
    bmc.put("/Moved", Members=links("/Chassis/1U"))
    assert watts(bmc) == 344
    with redfish_server() as other:
        for where in (other.url + ROOT, other.url[5:] + ROOT, "file:///etc/passwd", ""):
            bmc.odd[f"{ROOT}/Chassis"] = (302, {"Location": where}, b"")
            with pytest.raises(SensorFailed, match="not on the same host"):
                watts(bmc)
        bmc.odd[f"{ROOT}/Chassis"] = (302, {"Location": f"{ROOT}/Chassis"}, b"")
        with pytest.raises(SensorFailed, match="redirected again and again"):
            watts(bmc)
        bmc.odd.clear()
        bmc.resources[f"{ROOT}/Chassis"]["Members"] = [{"@odata.id": other.url + ROOT}]
        bmc.put("/Systems/437XR1138R2", Links={})
        with pytest.raises(SensorFailed, match="not on the same host"):
            watts(bmc)
        assert other.asked == []


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ((500, {}, b"oops"), "answered 500"),
        ((200, {}, b"<html>"), "not JSON"),
        ((200, {}, b'{"PowerWatts": {"Rea'), "not JSON"),
        ((200, {}, b"[" * 200_000), "not JSON"),
        ((200, {}, b'{"PowerWatts": {"Reading": ' + b"9" * 9000 + b"}}"), "not JSON"),
        ((200, {}, b"\xff\xfe\x00"), "not JSON"),
        ((200, {}, b"[]"), "no JSON object"),
        ((200, {}, b" " * 1_500_000), "larger than 1000000 bytes"),
        ((200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * 10**7)), "compressed, unasked"),
        ((200, {"Content-Length": "900", "Connection": "close"}, b"{}"), "IncompleteRead"),
        ((200, {"Transfer-Encoding": "chunked"}, b"zz\r\n"), "IncompleteRead"),
    ],
)  # fmt: skip
def test_nonsense_costs_the_reading_alone(
    bmc: RedfishServer, answer: tuple[int, dict[str, str], bytes], complaint: str
) -> None:
    asking = reader(bmc)
    asking.ask()
    bmc.odd[METRICS] = answer
    with pytest.raises(SensorFailed, match=complaint) as failed:
        asking.ask()
    assert len(str(failed.value)) < 500
    bmc.odd.clear()
    assert asking.ask() is not None


def test_a_resource_that_went_is_looked_for_again(bmc: RedfishServer) -> None:
    asking = reader(bmc)
    asking.ask()
    old_power(bmc, "1U", {"PowerConsumedWatts": 222})
    del bmc.resources[METRICS]
    with pytest.raises(SensorFailed, match="is not there"):
        asking.ask()
    sample = asking.ask()
    assert sample is not None and sample.power_uw == 222 * 10**6


def test_nobody_there_is_a_failure() -> None:
    with redfish_server() as server:
        pass
    with pytest.raises(SensorFailed, match="Connection refused"):
        watts(server)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["@odata.id", "Members", "Links", "Chassis", "ComputerSystems", "Reading",
                 "PowerWatts", "PowerControl", "PowerConsumedWatts", "PhysicalContext",
                 "EnergyJoules", "EnvironmentMetrics", "Power", "Contains", "ContainedBy",
                 "ChassisType", "HostName", "Systems", "DataSourceUri", "PowerSupplies",
                 "PowerInputWatts", "PowerMetrics", "AverageConsumedWatts", "IntervalInMin",
                 "PowerSubsystem", "Metrics", "InputPowerWatts", "Status", "State"]
            ),
            inner | st.sampled_from([f"{ROOT}/Chassis", f"{ROOT}/Chassis/1U", METRICS]),
            max_size=4,
        )
    ),
    max_leaves=12,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_is_a_reading_or_a_failure(data: st.DataObject) -> None:
    """One resource after the other is replaced by something of the right names."""
    server = RedfishServer.__new__(RedfishServer)
    server.resources = {}
    node(server)
    path = data.draw(st.sampled_from(sorted(server.resources)))
    value = data.draw(st.dictionaries(st.sampled_from(
        ["Members", "Links", "Chassis", "Systems", "PowerWatts", "PowerControl",
         "EnvironmentMetrics", "Power", "ChassisType", "HostName", "EnergykWh", "PowerSupplies",
         "PowerSubsystem", "Metrics", "Reading", "InputPowerWatts"]), JSON
    ))  # fmt: skip
    server.resources[path] = value

    def get(asked: str) -> dict[str, Any]:
        found = server.resources.get(asked.rstrip("/"))
        if found is None:
            raise SensorFailed(f"{asked}: is not there")
        return dict(found)

    try:
        for meter in meters(get, "n7"):
            reading = meter.read(get)
            assert reading.watts is None or 0 < reading.watts <= 1e5
    except SensorFailed:
        pass
    for read in (environment, power, sensor, supplies):
        assert read(value).watts is None or 0 < (read(value).watts or 0) <= 1e5
    json.dumps(value, default=str)


# As a sensor


def test_the_tick_never_waits_and_the_session_ends_with_it(
    bmc: RedfishServer, tmp_path: Path
) -> None:
    bmc.asks, bmc.slow_s = "session", 0.05
    config = AgentConfig(
        redfish_url=bmc.url, redfish_user=USER, redfish_password_file=password_file(tmp_path)
    )
    access = Access(
        config.redfish_url, config.redfish_user, config.redfish_password_file, insecure=False
    )
    sensor = redfish_power(access, Clock(), ("1U",))
    assert (sensor.device, sensor.component, sensor.quality) == ("platform", "other", "derived")
    assert bmc.asked == []
    with pytest.raises(SensorFailed, match="not answered yet"):
        sensor.sample()
    assert _eventually(sensor) == 344 * 10**6
    sensor.close()
    assert bmc.sessions == {}
    assert not [one for one in threading.enumerate() if one.name == "Redfish"]


def _eventually(sensor: SlowPlatform) -> int:
    for _ in range(1000):
        try:
            return sensor.sample().power_uw
        except SensorFailed:
            time.sleep(0.01)
    return sensor.sample().power_uw


@pytest.mark.parametrize(
    "said",
    [
        {"redfish_url": "bmc-n7"},
        {"redfish_url": "ftp://bmc"},
        {"redfish_url": "https://"},
        {"redfish_url": "https://bmc:99999"},
        {"redfish_url": "https://root:hunter2@bmc"},
        {"redfish_url": "http://10.0.0.7"},
        {"redfish_url": "https://bmc", "redfish_user": "root"},
        {"redfish_url": "https://bmc", "redfish_password_file": Path("/p")},
        {"ipmi": "maybe"},
    ],
)
def test_settings_that_cannot_hold_are_refused(said: dict[str, Any]) -> None:
    with pytest.raises(BadSetting) as refused:
        AgentConfig(**said)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "said",
    [
        {"redfish_url": "https://bmc-n7:8443/redfish/v1"},
        {"redfish_url": "https://[fe80::1]"},
        {"redfish_url": "http://127.0.0.1:8000"},
        {"redfish_url": "http://10.0.0.7", "redfish_insecure": True},
        {"ipmi": "off"},
    ],
)
def test_settings_that_hold(said: dict[str, Any]) -> None:
    AgentConfig(**said)

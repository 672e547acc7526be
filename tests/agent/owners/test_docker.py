"""Containers by Docker's socket: a real server on a socket in a folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from joulegram.agent.owners.docker import Docker, known_of
from joulegram.agent.owners.known import ALL_GPUS, UNKNOWN, Known
from joulegram.agent.workloads import Owner
from tests.agent.owners.answered import CID, CONTAINER
from tests.agent.owners.local_servers import ok, serving_unix
from tests.servers import wait_until

WEB = Known(
    project="shop",
    name="web-1",
    attributes={"com.docker.compose.project": "shop", "com.docker.compose.service": "web"},
    reserved_cpus=1.5,
    reserved_gpus=("0", "GPU-3a23c669-1f69-c64e-cf85-44e9b07e7a2a"),
)
OWNER = Owner("container", CID)
OTHER = "e1" * 32


class Daemon:
    """Containers that it lists, and what it says of each."""

    def __init__(self, containers: dict[str, Any]) -> None:
        self.containers = containers
        self.odd: dict[str, bytes] = {}

    def __call__(self, target: str, headers: dict[str, str]) -> bytes:
        if target in self.odd:
            return self.odd[target]
        if target == "/containers/json":
            return ok(json.dumps([{"Id": cid} for cid in self.containers]).encode())
        container = self.containers.get(target.split("/")[2])
        if container is None:
            return ok(b'{"message": "No such container"}', "404 Not Found")
        return ok(json.dumps(container).encode())


def docker(path: Path, **more: Any) -> Docker:
    return Docker(path, **{"gap_s": 0.02, "every_s": 60.0, "timeout_s": 5.0, **more})


def answered(source: Docker, owner: Owner = OWNER) -> Known:
    wait_until(lambda: source.about(owner) is not None, owner.id)
    known = source.about(owner)
    assert known is not None
    return known


def test_a_container_is_known_once_the_daemon_has_answered(tmp_path):
    with serving_unix(Daemon({CID: CONTAINER}), tmp_path / "s") as heard:
        source = docker(tmp_path / "s", every_s=0.02)
        assert source.about(OWNER) is None
        assert answered(source) == WEB
        assert source.held() == [OWNER]
        assert source.about(Owner("slurm", "1")) is None
        wait_until(lambda: len(heard.requests) > 5, "more rounds")
        source.close()
        # A container's details are asked for once.
        assert sum(target == f"/containers/{CID}/json" for target, _ in heard.requests) == 1


def test_a_container_that_is_gone_holds_nothing_and_keeps_its_name(tmp_path):
    daemon = Daemon({CID: CONTAINER})
    with serving_unix(daemon, tmp_path / "s"):
        source = docker(tmp_path / "s", every_s=0.02)
        answered(source)
        daemon.containers = {}
        wait_until(lambda: source.held() == [], "its end")
        assert answered(source) == WEB
        source.close()


def test_one_that_cannot_be_read_stands_before_no_other(tmp_path):
    daemon = Daemon({OTHER: CONTAINER, CID: CONTAINER})
    daemon.odd[f"/containers/{OTHER}/json"] = ok(b" " * (2 << 20))
    with serving_unix(daemon, tmp_path / "s"):
        source = docker(tmp_path / "s")
        assert answered(source) == WEB
        source.close()


def test_one_that_ended_meanwhile_has_no_name(tmp_path):
    daemon = Daemon({CID: CONTAINER})
    daemon.odd[f"/containers/{CID}/json"] = ok(b"{}", "404 Not Found")
    with serving_unix(daemon, tmp_path / "s"):
        source = docker(tmp_path / "s")
        assert answered(source) == UNKNOWN
        source.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ok(b"", "500 Internal Server Error"), "500"),
        (ok(b"nonsense"), "JSON"),
        (b"\x00\xff", "docker_socket"),
        (ok(b" " * (17 << 20)), "more than"),
    ],
)
def test_what_is_no_answer_costs_the_names_alone(tmp_path, answer, words):
    daemon = Daemon({CID: CONTAINER})
    daemon.odd["/containers/json"] = answer
    with serving_unix(daemon, tmp_path / "s"):
        source = docker(tmp_path / "s")
        assert source.about(OWNER) is None
        wait_until(lambda: words in source.asking.trouble, words)
        daemon.odd.clear()
        assert answered(source) == WEB
        source.close()


@pytest.mark.parametrize("listed", [b"{}", b"null", b'[null, 1, {"Id": 7}, {"Id": "../../x"}]'])
def test_odd_lists_are_no_containers(tmp_path, listed):
    daemon = Daemon({})
    daemon.odd["/containers/json"] = ok(listed)
    with serving_unix(daemon, tmp_path / "s") as heard:
        source = docker(tmp_path / "s")
        source.about(OWNER)
        wait_until(lambda: len(heard.requests) == 1, "the question")
        assert source.about(OWNER) is None
        source.close()
        assert [target for target, _ in heard.requests] == ["/containers/json"]


def test_a_socket_that_nobody_named_may_be_missing(tmp_path):
    named, unnamed = docker(tmp_path / "s"), docker(tmp_path / "s", if_there=True)
    for source in (named, unnamed):
        source.about(OWNER)
    wait_until(lambda: "docker_socket" in named.asking.trouble, "trouble")
    assert unnamed.asking.trouble == ""
    with serving_unix(Daemon({CID: CONTAINER}), tmp_path / "s"):
        unnamed.close()
        late = docker(tmp_path / "s", if_there=True)
        assert answered(late) == WEB
        late.close()
    named.close()


def host(**changes: Any) -> dict[str, Any]:
    return {**CONTAINER, "HostConfig": {"Runtime": "runc", **changes}}


@pytest.mark.parametrize(
    ("changes", "cpus"),
    [
        ({"NanoCpus": 500_000_000}, 0.5),
        ({"CpuQuota": 150_000, "CpuPeriod": 100_000}, 1.5),
        ({"CpuQuota": 50_000, "CpuPeriod": 0}, 0.5),
        ({"CpuQuota": -1, "CpusetCpus": "0-3,8"}, 5.0),
        ({}, 0.0),
    ],
)
def test_reserved_cpus(changes, cpus):
    assert known_of(host(**changes)).reserved_cpus == cpus


@pytest.mark.parametrize(
    ("request_", "gpus"),
    [
        ({"Driver": "", "Count": -1, "DeviceIDs": None, "Capabilities": [["gpu"]]}, (ALL_GPUS,)),
        ({"Driver": "nvidia", "Count": 2, "Capabilities": [["gpu"]]}, ("0", "1")),
        ({"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-a", "vendor.com/net=x"]}, ("GPU-a",)),
        ({"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}, (ALL_GPUS,)),
        ({"Driver": "fpga", "Count": 1, "Capabilities": [["fpga"]]}, ()),
    ],
)
def test_reserved_gpus(request_, gpus):
    assert known_of(host(DeviceRequests=[request_])).reserved_gpus == gpus


def test_a_gpu_by_the_runtime_of_old():
    assert known_of(host(Runtime="nvidia")).reserved_gpus == ("GPU-aaaa",)
    assert known_of(host(Runtime="runc")).reserved_gpus == ()

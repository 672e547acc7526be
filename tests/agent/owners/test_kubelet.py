"""Pods by a kubelet: a real server over TLS that answers, refuses, is slow, and talks nonsense."""

import json
import os
import re
import ssl
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from joulegram.agent.config import AgentConfig
from joulegram.agent.errors import BadSetting
from joulegram.agent.owners.known import Known
from joulegram.agent.owners.kubelet import TRIES, Kubelet, pods_of
from joulegram.agent.workloads import Owner
from tests.agent.owners.answered import MIRROR, POD, PODS, STATIC
from tests.agent.owners.local_servers import Heard, ok, serving_tls
from tests.agent.owners.test_batch import let_go, starts
from tests.certificates import Authority
from tests.servers import wait_until

TRAINER = Known(
    project="ml",
    name="trainer-0",
    attributes={"app": "trainer", "team": "vision"},
    reserved_cpus=4.0,  # two containers and a sidecar; what fetched the data is done
)
ETCD = Known(
    project="kube-system",
    name="etcd-n1",
    attributes={"component": "etcd"},
    reserved_cpus=0.1,
)
ALL = ok(json.dumps(PODS).encode())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def context(authority: Authority, *names: str) -> ssl.SSLContext:
    pair = authority.issue("kubelet", *(names or ("localhost",)))
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pair.cert, pair.key)
    return made


def kubelet(
    heard: Heard,
    tmp_path: Path,
    authority: Authority | None,
    token_file: Path | None = None,
    insecure: bool = False,
    **more: float,
) -> Kubelet:
    return Kubelet(
        tmp_path / "proc",
        heard.where,
        token_file,
        authority.cert if authority else None,
        insecure,
        **{"gap_s": 0.02, "timeout_s": 5.0, **more},  # type: ignore[arg-type]
    )


def _troubled(source: Kubelet, word: str) -> bool:
    return word in source.asking.trouble.lower()


def answered(source: Kubelet, uid: str) -> Known:
    owner = Owner("kubernetes", uid)
    wait_until(lambda: source.about(owner) is not None, f"pod {uid}")
    known = source.about(owner)
    assert known is not None
    return known


def test_pods_are_known_once_the_kubelet_has_answered(tmp_path, authority):
    token = tmp_path / "token"
    token.write_text("first\n")
    with serving_tls(lambda target, headers: ALL, context(authority)) as heard:
        source = kubelet(heard, tmp_path, authority, token, every_s=0.05)
        assert source.about(Owner("kubernetes", POD)) is None
        assert answered(source, POD) == TRAINER
        assert answered(source, STATIC) == answered(source, MIRROR) == ETCD
        assert source.about(Owner("slurm", "1")) is None
        target, headers = heard.requests[0]
        assert (target, headers["authorization"]) == ("/pods", "Bearer first")
        token.write_text("second")
        wait_until(
            lambda: heard.requests[-1][1]["authorization"] == "Bearer second", "the new token"
        )
        source.close()


def test_chunks_are_put_together(tmp_path, authority):
    body = json.dumps(PODS).encode()
    with serving_tls(lambda *_: ok(body, chunked=True), context(authority)) as heard:
        source = kubelet(heard, tmp_path, authority)
        assert answered(source, POD) == TRAINER
        source.close()


def test_a_pod_that_is_gone_keeps_its_name_for_a_while(tmp_path, authority):
    with serving_tls(lambda *_: ALL, context(authority)) as heard:
        source = kubelet(heard, tmp_path, authority, every_s=0.02)
        assert answered(source, POD) == TRAINER
        heard.respond = lambda *_: ok(b'{"items": []}')
        wait_until(lambda: not source._pods, "an empty answer")
        assert answered(source, POD) == TRAINER
        source.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ok(b"no", "401 Unauthorized"), "401.*kubelet_token_file"),
        (ok(b"no", "403 Forbidden"), "403.*nodes/proxy"),
        (ok(b"no", "503 Service Unavailable"), "503"),
        (ok(b"", "302 Found\r\nLocation: https://127.0.0.1:1/pods"), "302"),
        (ok(b"<html>"), "JSON"),
        (ok(b"[" * 100_000), "JSON"),
        (ok(b" " * 3_000_000), "more than 2000000 bytes"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH"),
        (b"", "localhost"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", "localhost"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "localhost"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 5000 + b"\r\n", "headers"),
        (b"HTTP/1.1 \xff\xfe OK\r\n\r\n", "localhost"),
    ],
)
def test_what_is_no_answer_costs_the_names_alone(tmp_path, authority, answer, words):
    with serving_tls(lambda *_: answer, context(authority)) as heard:
        source = kubelet(heard, tmp_path, authority, most=2_000_000)
        assert source.about(Owner("kubernetes", POD)) is None
        wait_until(lambda: source.asking.trouble != "", "trouble")
        assert re.search(words, source.asking.trouble)
        assert source.about(Owner("kubernetes", POD)) is None
        heard.respond = lambda *_: ALL
        assert answered(source, POD) == TRAINER
        source.close()


def test_one_that_drips_is_given_up_in_time(tmp_path, authority):
    with serving_tls(lambda *_: ALL, context(authority), drip_s=0.05) as heard:
        source = kubelet(heard, tmp_path, authority, timeout_s=3.0)
        began = time.monotonic()
        source.about(Owner("kubernetes", POD))
        assert time.monotonic() - began < 2.5  # nobody waits for it
        wait_until(lambda: "no answer within 3 s" in source.asking.trouble, "trouble")
        source.close()


def test_one_that_never_answers_does_not_hold_up_the_end(tmp_path, authority):
    free = threading.Event()
    with serving_tls(lambda *_: b"" * free.wait(30.0), context(authority)) as heard:
        source = kubelet(heard, tmp_path, authority, timeout_s=30.0)
        source.about(Owner("kubernetes", POD))
        wait_until(lambda: bool(heard.requests), "the question")
        began = time.monotonic()
        source.close()
        assert time.monotonic() - began < 20.0  # it would have waited 30
        free.set()


def test_another_authority_or_name_is_not_trusted(tmp_path, authority):
    other = Authority(tmp_path / "other")
    other.folder.mkdir()
    for server, ca in ((context(other), authority), (context(authority, "n7"), authority)):
        with serving_tls(lambda *_: ALL, server) as heard:
            source = kubelet(heard, tmp_path, ca)
            source.about(Owner("kubernetes", POD))
            wait_until(partial(_troubled, source, "certificate"), "trouble")
            source.close()
            assert heard.requests == []
            told = kubelet(heard, tmp_path, None, insecure=True)
            assert answered(told, POD) == TRAINER
            told.close()


@pytest.mark.parametrize("content", [None, "", "two\nlines", "ümlaut"])
def test_a_token_that_is_none_is_named(tmp_path, authority, content):
    token = tmp_path / "token"
    if content is not None:
        token.write_text(content)
    with serving_tls(lambda *_: ALL, context(authority)) as heard:
        source = kubelet(heard, tmp_path, authority, token)
        source.about(Owner("kubernetes", POD))
        wait_until(lambda: "kubelet_token_file" in source.asking.trouble, "trouble")
        source.close()
        assert heard.requests == []


def test_a_file_of_authorities_that_is_none_is_named(tmp_path, authority):
    (tmp_path / "bad.pem").write_text("not a certificate")
    source = Kubelet(tmp_path, "https://localhost:1", None, tmp_path / "bad.pem", False)
    source.about(Owner("kubernetes", POD))
    wait_until(lambda: "kubelet_ca" in source.asking.trouble, "trouble")
    source.close()


@pytest.mark.parametrize(
    ("visible", "named"),
    [
        (["GPU-aa,GPU-bb"], ("GPU-aa", "GPU-bb")),
        (["", "GPU-aa", "GPU-bb"], ("GPU-aa", "GPU-bb")),  # one each in two containers
        (["MIG-1,MIG-2"], ("MIG-1", "MIG-2")),
        (["all"], ()),
        (["void"], ()),
        (["0,1,2,3"], ()),  # more than were granted: an image's own word
        (["GPU-aa"], ()),
    ],
)
def test_gpus_are_those_that_the_device_plugin_named(tmp_path, authority, visible, named):
    owner = Owner("kubernetes", POD)
    with serving_tls(lambda *_: ALL, context(authority)) as heard:
        source = kubelet(heard, tmp_path, authority)
        for pid, value in enumerate(visible, 50):
            starts(tmp_path / "proc", pid, {"NVIDIA_VISIBLE_DEVICES": value})
            source.meet(owner, pid, 1)
        answered(source, POD)
        source.about(owner)
        wait_until(lambda: not source._starts._pending, "the looks")
        known = source.about(owner)
        assert known is not None
        assert known.reserved_gpus == named
        assert source.held() == ([owner] if named else [])
        source.close()


@pytest.mark.parametrize("pods", [1, 40])
def test_pods_whose_reads_hang_cost_no_other_namespace_its_gpus(tmp_path, authority, pods):
    """An environment is its process's memory, which may lie on a file system that never answers."""
    (trainer,) = (pod for pod in PODS["items"] if pod["metadata"]["uid"] == POD)
    hanging = [Owner("kubernetes", f"{n:08x}{POD[8:]}") for n in range(pods)]
    listed = [trainer] + [
        {**trainer, "metadata": {"uid": owner.id, "name": f"h{n}", "namespace": "hang"}}
        for n, owner in enumerate(hanging)
    ]
    pipes = []
    answer = ok(json.dumps({"items": listed}).encode())
    with serving_tls(lambda *_: answer, context(authority)) as heard:
        source = kubelet(heard, tmp_path, authority)
        for pid, owner in enumerate([owner for owner in hanging for _ in range(TRIES)], 1000):
            starts(tmp_path / "proc", pid, b"")
            pipes.append(tmp_path / f"proc/{pid}/environ")
            pipes[-1].unlink()
            os.mkfifo(pipes[-1])  # to open it hangs
            source.meet(owner, pid, 1)
        try:
            for owner in hanging:
                answered(source, owner.id)
            starts(tmp_path / "proc", 50, {"NVIDIA_VISIBLE_DEVICES": "GPU-aa,GPU-bb"})
            source.meet(Owner("kubernetes", POD), 50, 1)

            def named() -> bool:
                known = source.about(Owner("kubernetes", POD))
                return known is not None and known.reserved_gpus == ("GPU-aa", "GPU-bb")

            wait_until(named, "the other pod's GPUs", timeout_s=30)
        finally:
            let_go(pipes)
            source.close()


def test_a_pod_that_has_ended_holds_nothing():
    ended = {**PODS["items"][0], "status": {"phase": "Succeeded"}}
    assert not pods_of({"items": [ended]})[POD].running


@pytest.mark.parametrize(
    "url", ["10.0.0.1:10250", "ftp://n1", "https://", "https://a:b@n1:10250", "https://n1:x"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(BadSetting, match="kubelet_url"):
        AgentConfig(node="n1", kubelet_url=url)


def test_a_token_never_leaves_in_the_clear(tmp_path):
    with pytest.raises(BadSetting, match="without TLS"):
        AgentConfig(node="n1", kubelet_url="http://10.0.0.1:10255", kubelet_token_file=tmp_path)
    AgentConfig(node="n1", kubelet_url="http://127.0.0.1:8001", kubelet_token_file=tmp_path)
    with pytest.raises(BadSetting, match="slurm"):
        AgentConfig(node="n1", slurm="perhaps")

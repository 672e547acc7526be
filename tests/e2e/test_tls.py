"""Agent and collector as they are shipped, over mutual TLS with tokens, and nothing secret said."""

import re
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.certificates import Authority, token_file
from tests.servers import free_port, joulegram, running, wait_until

AGENT_TOKEN = "f00dfeedf00dfeed-agent-token"
READ_TOKEN = "cafebabecafebabe-read-token"


def agent_flags(folder: Path, collector: str, http: str, *flags: object) -> list[str]:
    return joulegram(
        "agent", "--node", "n1", "--state", folder / "spool", "--collector", collector,
        "--agent-http", http, "--tick", "1", "--window", "1", *map(str, flags),
    )  # fmt: skip


def test_a_whole_run_over_mutual_tls_says_no_secret(tmp_path: Path) -> None:
    """A wrong name, the right one, renewed certificates on both sides, and a revoked token."""
    authority = Authority(tmp_path)
    theirs = authority.issue("collector", "localhost", "127.0.0.1")
    own = authority.issue("n1", "n2")  # of somebody else at first
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(AGENT_TOKEN)
    agents = token_file(tmp_path / "agents.toml", [(AGENT_TOKEN, 'nodes = ["n?"]')])
    readers = token_file(tmp_path / "readers.toml", [(READ_TOKEN, 'sees = "everything"')])
    listen, http, own_http = (f"127.0.0.1:{free_port()}" for _ in range(3))
    collector_argv = joulegram(
        "collector", "--data", tmp_path / "ledger", "--neso-url", "", "--listen", listen,
        "--http", http, "--tls-cert", theirs.cert, "--tls-key", theirs.key, "--client-ca",
        authority.cert, "--agent-tokens", agents, "--read-tokens", readers,
    )  # fmt: skip
    agent_argv = agent_flags(
        tmp_path, listen, own_http, "--agent-tls-ca", authority.cert, "--agent-tls-cert", own.cert,
        "--agent-tls-key", own.key, "--agent-token-file", token,
    )  # fmt: skip
    heard: list[str] = []

    def stored_uj() -> int:
        answer = httpx.get(
            f"https://{http}/api/v1/report",
            params={"since": "1h", "by": "node"},
            headers={"authorization": f"Bearer {READ_TOKEN}"},
            verify=authority.context(),
            timeout=30,
        )
        heard.append(answer.text + str(answer.headers))
        return int(answer.json()["metered_uj"])

    def own_metric(name: str) -> float:
        text = httpx.get(f"http://{own_http}/metrics", timeout=10).text
        heard.append(text)
        found = re.search(rf"^{re.escape(name)} ([0-9.e+]+)$", text, re.M)
        return float(found[1]) if found else -1.0

    with running(collector_argv, tmp_path, name="collector") as collector:
        wait_until(lambda: "page https://" in collector.said(), "the collector", 60)
        with running(agent_argv, tmp_path, name="agent") as agent:
            wait_until(lambda: "does not speak for node 'n1'" in agent.said(), "the denial", 60)
            assert "PERMISSION_DENIED" in agent.said()
            wait_until(
                lambda: own_metric('joulegram_agent_spool_frames{state="pending"}') >= 3,
                "frames in the spool",
            )
            assert own_metric('joulegram_agent_spool_frames{state="refused"}') == 0
            assert stored_uj() == 0
            # The right certificate is put in place: nothing is restarted, nothing was lost.
            own.replace_with(authority.issue("right", "n1"))
            wait_until(lambda: stored_uj() > 0, "joules in the ledger", 60)
            # The collector's certificate is renewed under an open stream.
            theirs.replace_with(authority.issue("renewed", "localhost", "127.0.0.1"))
            wait_until(lambda: "tls_cert was read again" in collector.said(), "the renewal")
            acked = own_metric("joulegram_agent_frames_acked_total")
            wait_until(lambda: own_metric("joulegram_agent_frames_acked_total") > acked + 2, "more")
            # The token is revoked, and comes back.
            token_file(agents, [])
            wait_until(lambda: "UNAUTHENTICATED" in agent.said(), "the revocation", 60)
            token_file(agents, [(AGENT_TOKEN, 'nodes = ["n1"]')])
            acked = own_metric("joulegram_agent_frames_acked_total")
            wait_until(
                lambda: own_metric("joulegram_agent_frames_acked_total") > acked, "its return", 90
            )
            for argv in (agent_argv, collector_argv):
                shown = ["config" if word in ("agent", "collector") else word for word in argv]
                done = subprocess.run(shown, capture_output=True, text=True, timeout=60, check=True)
                assert "tls_cert" in done.stdout
                heard.append(done.stdout + done.stderr)
            for program in (agent, collector):
                heard.append(Path(f"/proc/{program.pid}/cmdline").read_text())
                heard.append(Path(f"/proc/{program.pid}/environ").read_text(errors="replace"))
            made = own_metric("joulegram_agent_frames_made_total")
            assert made > 0 and own_metric("joulegram_agent_frames_refused_total") <= 0
            assert agent.stop() == 0
        metrics = httpx.get(
            f"https://{http}/metrics",
            headers={"authorization": f"Bearer {READ_TOKEN}"},
            verify=authority.context(),
            timeout=30,
        )
        heard.append(metrics.text)
        assert 'joulegram_intake_denied_total{reason="revoked"}' in metrics.text
        expiry = re.search(r"^joulegram_tls_certificate_expiry\S+ (\S+)$", metrics.text, re.M)
        assert expiry and float(expiry[1]) > 1.7e9
        assert collector.stop() == 0
        heard += [agent.said(), collector.said()]
    everything = "\n".join(heard)
    assert len(everything) > 10_000
    for secret in secrets(authority, theirs.key, own.key):
        assert secret not in everything
    assert "Traceback" not in everything


def secrets(authority: Authority, *keys: Path) -> list[str]:
    """The tokens, and a line of the middle of each key."""
    lines = [key.read_text().splitlines()[1] for key in keys]
    return [AGENT_TOKEN, READ_TOKEN, "PRIVATE KEY", *lines]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("key is public", "chmod 0600"),
        ("key of another", "does not belong to"),
        ("key is none", "no PEM private key"),
        ("certificate is none", "no PEM certificate"),
        ("tokens are no TOML", "is not TOML"),
        ("token without nodes", "nodes says for which nodes"),
        ("tokens anybody may write", "chmod o-w"),
        ("certificate alone", "TLS takes both"),
        ("client_ca alone", "Add tls_cert and tls_key"),
    ],
)
def test_a_collector_says_at_the_start_what_it_cannot_use(
    tmp_path: Path, spoil: str, said: str
) -> None:
    authority = Authority(tmp_path)
    pair, other = authority.issue("c", "127.0.0.1"), authority.issue("o", "127.0.0.1")
    tokens = token_file(tmp_path / "agents.toml", [(AGENT_TOKEN, 'nodes = ["n1"]')])
    flags = ["--tls-cert", pair.cert, "--tls-key", pair.key, "--agent-tokens", tokens]
    match spoil:
        case "key is public":
            pair.key.chmod(0o644)
        case "key of another":
            pair.key.write_bytes(other.key.read_bytes())
        case "key is none":
            pair.key.write_text(AGENT_TOKEN)
        case "certificate is none":
            pair.cert.write_text("nothing")
        case "tokens are no TOML":
            tokens.write_text(AGENT_TOKEN)
        case "token without nodes":
            token_file(tokens, [(AGENT_TOKEN, "")])
        case "tokens anybody may write":
            tokens.chmod(0o666)
        case "certificate alone":
            flags = flags[:2]
        case "client_ca alone":
            flags = ["--client-ca", authority.cert]
    done = subprocess.run(
        joulegram("collector", "--data", tmp_path / "ledger", "--listen", "127.0.0.1:0",
                  "--http", "127.0.0.1:0", *map(str, flags)),
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and done.stderr.count("\n") == 1
    assert AGENT_TOKEN not in done.stderr and "PRIVATE KEY" not in done.stderr
    assert not (tmp_path / "ledger").exists()


def test_tls_that_lets_strangers_in_is_warned_of(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("c", "127.0.0.1")
    flags = ("--tls-cert", pair.cert, "--tls-key", pair.key, "--neso-url", "")
    argv = joulegram(
        "collector", "--data", tmp_path / "ledger", "--listen", f"0.0.0.0:{free_port()}",
        "--http", f"0.0.0.0:{free_port()}", *flags,
    )  # fmt: skip
    with running(argv, tmp_path) as collector:
        wait_until(lambda: "page https://" in collector.said(), "the collector", 60)
        assert "client_ca or agent_tokens" in collector.said()
        assert "read_tokens" in collector.said()


def test_up_says_that_it_is_for_one_machine(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("c", "127.0.0.1")
    done = subprocess.run(
        joulegram("up", "--tls-cert", str(pair.cert), "--tls-key", str(pair.key)),
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "each by itself" in done.stderr

"""Asking the collector's API, and saying plainly when it does not answer."""

import argparse
import ipaddress
import os
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from joulegram.cli.errors import CliError, UsageError

DEFAULT_URL = "http://127.0.0.1:7470"
URL_HELP = f"where the collector's page is (default: JOULEGRAM_URL, or {DEFAULT_URL})"


class Unreachable(CliError):
    """Nobody answers at the URL, or not in time."""


@dataclass(frozen=True, slots=True)
class Collector:
    """Where to ask, as whom, and whose certificate is believed."""

    url: str  # without a trailing slash
    token: str = field(default="", repr=False)
    trust: ssl.SSLContext | bool = True


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--url, --token-file and --ca."""
    parser.add_argument("--url", metavar="URL", help=URL_HELP)
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="file that holds your token, readable by you alone (default: JOULEGRAM_TOKEN_FILE)",
    )
    parser.add_argument(
        "--ca",
        metavar="FILE",
        help="PEM certificates trusted to sign the collector's (default: JOULEGRAM_CA, or the "
        "system's)",
    )


def chosen(asked: argparse.Namespace) -> Collector:
    """What flags, else the environment, else the defaults say.

    Raises: UsageError for a file that cannot be used, or a token that all could overhear.
    """
    url = asked.url or os.environ.get("JOULEGRAM_URL") or DEFAULT_URL
    url = (url if "://" in url else f"http://{url}").rstrip("/")
    token_file = asked.token_file or os.environ.get("JOULEGRAM_TOKEN_FILE")
    ca = asked.ca or os.environ.get("JOULEGRAM_CA")
    token = _token(Path(token_file)) if token_file else ""
    if token and not _is_private(url):
        raise UsageError(f"{url}: a token is sent over https alone, or to this machine")
    return Collector(url, token, _trust(ca) if ca else True)


def get(
    collector: Collector,
    path: str,
    params: Mapping[str, str | int] | None = None,
    timeout_s: float = 60.0,
) -> Any:
    """The JSON answer of GET `path`.

    Raises: Unreachable; UsageError where the collector does not accept the question; CliError
        with what it said when it fails.
    """
    url = collector.url
    headers = {"authorization": f"Bearer {collector.token}"} if collector.token else {}
    try:
        # A proxy of the environment is for the internet, not for a collector nearby.
        answer = httpx.get(
            url + path,
            params=dict(params or {}),
            headers=headers,
            timeout=timeout_s,
            trust_env=False,
            verify=collector.trust,
        )
    except (httpx.TransportError, httpx.InvalidURL, UnicodeError) as failed:
        reason = str(failed) or type(failed).__name__
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            raise Unreachable(
                f"the certificate of {url} is not accepted ({reason}). Name the authority that "
                "signed it: --ca FILE or JOULEGRAM_CA."
            ) from failed
        raise Unreachable(
            f"no collector answers at {url} ({reason}). Start one with `joulegram up` (agent and "
            "collector) or `joulegram collector`, or say where it is: --url or JOULEGRAM_URL"
            + ("." if url.startswith("https") else ", with https:// where it has TLS.")
        ) from failed
    try:
        body = answer.json()
    except ValueError:
        body = None
    if answer.is_success and body is not None:
        return body
    if isinstance(body, dict) and "error" in body:
        said = f"{body['error']}; {body.get('remedy', '')}"
        raise UsageError(said) if answer.status_code in (400, 422) else CliError(said)
    raise CliError(
        f"{url}{path} answered {answer.status_code}, not as a joulegram collector does; is the "
        "URL that of its page?"
    )


def _token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            token = file.read(10_000).decode("ascii", errors="replace").strip()
    except OSError as denied:
        raise UsageError(f"--token-file {path}: {denied.strerror}") from denied
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise UsageError(f"--token-file {path}: every user may read it; chmod 0600 it")
    if not token or not token.isascii() or not token.isprintable():
        raise UsageError(f"--token-file {path}: holds no token, one line of printable ASCII")
    return token


def _trust(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as bad:
        raise UsageError(f"--ca {ca}: no file of PEM certificates") from bad


def _is_private(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False

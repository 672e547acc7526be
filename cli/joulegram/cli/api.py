"""Asking the collector's API, and saying plainly when it does not answer."""

import os
from collections.abc import Mapping
from typing import Any

import httpx

from joulegram.cli.errors import CliError, UsageError

DEFAULT_URL = "http://127.0.0.1:7470"
URL_HELP = f"where the collector's page is (default: JOULEGRAM_URL, or {DEFAULT_URL})"


class Unreachable(CliError):
    """Nobody answers at the URL, or not in time."""


def chosen_url(flag: str | None) -> str:
    """--url before JOULEGRAM_URL before the default; without a trailing slash."""
    url = flag or os.environ.get("JOULEGRAM_URL") or DEFAULT_URL
    return (url if "://" in url else f"http://{url}").rstrip("/")


def get(
    url: str, path: str, params: Mapping[str, str | int] | None = None, timeout_s: float = 60.0
) -> Any:
    """The JSON answer of GET `url` + `path`.

    Raises: Unreachable; UsageError where the collector does not accept the question; CliError
        with what it said when it fails.
    """
    try:
        # A proxy of the environment is for the internet, not for a collector nearby.
        answer = httpx.get(
            url + path, params=dict(params or {}), timeout=timeout_s, trust_env=False
        )
    except (httpx.TransportError, httpx.InvalidURL, UnicodeError) as failed:
        reason = str(failed) or type(failed).__name__
        raise Unreachable(
            f"no collector answers at {url} ({reason}). Start one with `joulegram up` (agent and "
            "collector) or `joulegram collector`, or say where it is: --url or JOULEGRAM_URL."
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

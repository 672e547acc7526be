"""Reading JSON that came from outside: any value may stand at any place."""

import json
import math
import re
from collections.abc import Iterator

from joulegram.agent.errors import SourceFailed

ITEMS_MAX = 100_000
INDICES_MAX = 1024
NUMBER_MAX = 1e12
RANGE = re.compile(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*")


def document(raw: bytes, of: str) -> object:
    """The value that `raw` holds. Raises: SourceFailed when it holds none."""
    try:
        value: object = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise SourceFailed(f"{of} did not answer in JSON: {raw[:80]!r}") from exc
    return value


def at(value: object, *keys: str | int) -> object:
    """What lies below the keys; None where the way ends earlier."""
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
            value = value[key]
        else:
            return None
    return value


def text(value: object) -> str:
    """A string; "" for anything else."""
    return value if isinstance(value, str) else ""


def number(value: object) -> float:
    """A number >= 0 in any of the ways that people write one; 0.0 for anything else.

    Slurm since 22.05 says {"set": true, "infinite": false, "number": 4}.
    """
    if isinstance(value, dict):
        if value.get("set") is False or value.get("infinite") is True:
            return 0.0
        value = value.get("number")
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    if not 0 <= value <= NUMBER_MAX:  # also refuses what is not finite
        return 0.0
    return float(value)


def items(value: object) -> Iterator[object]:
    """A list's first items; nothing for anything else."""
    yield from value[:ITEMS_MAX] if isinstance(value, list) else ()


def strings(value: object) -> dict[str, str]:
    """Those entries of a mapping that hold text."""
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, str)}


def indices(listed: str) -> list[int]:
    """The numbers of a list such as 0-2,5; nothing where it is none."""
    found: list[int] = []
    for part in listed[:4096].split(","):
        match = RANGE.fullmatch(part)
        if match is None:
            return []
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= INDICES_MAX or len(found) >= INDICES_MAX:
            return []
        found.extend(range(first, last + 1))
    return found


def quantity(value: object) -> float:
    """A Kubernetes quantity of CPUs: 500m, 2, 1.5; 0.0 for anything else."""
    if not isinstance(value, str):
        return number(value)
    digits, unit = (value[:-1], 1e-3) if value.endswith("m") else (value, 1.0)
    try:
        found = float(digits) * unit if len(digits) <= 32 else 0.0
    except ValueError:
        return 0.0
    return found if math.isfinite(found) and 0 <= found <= NUMBER_MAX else 0.0

"""The DRM drivers' own accounting of a GPU's use, one open file at a time.

Reads  <procfs>/<pid>/fd/* (where they point to), <procfs>/<pid>/fdinfo/*
Format https://docs.kernel.org/gpu/drm-usage-stats.html

An engine's time is divided by its capacity (how many alike the name stands for) and cannot exceed
the time that passed; a client's is the sum over its engines, so a copy engine weighs as much as
a shader engine. Values that go back are waited for, as the format asks.
"""

import errno
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

Key: TypeAlias = tuple[str, int]  # PCI address, client id

FDINFO_BYTES = 16_384
ENGINES_MAX = 32

ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
ENGINE = re.compile(rb"drm-(engine-capacity|engine|total-cycles|cycles)-([a-z0-9_.+-]{1,32})")
NUMBER = re.compile(rb"(\d{1,20})(?: ns)?")


@dataclass(frozen=True, slots=True)
class Engine:
    """What one client has used of one engine, or of several alike."""

    busy_ns: int = 0
    cycles: int = 0  # where the driver counts those: of `total_cycles` that passed
    total_cycles: int = 0
    capacity: int = 1


NEVER = Engine()


@dataclass(frozen=True, slots=True)
class Account:
    """What one descriptor's fdinfo says."""

    key: Key
    engines: Mapping[str, Engine]


GONE = Account(("", 0), {})


def parse(raw: bytes) -> Account | None:
    """None for a file that is torn, or of something else than a GPU."""
    if not raw.endswith(b"\n"):
        return None
    said: dict[bytes, bytes] = {}
    engines: dict[str, dict[bytes, int]] = defaultdict(dict)
    for text in raw.split(b"\n"):
        key, _, value = text.partition(b":")
        value = value.strip()
        if not (engine := ENGINE.fullmatch(key)):
            said.setdefault(key, value)
        elif (number := NUMBER.fullmatch(value)) and (
            (name := engine[2].decode()) in engines or len(engines) < ENGINES_MAX
        ):
            engines[name][engine[1]] = int(number[1])
    address = said.get(b"drm-pdev", b"").decode("ascii", "replace").lower()
    client = NUMBER.fullmatch(said.get(b"drm-client-id", b""))
    if b"drm-driver" not in said or not client or not ADDRESS.fullmatch(address):
        return None
    return Account(
        (address, int(client[1])),
        {
            name: Engine(
                values.get(b"engine", 0),
                # Some drivers have both; time needs no clock to be divided by.
                values.get(b"cycles", 0) if b"engine" not in values else 0,
                values.get(b"total-cycles", 0) if b"engine" not in values else 0,
                max(1, values.get(b"engine-capacity", 1)),
            )
            for name, values in engines.items()
        },
    )


def used_ns(
    before: Mapping[str, Engine], after: Mapping[str, Engine], elapsed_ns: int
) -> tuple[int, dict[str, Engine]]:
    """(use between two looks, what to compare the next look with).

    Each engine's use is its share of the time that passed; their sum may exceed that time.
    """
    total_ns = 0
    kept = dict(before)
    for name, now in after.items():
        was = before.get(name, NEVER)
        ran_ns = now.busy_ns - was.busy_ns
        if now.total_cycles:
            passed = now.total_cycles - was.total_cycles
            known = was.total_cycles and passed > 0
            ran_ns = (now.cycles - was.cycles) * elapsed_ns // passed if known else 0
        total_ns += min(max(0, ran_ns) // now.capacity, elapsed_ns)
        kept[name] = Engine(
            max(now.busy_ns, was.busy_ns),
            max(now.cycles, was.cycles),
            now.total_cycles,
            now.capacity,
        )
    return total_ns, dict(islice(kept.items(), ENGINES_MAX))


def read(process: str, name: str) -> Account | None:
    """What one descriptor's file says now.

    Args:
        process: its folder in procfs.
    Returns: None for one that is torn or of something else, GONE for one that is closed or not
        ours to read.
    """
    try:
        descriptor = os.open(f"{process}/fdinfo/{name}", os.O_RDONLY)
    except OSError:
        return GONE
    try:
        return parse(os.read(descriptor, FDINFO_BYTES))
    except OSError:
        return GONE
    finally:
        os.close(descriptor)


def descriptors(process: str) -> Iterator[tuple[str, str | None]]:
    """(name, where it points to) of each; None where only its fdinfo can tell.

    The folder is listed piece by piece: nobody waits for a process with a million files.
    """
    try:
        with os.scandir(f"{process}/fd") as entries:
            for entry in entries:
                try:
                    yield entry.name, os.readlink(entry.path)  # noqa: PTH115
                except OSError as exc:
                    # No link: a tree that was captured without them.
                    yield entry.name, None if exc.errno == errno.EINVAL else ""
    except FileNotFoundError:
        try:
            with os.scandir(f"{process}/fdinfo") as entries:
                for entry in entries:
                    yield entry.name, None
        except OSError:
            return
    except OSError:  # not ours to look at: it costs its own
        return

"""`make bench`: what our work costs, as a ratio to the bare cost of the same thing.

    python -m bench [NAME ...]      NAME: a module of this folder, such as agent_tick (not _crowd)

Each module has run() -> [{name, ratio, limit, ours, reference, unit}]; both sides of a ratio
are measured in the same run, so that a slower machine slows both. Writes build/bench.json.
Exit status 1 when a limit is exceeded or a bench fails.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).resolve().parent
OUTPUT = FOLDER.parent / "build" / "bench.json"
KEYS = {"name", "ratio", "limit", "ours", "reference", "unit"}


def main(argv: Sequence[str]) -> int:
    known = sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_"))
    unknown = sorted(set(argv) - set(known))
    if unknown:
        print(
            f"bench: no bench {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr
        )
        return 2
    entries: list[dict[str, Any]] = []
    failed: list[str] = []
    for name in argv or known:
        print(f"bench: {name} ...", file=sys.stderr, flush=True)
        try:
            entries += importlib.import_module(f"bench.{name}").run()
        except Exception:  # the others are still worth measuring
            traceback.print_exc()
            failed.append(name)
    for entry in entries:
        assert set(entry) >= KEYS, f"{entry} lacks {KEYS - set(entry)}"
    OUTPUT.parent.mkdir(exist_ok=True)
    draft = OUTPUT.with_suffix(".draft")
    draft.write_text(json.dumps(entries, indent=2) + "\n")
    draft.replace(OUTPUT)
    show(entries)
    for name in failed:
        print(f"bench: {name} failed, see above", file=sys.stderr)
    return 1 if failed or any(over(entry) for entry in entries) else 0


def over(entry: dict[str, Any]) -> bool:
    # Not ">": a ratio that is nan keeps no limit.
    return not entry["ratio"] <= entry["limit"]


def show(entries: Sequence[dict[str, Any]]) -> None:
    table = Table("bench", title=f"cost as a ratio to the bare cost ({os.cpu_count()} CPUs)")
    for heading in ("ours", "reference", "unit", "ratio", "limit", "verdict"):
        table.add_column(heading, justify="left" if heading in ("unit", "verdict") else "right")
    for entry in entries:
        table.add_row(
            entry["name"],
            f"{entry['ours']:.4g}",
            f"{entry['reference']:.4g}",
            entry["unit"],
            f"{entry['ratio']:.2f}",
            f"{entry['limit']:g}",
            "OVER" if over(entry) else "holds",
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

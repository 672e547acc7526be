"""Cases and verdicts, for people and as JSON."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from replay.case import Verdict


def show(verdicts: Sequence[Verdict]) -> None:
    table = Table(title="cases with a known right answer, played to the shipped programs")
    table.add_column("case", ratio=3)
    table.add_column("right", ratio=4)
    table.add_column("got", ratio=4)
    table.add_column("verdict")
    for verdict in verdicts:
        # Text: what a case is about may look like rich's own markup.
        cells = (str(verdict.case), verdict.right, verdict.got, verdict.verdict)
        table.add_row(*map(Text, cells), style="" if verdict.holds else "bold red")
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def write(path: Path, verdicts: Sequence[Verdict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [
        {"case": str(v.case), "right": v.right, "got": v.got, "verdict": v.verdict}
        for v in verdicts
    ]
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(entries, indent=2) + "\n")
    draft.replace(path)

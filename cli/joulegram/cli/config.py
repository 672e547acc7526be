"""`joulegram config`: every setting in force and who said it, as a TOML file."""

from collections.abc import Sequence

from joulegram.cli import parts
from joulegram.cli.settings import Given
from joulegram.cli.values import as_toml

HELP = "Print every setting in force, and where it comes from; secrets are masked."


def run(argv: Sequence[str]) -> int:
    tables = parts.tables()
    settings = parts.parse("config", HELP, tables, argv)
    for table, cls in tables.items():
        settings.build(table, cls)  # refuses here what the part would refuse
    print(f"# configuration file: {settings.file or 'none'}")
    for table in tables:
        print(f"\n[{table}]")
        lines = [(_line(one), one.origin) for one in settings.given if one.key.table == table]
        width = min(60, max(len(text) for text, _ in lines))
        for text, origin in lines:
            print(f"{text:<{width}}  # {origin}")
    return 0


def _line(given: Given) -> str:
    if given.value is None:  # TOML has no word for nothing
        return f"# {given.key.name} ="
    return f"{given.key.name} = {_shown(given)}"


def _shown(given: Given) -> str:
    return '"***"' if given.key.secret and given.value else as_toml(given.value)

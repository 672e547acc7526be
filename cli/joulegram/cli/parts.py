"""The parts that are installed beside the CLI, found by their entry points.

A part (group `joulegram.parts`) is a module with
    HELP     one sentence
    TABLES   {table of the configuration: its dataclass}
    OPTIONS  a dataclass of flags that belong to one run; may be left out
    WORDS    {word: help}, one of which must follow the part's name; may be left out
    FLAGS    {table: names of the keys that have a flag here}; every key where left out
    HOMELESS True: it also runs where no home is known, and settles itself what lies below ~
    REST     what must follow `--`, such as "COMMAND [ARGUMENT ...]"; may be left out
    run      run(**{table: value}, options=value, word=word, rest=words) -> exit status
Group `joulegram.tables` names every table's dataclass, so that the configuration can be
read without importing any part.
"""

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points, metadata
from types import ModuleType

from joulegram.cli import settings
from joulegram.cli.errors import CliError, UsageError
from joulegram.cli.flags import Parser


def parts() -> dict[str, EntryPoint]:
    """Every part that can be started, by name."""
    return {entry.name: entry for entry in entry_points(group="joulegram.parts")}


def tables() -> dict[str, type]:
    """Every table that a configuration may hold, by name."""
    return {entry.name: entry.load() for entry in entry_points(group="joulegram.tables")}


def run(name: str, argv: Sequence[str]) -> int:
    """Start a part with what flags, environment and file say; return its exit status."""
    try:
        part: ModuleType = parts()[name].load()
        options: type | None = getattr(part, "OPTIONS", None)
        of_run = {"": options} if options else {}
        words: Mapping[str, str] = getattr(part, "WORDS", {})
        word, argv = _word(name, part.HELP, words, argv)
        full_name = f"{name} {word}" if word else name
        what: str = getattr(part, "REST", "")
        argv, rest = _rest(name, what, argv)
        values = parse(
            full_name,
            words.get(word, part.HELP),
            {**part.TABLES, **of_run},
            argv,
            only=getattr(part, "FLAGS", {}),
            rest=what,
            homeless=getattr(part, "HOMELESS", False),
        )
        if values.file:
            print(f"joulegram {name}: configuration from {values.file}", file=sys.stderr)
        arguments = {table: values.build(table, cls) for table, cls in part.TABLES.items()}
        if options:
            arguments["options"] = values.build("", options)
        if word:
            arguments["word"] = word
        if what:
            arguments["rest"] = rest
        status: int = part.run(**arguments)
        return status
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("joulegram"):
            raise
        raise CliError(_what_to_install(name, missing.name)) from missing


def _word(
    name: str, help: str, words: Mapping[str, str], argv: Sequence[str]
) -> tuple[str, Sequence[str]]:
    """The word after the part's name, and what follows it. Raises: UsageError; SystemExit."""
    if not words:
        return "", argv
    if argv and argv[0] in words:
        return argv[0], argv[1:]
    if argv and argv[0] in ("-h", "--help"):
        print(f"joulegram {name}: {help}\n")
        for word, meaning in words.items():
            print(f"  joulegram {name} {word:<8} {meaning}")
        raise SystemExit(0)
    found = f"no {argv[0]}; " if argv else ""
    raise UsageError(f"{name}: {found}write `joulegram {name} {'|'.join(words)}`")


def _rest(name: str, what: str, argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Flags, and the words after `--` of a part that takes some. Raises: UsageError."""
    if not what or (argv and argv[0] in ("-h", "--help")):
        return argv, ()
    own = argv[: argv.index("--")] if "--" in argv else argv
    rest = argv[len(own) + 1 :]
    if not rest and "--help" not in own:
        raise UsageError(f"{name}: write `joulegram {name} [FLAGS] -- {what}`")
    return own, rest


def parse(
    name: str,
    help: str,
    of_tables: Mapping[str, type],
    argv: Sequence[str],
    *,
    only: Mapping[str, Collection[str]] | None = None,
    rest: str = "",
    homeless: bool = False,
) -> settings.Settings:
    """Effective values for a sub-command that takes these tables ("" are flags of the run).

    Args:
        only: names of the keys that have a flag here, of tables of which not every key has.
        rest: what follows `--`, for the usage.
        homeless: whether it runs without a home.
    Raises: UsageError; SystemExit(0) after --help.
    """
    parser = Parser(
        prog=f"joulegram {name}",
        usage=f"joulegram {name} [FLAGS] -- {rest}" if rest else None,
        description=help[:1].upper() + help[1:],
        allow_abbrev=False,
        epilog=_where_else(of_tables),
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file (default: JOULEGRAM_CONFIG, or the first of ./joulegram.toml, "
        "~/.config/joulegram/joulegram.toml, /etc/joulegram/joulegram.toml)",
    )
    for table, cls in of_tables.items():
        settings.add_flags(parser, table, cls, (only or {}).get(table))
    found, left = parser.parse_known_args(argv)
    if left:
        elsewhere = _whose(left[0].partition("=")[0])
        if elsewhere:
            raise UsageError(
                f"{name}: {left[0].partition('=')[0]} is a flag of [{elsewhere}], which "
                f"`joulegram {name}` does not take; see `joulegram {name} --help`"
            )
        parser.refuse(left[0])
    flags_found = vars(found)
    file = settings.find_file(flags_found.pop("config"), os.environ)
    known = [entry.name for entry in entry_points(group="joulegram.tables")]
    return settings.read(of_tables, known, flags_found, file, os.environ, homeless=homeless)


def _whose(flag: str) -> str | None:
    """The table that a flag belongs to."""
    for table, cls in tables().items():
        if any(f"--{key.flag}" == flag for key in settings.keys(table, cls)):
            return table
    return None


def _where_else(of_tables: Mapping[str, type]) -> str:
    """Where else its flags can be said, with an example."""
    found = [name for name in ("grid", "agent", *of_tables) if name and name in of_tables]
    if not found:  # flags of the run alone
        return ""
    key = next(key for key in settings.keys(found[0], of_tables[found[0]]) if key.flag)
    return (
        "Every flag of a [table] is also a key of the configuration file and a variable: "
        f"--{key.flag} is `{key.name}` under [{key.table}], and {key.variable}. `joulegram config` "
        "shows which is in force."
    )


def _what_to_install(name: str, module: str | None) -> str:
    extras = metadata("joulegram").get_all("Provides-Extra") or []
    package = f"joulegram[{name}]" if name in extras else "joulegram"
    return f"{name} needs the module {module}, which is not installed: pip install '{package}'"

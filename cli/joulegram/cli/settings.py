"""Configuration: frozen dataclasses filled from flags, environment and a TOML file.

A dataclass is a table, a field a key. Field `tick_s` of table [agent] with metadata
{"flag": "tick"} is `--tick`, JOULEGRAM_AGENT_TICK_S, and `tick_s` under [agent] in the file.
Flag goes before environment, environment before file, file before default; of a mapping
(`--idle-w cpu0=12.5`) each entry for itself. Metadata: `help`; `flag` (a name, or None: no
flag); `secret` (True: never shown).
"""

import argparse
import contextlib
import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from joulegram.cli.errors import UsageError
from joulegram.cli.values import (
    accepted,
    as_toml,
    converted,
    expanded,
    from_text,
    is_many,
    many_from_texts,
    unit,
    without_none,
)

# Kubernetes tells pods about a service called joulegram-agent by JOULEGRAM_AGENT_PORT and
# the like: those are not misspelt keys.
SERVICE_LINK = re.compile(r"(.*_)?(SERVICE_(HOST|PORT)|PORT)(_.*)?")
NOT_OF_A_TABLE = (
    "JOULEGRAM_CA",
    "JOULEGRAM_CONFIG",
    "JOULEGRAM_RUN",  # `joulegram run` tells the programs it meters that it does
    "JOULEGRAM_TOKEN_FILE",
    "JOULEGRAM_URL",
)


@dataclass(frozen=True, slots=True)
class Key:
    """One value that an operator may set. `table` is empty for flags of a single run."""

    table: str
    name: str
    kind: Any
    help: str
    flag: str | None
    secret: bool
    default: Any

    @property
    def id(self) -> str:
        return f"{self.table}.{self.name}" if self.table else self.name

    @property
    def variable(self) -> str:
        return f"JOULEGRAM_{self.table}_{self.name}".upper()


@dataclass(frozen=True, slots=True)
class Given:
    """A key's value and who said it: `default`, a file, a variable or a flag."""

    key: Key
    value: Any
    origin: str
    words: Sequence[str] = ()  # the flags that said it, to be said again to a child


@dataclass(frozen=True, slots=True)
class Settings:
    """Every key of some tables with its effective value and its origin."""

    file: Path | None
    given: Sequence[Given]

    def build(self, table: str, cls: type) -> Any:
        """The dataclass `cls` with this table's values. Raises UsageError where it refuses them."""
        values = {one.key.name: one.value for one in self.given if one.key.table == table}
        try:
            return cls(**values)
        except ValueError as refused:
            raise UsageError(f"[{table}] {refused}" if table else str(refused)) from refused


def keys(table: str, cls: type) -> list[Key]:
    """The keys of a table, in the order of the dataclass."""
    kinds = get_type_hints(cls)
    return [
        Key(
            table=table,
            name=field.name,
            kind=without_none(kinds[field.name]),
            help=field.metadata.get("help", ""),
            flag=field.metadata.get("flag", field.name.replace("_", "-")),
            secret=bool(field.metadata.get("secret")),
            default=_default(field),
        )
        for field in dataclasses.fields(cls)
    ]


def add_flags(
    parser: argparse.ArgumentParser, table: str, cls: type, only: Collection[str] | None = None
) -> None:
    """Give the parser a flag for every key of the table that has one; of these keys alone."""
    group = parser.add_argument_group(f"[{table}]" if table else "this run")
    for key in keys(table, cls):
        if key.flag is None or (only is not None and key.name not in only):
            continue
        # Values stay text here: read() judges flag, variable and file by the same rules.
        text = f"{key.help}{_shown_default(key)}".replace("%", "%%")
        if key.kind is bool:
            action: Any = argparse.BooleanOptionalAction
            group.add_argument(
                f"--{key.flag}", dest=key.id, action=action, default=argparse.SUPPRESS, help=text
            )
        else:
            group.add_argument(
                f"--{key.flag}",
                dest=key.id,
                action="append" if is_many(key.kind) else "store",
                default=argparse.SUPPRESS,
                metavar=_metavar(key),
                help=text,
            )


def find_file(explicit: str | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file: as told, else the first of the usual places, else none.

    Raises: UsageError when the file that was named is not there.
    """
    for origin, named in (
        ("--config", explicit),
        ("JOULEGRAM_CONFIG", environ.get("JOULEGRAM_CONFIG")),
    ):
        if named:
            path = expanded(Path(named))
            # Any that can be read: /dev/null, and what a shell makes of <(...).
            if not os.path.exists(path):  # noqa: PTH110 - which never raises
                raise UsageError(f"{origin} {named}: no such file, or not one we may reach")
            return path
    usual = [Path("joulegram.toml"), Path("/etc/joulegram/joulegram.toml")]
    with contextlib.suppress(UsageError):  # no home, no file in it
        config = expanded(Path(environ.get("XDG_CONFIG_HOME") or "~/.config"))
        usual.insert(1, config / "joulegram/joulegram.toml")
    return next((path for path in usual if _is_file(path)), None)


def read(
    tables: Mapping[str, type],
    known: Iterable[str],
    flags: Mapping[str, Any],
    file: Path | None,
    environ: Mapping[str, str] = os.environ,
    *,
    homeless: bool = False,
) -> Settings:
    """Effective values of `tables`.

    Args:
        tables: {name: dataclass} to fill; the name "" holds flags of this run alone.
        known: every table name that a file may hold, of whatever part.
        flags: what argparse found, {Key.id: text, list of texts, or bool}.
        homeless: where no home is known, a default in it stays as it is, with its ~.
    Raises: UsageError naming the key, the value, what is accepted, and where it was said.
    """
    document = _document(file, {*known, *filter(None, tables)}) if file else {}
    given: list[Given] = []
    _refuse_unknown_tables_variables({*known, *filter(None, tables)}, environ)
    for table, cls in tables.items():
        of_table = keys(table, cls)
        section = document.get(table, {}) if table else {}
        if file:
            _refuse_unknown_keys(file, table, section, of_table)
        if table:
            _refuse_unknown_variables(table, of_table, environ)
        given += [_effective(key, section, flags, file, environ, homeless) for key in of_table]
    return Settings(file, given)


def nearest(name: str, names: Iterable[str]) -> str:
    """`did you mean ...?` or, when nothing is near, the names there are."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _effective(
    key: Key,
    section: Mapping[str, Any],
    flags: Mapping[str, Any],
    file: Path | None,
    environ: Mapping[str, str],
    homeless: bool,
) -> Given:
    said: list[Given] = []
    if key.name in section:
        raw = section[key.name]
        where = f"{file}: [{key.table}] {key.name} = {_masked(key, as_toml(raw))}"
        said.append(Given(key, _checked(key, raw, where), str(file)))
    if key.table and (text := environ.get(key.variable)) is not None:
        where = f"{key.variable}={_masked(key, text)}"
        said.append(Given(key, _checked(key, from_text(key.kind, text), where), key.variable))
    words: list[str] = []
    if key.id in flags:
        raw = flags[key.id]
        if isinstance(raw, bool):
            words = [f"--{key.flag}" if raw else f"--no-{key.flag}"]
            said.append(Given(key, raw, words[0], words))
        else:
            texts = raw if isinstance(raw, list) else [raw]
            words = [f"--{key.flag}={text}" for text in texts]
            where = f"--{key.flag} {_masked(key, ' '.join(texts))}"
            # A comma inside a repeated flag's value belongs to the value.
            many = is_many(key.kind)
            value = many_from_texts(key.kind, texts) if many else from_text(key.kind, raw)
            said.append(Given(key, _checked(key, value, where), f"--{key.flag}", words))
    if not said:
        # Only now: where no home is known, ~ in an unused default must not be in the way.
        default = key.default
        if isinstance(default, Path):
            with contextlib.suppress(*((UsageError,) if homeless else ())):
                default = expanded(default)
        return Given(key, default, "default")
    if get_origin(key.kind) is Mapping:
        merged = {**key.default, **{name: v for one in said for name, v in one.value.items()}}
        return Given(key, merged, ", ".join(one.origin for one in said), words)
    return said[-1]


def _document(file: Path, known: set[str]) -> dict[str, Any]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as broken:
        raise UsageError(
            f'{file}: not TOML: {broken}. Text stands in quotes, zone = "GB"; a key stands once'
        ) from broken
    except OSError as denied:
        raise UsageError(f"{file}: cannot be read: {denied.strerror}") from denied
    for name, section in document.items():
        if not isinstance(section, dict):
            raise UsageError(f"{file}: {name} = ... stands outside a table such as [agent]")
        if name not in known:
            raise UsageError(f"{file}: unknown table [{name}]; {nearest(name, known)}")
    return document


def _refuse_unknown_keys(
    file: Path, table: str, section: Mapping[str, Any], of_table: Sequence[Key]
) -> None:
    names = [key.name for key in of_table]
    for name in section:
        if name not in names:
            raise UsageError(f"{file}: [{table}] has no key {name}; {nearest(name, names)}")


def _refuse_unknown_variables(
    table: str, of_table: Sequence[Key], environ: Mapping[str, str]
) -> None:
    prefix = f"JOULEGRAM_{table.upper()}_"
    names = [key.variable for key in of_table]
    for name in sorted(environ):
        if name.startswith(prefix) and name not in names:
            if SERVICE_LINK.fullmatch(name.removeprefix(prefix)):
                continue
            raise UsageError(f"unknown variable {name}; {nearest(name, names)}")


def _refuse_unknown_tables_variables(tables: set[str], environ: Mapping[str, str]) -> None:
    known = [f"JOULEGRAM_{table.upper()}_" for table in tables]
    for name in sorted(environ):
        rest = name.removeprefix("JOULEGRAM_")
        if rest == name or name in NOT_OF_A_TABLE or SERVICE_LINK.fullmatch(rest):
            continue
        if not name.startswith(tuple(known)):
            shown = [*NOT_OF_A_TABLE, *(f"{prefix}..." for prefix in known)]
            raise UsageError(f"unknown variable {name}; known: {', '.join(sorted(shown))}")


def _checked(key: Key, raw: Any, where: str) -> Any:
    """The value as its field wants it. Raises UsageError, naming what is accepted."""
    if not str(raw).isprintable() and not _is_utf8(str(raw)):
        raise UsageError(f"{_shown_bytes(where)}: is not UTF-8; write it in UTF-8 or plain ASCII")
    try:
        return converted(key.kind, raw)
    except TypeError:
        raise UsageError(f"{where}: takes {accepted(key.kind, key.id, key.default)}") from None


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # another user's home, say
        return False


def _shown_default(key: Key) -> str:
    if key.default in (None, "") or is_many(key.kind) or "(default:" in key.help:
        return ""
    if key.kind is bool:
        return f" (default: {'yes' if key.default else 'no'})"
    default = f"{key.default:g}" if key.kind is float else key.default
    return f" (default: {default})"


def _metavar(key: Key) -> str:
    kind = get_args(key.kind)[1] if get_origin(key.kind) is Mapping else key.kind
    if kind in (int, float):
        one = (unit(key.name) or "number").upper()
    elif kind is Path:
        one = "PATH"
    else:
        one = "HOST:PORT" if key.help.startswith("HOST:PORT") else key.name.upper()
    if get_origin(key.kind) is Mapping and kind is str:
        one = "VALUE"
    return f"NAME={one}" if get_origin(key.kind) is Mapping else one


def _is_utf8(text: str) -> bool:
    """Whether text of a command line or an environment was UTF-8 before Python decoded it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown_bytes(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _masked(key: Key, text: str) -> str:
    return "***" if key.secret else text

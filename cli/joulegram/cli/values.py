"""Values of settings: text or TOML in, the type that a dataclass's field names out.

Kinds: str, bool, int, float, Path, Mapping[str, kind], Sequence[str], Sequence[dict] (tables).
A number is a quantity: finite and not negative. The unit is the end of its key's name.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from joulegram.cli.errors import UsageError

UNITS = {
    "days": "days",
    "s": "seconds",
    "ms": "milliseconds",
    "w": "watts",
    "mb": "megabytes",
    "bytes": "bytes",
    "cores": "cores",
}
MOST = 2**63  # of any quantity; also keeps nan, inf and what no float holds away


def from_text(kind: Any, text: str) -> Any:
    """Text as the value that a TOML file would have held; unreadable text stays text."""
    if kind is bool:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
            text.strip().lower(), text
        )
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    if is_many(kind):
        return many_from_texts(kind, [part.strip() for part in text.split(",") if part.strip()])
    return text


def many_from_texts(kind: Any, texts: Sequence[str]) -> Any:
    """The list or, of NAME=VALUE texts, the mapping that they spell."""
    if get_origin(kind) is not Mapping:
        return list(texts)
    of = get_args(kind)[1]
    pairs = [text.partition("=") for text in texts]
    if any(not name or not equals for name, equals, _ in pairs):
        return " ".join(texts)  # not a mapping: converted() refuses it
    return {name: from_text(of, value) for name, _, value in pairs}


def converted(kind: Any, raw: Any) -> Any:
    """A TOML value as its field wants it. Raises TypeError when it is not of this kind."""
    if kind is Any:
        return raw
    if get_origin(kind) is Mapping:
        if isinstance(raw, Mapping):
            return {str(k): converted(get_args(kind)[1], v) for k, v in raw.items()}
    elif get_origin(kind) is Sequence:
        if isinstance(raw, list):
            return tuple(converted(get_args(kind)[0], v) for v in raw)
    elif get_origin(kind) is dict:
        if isinstance(raw, dict):
            return raw
    elif kind in (int, float):
        # To Python a bool is an int.
        number = isinstance(raw, (int, kind)) and not isinstance(raw, bool)
        if number and 0 <= raw <= MOST:
            return kind(raw)
    elif kind is Path:
        if isinstance(raw, str) and raw:
            return expanded(Path(raw))
    elif isinstance(raw, kind):
        return raw
    raise TypeError(kind)


def accepted(kind: Any, name: str, example: Any) -> str:
    """What a key takes, in words; `example` is its default."""
    if get_origin(kind) is Mapping:
        return f"NAME=VALUE entries, each value {accepted(get_args(kind)[1], name, None)}"
    if kind in (int, float):
        what = "a whole number" if kind is int else "a number"
        of = f" of {unit(name)}" if unit(name) else ""
        return f"{what}{of}, 0 or more, such as {example or 1:g}"
    if get_origin(kind) is Sequence:
        return "a list of strings" if get_args(kind)[0] is str else f"tables: [[{name}]]"
    return {bool: "true or false", Path: "a path"}.get(kind, "a string")


def unit(name: str) -> str | None:
    """The unit that a key's name ends in; None of a rate such as `frames_per_s`."""
    before, _, last = name.rpartition("_")
    return UNITS.get(last) if before and not before.endswith("_per") else None


def as_toml(value: Any) -> str:
    """A value as TOML would write it, on one line."""
    match value:
        case bool() | int():
            return json.dumps(value)
        case float():
            return f"{value:.12g}" if value % 1 else f"{value:.1f}"
        case Mapping():
            inside = ", ".join(f"{_bare(str(k))} = {as_toml(v)}" for k, v in value.items())
            return f"{{ {inside} }}" if inside else "{}"
        case str() | Path():
            return json.dumps(str(value), ensure_ascii=False)
        case Sequence():
            return f"[{', '.join(as_toml(v) for v in value)}]"
        case _:
            return str(value)


def expanded(path: Path) -> Path:
    """The path with ~ resolved. Raises UsageError where no home is known."""
    try:
        return path.expanduser()
    except RuntimeError as homeless:
        raise UsageError(
            f"{path}: no home directory is known; set HOME or give a full path"
        ) from homeless


def is_many(kind: Any) -> bool:
    """Whether its flag may be repeated."""
    return get_origin(kind) in (Mapping, Sequence)


def without_none(kind: Any) -> Any:
    """The X of X | None."""
    if get_origin(kind) in (Union, UnionType):
        rest = [one for one in get_args(kind) if one is not NoneType]
        return rest[0] if len(rest) == 1 else Any
    return kind


def _bare(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)

"""Bearer tokens: a file says whose they are. It holds their SHA-256, never a token.

[[token]]
name = "rack 7"                      # for the log
sha256 = "9f86d081884c7d65..."       # printf %s "$TOKEN" | sha256sum
nodes = ["n7", "gpu-*"]              # [security] agent_tokens: who may be spoken for

[[token]]
name = "grafana of physics"
sha256 = "60303ae22b998861..."
team = "physics"                     # [security] read_tokens: or sees = "everything", "metrics"
"""

import hashlib
import hmac
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Generic, TypeVar

from joulegram.collector.errors import BadSetting
from joulegram.collector.security.files import read_trusted

SEES = ("everything", "metrics")
HOW = 'printf %s "$TOKEN" | sha256sum'


@dataclass(frozen=True, slots=True)
class Sender:
    """Whom an agent's token speaks for."""

    name: str
    digest: bytes
    nodes: Sequence[str]  # shell patterns

    def allows(self, node: str) -> bool:
        return any(fnmatchcase(node, pattern) for pattern in self.nodes)


@dataclass(frozen=True, slots=True)
class Reader:
    """What a reader's token shows."""

    name: str
    digest: bytes
    sees: str  # everything, metrics or team
    team: str = ""


Holder = TypeVar("Holder", Sender, Reader)


@dataclass(frozen=True, slots=True)
class Tokens(Generic[Holder]):
    """Holders by the digest of their token."""

    holders: Mapping[bytes, Holder]

    def of(self, authorization: str) -> Holder | None:
        """The holder of an Authorization header's bearer token."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            return None
        digest = hashlib.sha256(token.strip().encode(errors="surrogateescape")).digest()
        holder = self.holders.get(digest)
        # The time of a look-up could tell of a digest at most, and a digest tells no token.
        return holder if holder and hmac.compare_digest(holder.digest, digest) else None


def senders(path: Path) -> Tokens[Sender]:
    """Tokens that may send. Raises BadSetting naming the entry and the remedy."""
    found = {}
    for where, entry, digest in _entries("agent_tokens", path, {"nodes"}):
        nodes = entry.get("nodes")
        if not isinstance(nodes, list) or not nodes or not all(_is_text(n) for n in nodes):
            raise BadSetting(
                f'{where}: nodes says for which nodes it may send, such as nodes = ["n7"] or '
                '["gpu-*"].'
            )
        found[digest] = Sender(entry["name"], digest, tuple(nodes))
    return Tokens(found)


def readers(path: Path) -> Tokens[Reader]:
    """Tokens that may read. Raises BadSetting naming the entry and the remedy."""
    found = {}
    for where, entry, digest in _entries("read_tokens", path, {"team", "sees"}):
        team, sees = entry.get("team"), entry.get("sees")
        if (team is None) == (sees is None) or (sees is not None and sees not in SEES):
            raise BadSetting(
                f'{where}: write team = "its name" for what one team may see, or '
                'sees = "everything" for an operator, sees = "metrics" for Prometheus.'
            )
        if team is not None and not _is_text(team):
            raise BadSetting(f"{where}: team is a name in quotes, as [[teams.rules]] has it.")
        found[digest] = Reader(entry["name"], digest, sees or "team", team or "")
    return Tokens(found)


def _entries(key: str, path: Path, own: set[str]) -> list[tuple[str, dict[str, Any], bytes]]:
    try:
        document = tomllib.loads(read_trusted(key, path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        # The parser quotes what it reads, and somebody may have pasted a token there.
        raise BadSetting(
            f"security.{key} = {path} is not TOML in UTF-8{_line(exc)}; docs/security.md shows one."
        ) from None
    entries = document.pop("token", [])
    if document or not isinstance(entries, list):
        raise BadSetting(f"security.{key} = {path}: write [[token]] tables, and nothing else.")
    found, seen = [], set()
    for number, entry in enumerate(entries, 1):
        where = f"security.{key} = {path}, token {number}"
        if not isinstance(entry, dict):
            raise BadSetting(f"{where} is no table: write [[token]].")
        if unknown := entry.keys() - {"name", "sha256", *own}:
            raise BadSetting(
                f"{where}: no key {sorted(unknown)[0][:40]!r}; it takes name, sha256, "
                f"{', '.join(sorted(own))}."
            )
        if not _is_text(entry.get("name")):
            raise BadSetting(f'{where}: give it a name = "...", for the log.')
        digest = entry.get("sha256")
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise BadSetting(f"{where}: sha256 is the 64 hexadecimal digits of {HOW}")
        packed = bytes.fromhex(digest)
        if packed in seen:
            raise BadSetting(f"{where}: an earlier entry has the same token; make another one.")
        seen.add(packed)
        found.append((where, entry, packed))
    return found


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 1_020 and value.isprintable()


def _line(exc: Exception) -> str:
    line = re.search(r"line (\d+)", str(exc))
    return f" (line {line[1]})" if line else ""

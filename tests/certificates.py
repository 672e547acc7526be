"""Certificates and tokens for the tests, as files with the modes that they should have."""

import datetime
import hashlib
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import trustme

AN_HOUR = datetime.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, in files and as bytes."""

    cert: Path
    key: Path

    def replace_with(self, other: "Pair") -> None:
        """Put another one's content in place, whole, as a renewal does."""
        for mine, its in ((self.key, other.key), (self.cert, other.cert)):
            draft = mine.with_suffix(".draft")
            draft.touch(0o600)
            draft.write_bytes(its.read_bytes())
            draft.rename(mine)


@dataclass
class Authority:
    """Signs certificates into a folder."""

    folder: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    @property
    def cert(self) -> Path:
        path = self.folder / f"ca-{id(self.ca):x}.pem"
        if not path.exists():
            self.ca.cert_pem.write_to_path(path)
        return path

    def issue(self, file: str, *names: str, expired: bool = False, **more: Any) -> Pair:
        """A certificate of these names (DNS, addresses, or mail), in `file`.pem and `file`.key."""
        now = datetime.datetime.now(datetime.UTC)
        life: Any = {"not_before": now - 2 * AN_HOUR, "not_after": now - AN_HOUR} if expired else {}
        issued = self.ca.issue_cert(*names, **life, **more)
        pair = Pair(self.folder / f"{file}.pem", self.folder / f"{file}.key")
        pair.key.touch(0o600)
        pair.key.write_bytes(issued.private_key_pem.bytes())
        pair.cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        return pair

    def channel_credentials(self, pair: Pair | None = None) -> grpc.ChannelCredentials:
        """What a gRPC client shows and trusts."""
        own = (pair.key.read_bytes(), pair.cert.read_bytes()) if pair else ()
        return grpc.ssl_channel_credentials(self.ca.cert_pem.bytes(), *own)

    def context(self) -> ssl.SSLContext:
        """What an HTTP client trusts."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


def token_file(path: Path, entries: Iterable[tuple[str, str]]) -> Path:
    """[[token]] entries of (token, the rest as TOML), put in place whole."""
    text = ""
    for number, (token, rest) in enumerate(entries):
        digest = hashlib.sha256(token.encode()).hexdigest()
        text += f'[[token]]\nname = "entry {number}"\nsha256 = "{digest}"\n{rest}\n'
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.rename(path)
    return path

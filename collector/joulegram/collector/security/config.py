"""What an operator may say about security: table [security]. Python's own library alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from joulegram.collector.errors import BadSetting


@dataclass(frozen=True, slots=True)
class SecurityConfig:
    """Table [security]. Files are read again when they change; nothing is restarted."""

    tls_cert: Path | None = field(
        default=None,
        metadata={"help": "PEM certificate chain of this collector, for agents and for the page"},
    )
    tls_key: Path | None = field(
        default=None, metadata={"help": "its PEM private key; others must not be able to read it"}
    )
    client_ca: Path | None = field(
        default=None,
        metadata={"help": "PEM certificates that sign agents' own; each is asked for one then"},
    )
    agent_tokens: Path | None = field(
        default=None,
        metadata={"help": "TOML file of the tokens that may send, and for which nodes"},
    )
    read_tokens: Path | None = field(
        default=None, metadata={"help": "TOML file of tokens that may read, and of which team"}
    )
    hosts: Sequence[str] = field(
        default=(),
        metadata={
            "help": "names by which a proxy on this machine is asked for the page (repeatable)"
        },
    )
    streams_per_peer: int = field(
        default=8, metadata={"help": "streams that one credential may hold open for one node"}
    )
    frames_per_s: float = field(
        default=500.0,
        metadata={"help": "frames per second that one credential may send, bursts of 10 s aside"},
    )

    def __post_init__(self) -> None:
        """Raises: BadSetting for values that do not go together."""
        if (self.tls_cert is None) != (self.tls_key is None):
            have, lack = ("cert", "key") if self.tls_cert else ("key", "cert")
            raise BadSetting(
                f"security.tls_{have} stands without security.tls_{lack}: TLS takes both."
            )
        if self.client_ca is not None and self.tls_cert is None:
            raise BadSetting(
                "security.client_ca stands without security.tls_cert: agents' certificates can "
                "be asked for only over TLS. Add tls_cert and tls_key."
            )
        if self.streams_per_peer < 1:
            raise BadSetting("security.streams_per_peer = 0: no agent could send; write 1 or more.")
        if not 0 < self.frames_per_s < math.inf:
            raise BadSetting(
                f"security.frames_per_s = {self.frames_per_s:g}: write how many frames one "
                "credential may send in a second, above 0; an agent makes one in 10 s."
            )

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.tls_cert is not None

"""All of [security], made once at the start, before anything is opened or served."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from prometheus_client import CollectorRegistry

from joulegram.collector.security import counts, fresh
from joulegram.collector.security.config import SecurityConfig
from joulegram.collector.security.fresh import Fresh
from joulegram.collector.security.peers import Peers
from joulegram.collector.security.tls import Certificates
from joulegram.collector.security.tokens import Reader, Tokens, readers

log = logging.getLogger(__name__)


class Guard:
    """Certificates, tokens, and who may send."""

    def __init__(self, config: SecurityConfig) -> None:
        """Raises: BadSetting naming the file that cannot be used, and what to do."""
        # The collector's own directory changes later; the files are looked for again and again.
        config = replace(
            config,
            tls_cert=_absolute(config.tls_cert),
            tls_key=_absolute(config.tls_key),
            client_ca=_absolute(config.client_ca),
            agent_tokens=_absolute(config.agent_tokens),
            read_tokens=_absolute(config.read_tokens),
        )
        self._knows_agents = bool(config.client_ca or config.agent_tokens)
        self.certificates = Certificates(config) if config.tls else None
        self.peers = Peers(config)
        self.hosts = config.hosts
        self.readers: Fresh[Tokens[Reader]] | None = None
        if (path := config.read_tokens) is not None:
            self.readers = Fresh("read_tokens", [path], lambda: readers(path))

    def warn_of_strangers(self, *, agents: bool, web: bool) -> None:
        """Say so where TLS keeps eavesdroppers away, and nothing keeps strangers away.

        Args:
            agents, web: whether other machines can reach them.
        """
        if self.certificates is None:
            return
        if agents and not self._knows_agents:
            log.warning(
                "any machine that reaches the agents' port may send as any node: set client_ca or "
                "agent_tokens in [security]."
            )
        if web and self.readers is None:
            log.warning(
                "anybody who reaches the page sees everything: set read_tokens in [security]."
            )

    def register(self, registry: CollectorRegistry) -> None:
        """Show what is counted of it in a registry."""
        counts.register(registry)

    async def run(self, every_s: float = fresh.EVERY_S) -> None:
        """Take changed files until cancelled. They are small and local: no thread is needed."""
        refreshes: list[Callable[[], object]] = [self.peers.refresh]
        if self.certificates is not None:
            refreshes.append(self.certificates.refresh)
        if self.readers is not None:
            refreshes.append(self.readers.refresh)
        while True:
            await asyncio.sleep(every_s)
            for refresh in refreshes:
                refresh()


def _absolute(path: Path | None) -> Path | None:
    return path and path.absolute()

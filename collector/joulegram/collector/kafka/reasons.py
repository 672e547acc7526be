"""Why brokers do not let us in, in words that say what to check.

Of a wrong password, another authority's certificate or a port that wants TLS, the clients of
kafka-python say what they say of a broker that is away: they timed out. Why is in its log alone.
"""

import logging
import re
import time

from kafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailedError,
)

from joulegram.collector.errors import BadSetting

LOGGER = logging.getLogger("kafka.net.manager")
FRESH_S = 30.0
HELD_S = 5.0  # what tells more, against what follows it in the same attempt
SAID = re.compile(
    r"(?:Connection|Bootstrap (?:connection|attempt) to \S+) failed: "
    r"(?:\[Error \d+\] )?(?:\w+Error: )*(.+?)(?: \(backoff [\d.]+ secs\))?$",
    re.DOTALL,
)
# What it says, and what to check then; what tells most comes first, for the others follow it.
CHECK = (
    ("Sasl", "check kafka.sasl, kafka.username and kafka.password_file"),
    ("CERTIFICATE_VERIFY_FAILED", "check kafka.ca_file, and that kafka.brokers has the names in "
     "the brokers' certificates"),
    ("_ALERT_", "they do not take our certificate: check kafka.cert_file and kafka.key_file"),
    ("[SSL: ", "that port speaks no TLS, it seems: check kafka.tls"),
    ("socket disconnected", "that port may want TLS or a log-in: check kafka.tls and kafka.sasl"),
    ("ECONNREFUSED", "nobody listens there: check kafka.brokers"),
)  # fmt: skip


class Heard(logging.Handler):
    """What the library's log last said of a connection that failed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said, self._rank, self._at_s = "", len(CHECK), float("-inf")

    def emit(self, record: logging.LogRecord) -> None:
        if (said := SAID.match(record.getMessage())) is None:
            return
        rank = next((n for n, (word, _) in enumerate(CHECK) if word in said[0]), len(CHECK))
        now_s = time.monotonic()
        if rank <= self._rank or now_s - self._at_s > HELD_S:
            # It comes from outside, and goes into one line.
            words = "".join(c if c.isprintable() else " " for c in said[1]).split()
            self._said, self._rank, self._at_s = " ".join(words), rank, now_s

    def reason(self) -> str:
        """It, and what to check; "" when it is no news."""
        if time.monotonic() - self._at_s > FRESH_S:
            return ""
        check = CHECK[self._rank][1] if self._rank < len(CHECK) else ""
        return f"{self._said[:300]}{check and '; '}{check}"


heard = Heard()


def listen() -> None:
    """Hear the reasons from now on. The log tells each attempt; whoever gives up tells us once."""
    if heard not in LOGGER.handlers:
        LOGGER.setLevel(logging.WARNING)
        LOGGER.propagate = False
        LOGGER.addHandler(heard)


def told(failed: BaseException) -> str:
    """What failed, for a person."""
    unsaid = KafkaTimeoutError | KafkaConnectionError | SaslAuthenticationFailedError
    if isinstance(failed, unsaid) and (why := heard.reason()):
        return why
    # The library's own begin with their names. Never repr: it may hold what a file does.
    own = isinstance(failed, KafkaError | BadSetting)
    return str(failed) if own else f"{type(failed).__name__}: {failed}"

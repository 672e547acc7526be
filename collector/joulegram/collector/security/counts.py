"""What is counted of security, for /metrics. Every label has few values."""

from prometheus_client import CollectorRegistry, Counter, Gauge

RELOAD_FAILING = Gauge(
    "joulegram_security_reload_failing",
    "1 while a changed file of [security] cannot be used; what was read before stays in force.",
    ["key"],
    registry=None,
)
CERTIFICATE_EXPIRY = Gauge(
    "joulegram_tls_certificate_expiry_timestamp_seconds",
    "When the certificate in force ends, seconds since 1970 UTC; 0: no TLS.",
    registry=None,
)
STREAMS_DENIED = Counter(
    "joulegram_intake_denied",
    "Streams ended for want of credentials, for another's name, or for taking too much.",
    ["reason"],
    registry=None,
)
REQUESTS_DENIED = Counter(
    "joulegram_web_denied", "HTTP requests denied, by reason.", ["reason"], registry=None
)


def register(registry: CollectorRegistry) -> None:
    """Show all of them in a registry."""
    for metric in (RELOAD_FAILING, CERTIFICATE_EXPIRY, STREAMS_DENIED, REQUESTS_DENIED):
        registry.register(metric)

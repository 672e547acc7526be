"""How this collector reaches the brokers: addresses, TLS, log-in. Secrets come from files."""

from typing import Any

from joulegram.collector.errors import BadSetting
from joulegram.collector.kafka.config import KafkaConfig
from joulegram.collector.kafka.reasons import listen

NAME = "joulegram"


def connection(config: KafkaConfig, *, bootstrap_s: float = 10.0) -> dict[str, Any]:
    """Keyword arguments that every client of kafka-python takes.

    Files are read anew at each call, so that a rotated password or certificate is taken with
    the next connection. Raises: BadSetting for a file that cannot be read.
    """
    listen()
    scheme = "SASL_" if config.sasl else ""
    said: dict[str, Any] = {
        "bootstrap_servers": list(config.brokers),
        "client_id": NAME,
        "security_protocol": scheme + ("SSL" if config.tls else "PLAINTEXT"),
        "bootstrap_timeout_ms": round(bootstrap_s * 1000),
        "reconnect_backoff_max_ms": 2_000,
    }
    for name, path in (
        ("ssl_cafile", config.ca_file),
        ("ssl_certfile", config.cert_file),
        ("ssl_keyfile", config.key_file),
    ):
        if path is not None:
            if not path.is_file():
                raise BadSetting(f"[kafka] names {path}, which is no file that we may read.")
            said[name] = str(path)
    if config.sasl:
        assert config.password_file is not None
        try:
            password = config.password_file.read_text().strip()
        except UnicodeDecodeError:
            raise BadSetting(
                f"kafka.password_file {config.password_file} is not UTF-8 text."
            ) from None  # it would show the password
        except OSError as denied:
            raise BadSetting(
                f"kafka.password_file {config.password_file}: {denied.strerror}. Write the "
                "password into it, readable to this user alone."
            ) from denied
        said["sasl_mechanism"] = config.sasl
        said["sasl_plain_username"] = config.username
        said["sasl_plain_password"] = password
    return said

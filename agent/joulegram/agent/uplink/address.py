"""Where the collector is: HOST:PORT, and whether plaintext may go there."""

import ipaddress

from joulegram.agent.errors import UplinkRefused


def address(collector: str, insecure: bool) -> tuple[str, int]:
    """Host and port of HOST:PORT.

    Raises: UplinkRefused when it is malformed, or plaintext would leave this machine unasked.
    """
    host, _, port = collector.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    in_brackets = host == f"[{bare}]"
    if (
        not bare
        or not (in_brackets or bare == host)
        or not (port.isascii() and port.isdecimal() and 0 < int(port) < 2**16)
        or in_brackets != (":" in bare)
    ):
        raise UplinkRefused(
            f"collector = {collector!r} is not HOST:PORT; write it like 127.0.0.1:7471 or "
            "[::1]:7471."
        )
    if not insecure and not _is_loopback(bare):
        raise UplinkRefused(
            f"collector = {collector!r} is beyond this machine, and the way there is not "
            "encrypted. Set `tls_ca` under [agent] to the authority that signed the collector's "
            "certificate (`tls = true` for the system's own), or `insecure = true` "
            "(--agent-insecure) if the network is trusted."
        )
    return bare, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

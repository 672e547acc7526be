"""What one process of a collector does: all of it, or the roles that `--role` names.

intake  takes agents' frames, and hands them to Kafka or to the writer of this process
writer  puts frames into the ledger, from Kafka or from the intake of this process; slots, retention
grid    asks the grid feeds; records site, team rules and retired nodes of its configuration
web     serves API and page, and /metrics of nodes, workloads and teams

Every process serves /metrics of what it does.
"""

from joulegram.collector.errors import BadSetting

INTAKE, WRITER, GRID, WEB = ROLES = ("intake", "writer", "grid", "web")
ALL = "all"


def roles_of(text: str) -> frozenset[str]:
    """The roles that a list such as `writer,grid,web` names. Raises: BadSetting."""
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    if names == {ALL}:
        return frozenset(ROLES)
    if not names or not names <= set(ROLES):
        unknown = ", ".join(sorted(names - set(ROLES))) or text
        raise BadSetting(
            f"collector.role = {text!r}: no role {unknown!r}; write all, or some of "
            f"{', '.join(ROLES)} separated by commas."
        )
    return names


def check_roles(roles: frozenset[str], *, kafka: bool, embedded: bool) -> None:
    """Whether these roles can do their work together.

    Args:
        kafka: frames go from intake to writer through Kafka.
        embedded: the ledger is a directory, which one process alone can open.
    Raises: BadSetting naming the remedy.
    """
    if not kafka and (INTAKE in roles) != (WRITER in roles):
        alone, other = (INTAKE, WRITER) if INTAKE in roles else (WRITER, INTAKE)
        raise BadSetting(
            f"collector.role has {alone} without {other}, and no Kafka between them: name its "
            f"brokers in [kafka], or run both in one process (--role all)."
        )
    of_ledger = {WRITER, GRID, WEB}
    if embedded and roles & of_ledger and not roles >= of_ledger:
        raise BadSetting(
            f"collector.role has {', '.join(sorted(roles & of_ledger))} without "
            f"{', '.join(sorted(of_ledger - roles))}: the embedded ledger is open in one process "
            "alone, so these go together (--role writer,grid,web). To part them, name ClickHouse "
            "servers in [clickhouse]."
        )

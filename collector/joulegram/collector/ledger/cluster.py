"""The same schema on a cluster: what each server holds, and what questions are asked of.

In database `<name>_local` lies what a server holds: replicated tables, to which writers of that
shard write. Database `<name>` is what everybody asks: the same names over all shards. Nobody
writes through those: a Distributed table acknowledges before it has stored.
Few and asked by every join are the tables EVERYWHERE: every server holds all of their rows.
"""

import re
from collections.abc import Iterator

EVERYWHERE = frozenset({"schema_versions", "workloads", "intensity", "settings"})

_CREATE = re.compile(
    r"CREATE TABLE IF NOT EXISTS (?P<table>\w+)(?P<columns>.*)"
    r"ENGINE = (?P<engine>\w*MergeTree)(?:\((?P<arguments>[^)]*)\))?(?P<rest>.*)",
    re.DOTALL,
)
_ALTER = re.compile(r"ALTER TABLE (?P<table>\w+) (?P<rest>.*)", re.DOTALL)


def local(database: str) -> str:
    """The database of what one server of a cluster holds."""
    return f"{database}_local"


def on_cluster(statement: str, cluster: str, database: str) -> Iterator[str]:
    """A statement of schema/ as the servers of a cluster are to run it; as it is without one.

    Raises: ValueError for a statement that is neither CREATE TABLE IF NOT EXISTS of a MergeTree
        nor ALTER TABLE: a new kind needs a thought about what it means on many servers.
    """
    if not cluster:
        yield statement
        return
    everywhere = f"ON CLUSTER `{cluster}`"
    own = local(database)
    if made := _CREATE.fullmatch(statement):
        table, arguments = made["table"], made["arguments"]
        whole = table in EVERYWHERE
        shard, replica = ("all", "{shard}-{replica}") if whole else ("{shard}", "{replica}")
        replicated = ", ".join(
            [f"'/clickhouse/tables/{shard}/{database}/{table}'", f"'{replica}'"]
            + ([arguments] if arguments else [])
        )
        yield (
            f"CREATE TABLE IF NOT EXISTS {own}.{table} {everywhere}{made['columns']}"
            f"ENGINE = Replicated{made['engine']}({replicated}){made['rest']}"
        )
        yield _asked(table, cluster, database)
    elif changed := _ALTER.fullmatch(statement):
        table = changed["table"]
        yield f"ALTER TABLE {own}.{table} {everywhere} {changed['rest']}"
        if not changed["rest"].startswith("MODIFY COLUMN"):
            # What asks all shards holds nothing, and cannot be altered ON CLUSTER: made anew.
            yield f"DROP TABLE IF EXISTS {database}.{table} {everywhere}"
            yield _asked(table, cluster, database)
    else:
        raise ValueError(f"not known how to run this on a cluster: {statement[:80]}")


def _asked(table: str, cluster: str, database: str) -> str:
    engine = (
        f"Merge({local(database)}, '^{table}$')"
        if table in EVERYWHERE
        else f"Distributed(`{cluster}`, {local(database)}, {table})"
    )
    return (
        f"CREATE TABLE IF NOT EXISTS {database}.{table} ON CLUSTER `{cluster}` "
        f"AS {local(database)}.{table} ENGINE = {engine}"
    )


def databases(cluster: str, database: str) -> list[str]:
    """Statements that make the databases everywhere, and `parts`, which asks every shard for its
    system.parts; none without a cluster.
    """
    if not cluster:
        return []
    everywhere = f"ON CLUSTER `{cluster}`"
    return [
        f"CREATE DATABASE IF NOT EXISTS {database} {everywhere}",
        f"CREATE DATABASE IF NOT EXISTS {local(database)} {everywhere}",
        f"CREATE TABLE IF NOT EXISTS {database}.parts {everywhere} AS system.parts "
        f"ENGINE = Distributed(`{cluster}`, system, parts)",
    ]

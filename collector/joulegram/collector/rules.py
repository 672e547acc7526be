"""Who answers for a workload: rules from the configuration, first match wins.

Pure, and Python's own library alone: the configuration is checked here before any part runs.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from typing import Any

from joulegram.collector.errors import BadSetting

UNASSIGNED = "unassigned"
RESERVED_KINDS = ("idle", "system", "unattributed")
_PATTERNS = ("user", "project", "account", "unit", "kind", "name", "scope", "id")


def check_rules(rules: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rules as the ledger stores them: values are shell patterns, `since` ISO 8601 in UTC.

    Raises: BadSetting naming the rule's number, the key and the remedy.
    """
    return [_checked(number, rule) for number, rule in enumerate(rules, start=1)]


def starts_s(rules: Sequence[Mapping[str, str]]) -> list[int]:
    """The times (epoch seconds, ascending) at which a rule begins to count."""
    return sorted({_since_s(rule) for rule in rules} - {0})


def team_of(rules: Sequence[Mapping[str, str]], who: Mapping[str, Any], at_s: int) -> str:
    """The team of a workload at a time.

    Args:
        rules: as `check_rules` returns them.
        who: {scope, kind, id, user, project, name, attributes: {name: value}}.
        at_s: epoch seconds; rules whose `since` is later do not count.
    Idle, system and unattributed energy is nobody's unless a rule names the kind: a rule
    such as `user = "*"` is about people's workloads.
    """
    for rule in rules:
        if _since_s(rule) > at_s or (who["kind"] in RESERVED_KINDS and "kind" not in rule):
            continue
        patterns = [(_field(who, k), p) for k, p in rule.items() if k not in ("team", "since")]
        if all(value is not None and fnmatchcase(value, pattern) for value, pattern in patterns):
            return rule["team"]
    return UNASSIGNED


def _field(who: Mapping[str, Any], key: str) -> str | None:
    """None: it has no such thing, which not even `*` matches."""
    if key.startswith("label."):
        label = who["attributes"].get(key.removeprefix("label."))
        return None if label is None else str(label)
    if key == "unit":
        return str(who["id"]) if who["kind"] == "systemd" else None
    return str(who["project" if key == "account" else key])


def _since_s(rule: Mapping[str, str]) -> int:
    return int(datetime.fromisoformat(rule["since"]).timestamp()) if "since" in rule else 0


def _checked(number: int, rule: Mapping[str, Any]) -> dict[str, str]:
    where = f"teams.rules, rule {number}"
    if not isinstance(rule, Mapping):
        raise BadSetting(f'{where} is {rule!r}: write a table, [[teams.rules]] team = "..."')
    team = rule.get("team")
    if not isinstance(team, str) or not team.strip():
        raise BadSetting(f'{where} has no team: add team = "the team\'s name".')
    checked = {"team": team}
    # TOML reads `label.app = "x"` as a table in a table.
    flat = {k: v for k, v in rule.items() if k not in ("team", "since", "label")}
    labels = rule.get("label", {})
    if not isinstance(labels, Mapping):
        raise BadSetting(f'{where}: label = {labels!r}: write label.<name> = "pattern".')
    flat |= {f"label.{name}": pattern for name, pattern in _dotted(labels).items()}
    for key, pattern in flat.items():
        if key not in _PATTERNS and not (key.startswith("label.") and key != "label."):
            raise BadSetting(
                f"{where}: unknown key {key!r}. Accepted: team, since, {', '.join(_PATTERNS)}, "
                "label.<name>."
            )
        if not isinstance(pattern, str) or not pattern:
            # An empty pattern would match everything that has no such field.
            raise BadSetting(
                f"{where}: {key} = {pattern!r}: write a shell pattern in quotes, "
                f'such as {key} = "web-*".'
            )
        checked[key] = pattern
    if len(checked) == 1:
        raise BadSetting(
            f'{where} matches nothing: add a pattern, such as user = "alice" or unit = "web-*"; '
            'kind = "*" matches every workload.'
        )
    if "since" in rule:
        checked["since"] = _since(where, rule["since"])
    return checked


def _dotted(labels: Mapping[str, Any]) -> dict[str, Any]:
    """TOML reads `label.app.kubernetes.io/name` as tables in tables; undo it."""
    flat: dict[str, Any] = {}
    for name, value in labels.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{rest}": v for rest, v in _dotted(value).items()}
        else:
            flat[name] = value
    return flat


def _since(where: str, value: Any) -> str:
    try:
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day, tzinfo=UTC)
        elif isinstance(value, str):
            value = datetime.fromisoformat(value)
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        if moment.timestamp() < 0:
            raise ValueError
        return str(moment.astimezone(UTC).isoformat())
    except (AttributeError, ValueError, OverflowError):
        raise BadSetting(
            f"{where}: since = {value!r} is no date: write since = 2026-03-01, or with a time "
            "2026-03-01T12:00:00Z."
        ) from None

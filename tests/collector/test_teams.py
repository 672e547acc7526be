"""Team rules: first match wins, and a rule that cannot hold says so."""

from datetime import UTC, date, datetime
from typing import Any

import pytest

from joulegram.collector.errors import BadSetting
from joulegram.collector.rules import check_rules, team_of


def who(kind: str = "slurm", **more: Any) -> dict[str, Any]:
    plain = {"scope": "", "id": "", "user": "", "project": "", "name": "", "attributes": {}}
    return plain | {"kind": kind} | more


def team(rules: list[dict[str, Any]], owner: dict[str, Any], at_s: int = 0) -> str:
    return team_of(check_rules(rules), owner, at_s)


@pytest.mark.parametrize(
    ("rule", "owner"),
    [
        ({"user": "ada"}, who(user="ada")),
        ({"user": "a[cd]*"}, who(user="ada")),
        ({"project": "ml-*"}, who(project="ml-vision")),
        ({"account": "ml-*"}, who(project="ml-vision")),
        ({"unit": "web-?.service"}, who("systemd", id="web-1.service")),
        ({"kind": "container"}, who("container")),
        ({"name": "train*"}, who(name="train-7")),
        ({"scope": "cluster"}, who(scope="cluster")),
        ({"id": "4?"}, who(id="42")),
        ({"label": {"app": "shop"}}, who("container", attributes={"app": "shop"})),
        ({"label.app": "shop"}, who("container", attributes={"app": "shop"})),
        (
            {"label": {"app": {"kubernetes": {"io/name": "shop"}}}},
            who("kubernetes", attributes={"app.kubernetes.io/name": "shop"}),
        ),
        ({"user": "ada", "kind": "slurm"}, who(user="ada")),
        ({"kind": "*"}, who()),
        ({"kind": "idle"}, who("idle")),
    ],
)
def test_a_pattern_matches(rule: dict[str, Any], owner: dict[str, Any]) -> None:
    assert team([{"team": "x", **rule}], owner) == "x"


@pytest.mark.parametrize(
    ("rule", "owner"),
    [
        ({"user": "ada"}, who(user="Ada")),
        ({"user": "ada"}, who(user="ada2")),
        ({"user": "ada", "kind": "slurm"}, who("container", user="ada")),
        ({"unit": "*"}, who("slurm", id="42")),
        ({"label": {"app": "?*"}}, who("container")),
        ({"user": "*"}, who("idle")),
        ({"user": "*"}, who("system")),
        ({"name": "*"}, who("unattributed")),
    ],
)
def test_and_otherwise_it_is_unassigned(rule: dict[str, Any], owner: dict[str, Any]) -> None:
    assert team([{"team": "x", **rule}], owner) == "unassigned"


def test_the_first_match_wins() -> None:
    rules = [{"team": "a", "user": "ada"}, {"team": "b", "user": "*"}, {"team": "c", "kind": "*"}]
    assert team(rules, who(user="ada")) == "a"
    assert team(rules, who(user="bob")) == "b"
    assert team(rules, who("system")) == "c"


@pytest.mark.parametrize(
    "since",
    [
        date(2026, 3, 1),
        datetime(2026, 3, 1, tzinfo=UTC),
        datetime(2026, 3, 1),
        "2026-03-01",
        "2026-03-01T01:00:00+01:00",
    ],
)
def test_a_rule_counts_from_its_since(since: Any) -> None:
    start_s = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
    rules = [{"team": "new", "user": "ada", "since": since}, {"team": "old", "user": "ada"}]
    assert team(rules, who(user="ada"), start_s - 1) == "old"
    assert team(rules, who(user="ada"), start_s) == "new"


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"user": "ada"}, "rule 2 has no team"),
        ({"team": "", "user": "ada"}, "rule 2 has no team"),
        ({"team": 7, "user": "ada"}, "rule 2 has no team"),
        ({"team": "x"}, "rule 2 matches nothing"),
        ({"team": "x", "since": "2026-03-01"}, "rule 2 matches nothing"),
        ({"team": "x", "uesr": "ada"}, "rule 2: unknown key 'uesr'.*user, project"),
        ({"team": "x", "user": 7}, "rule 2: user = 7: write a shell pattern"),
        ({"team": "x", "user": ""}, "rule 2: user = ''"),
        ({"team": "x", "user": ["ada"]}, "rule 2: user ="),
        ({"team": "x", "label": "shop"}, "rule 2: label = 'shop'"),
        ({"team": "x", "label.": "shop"}, "rule 2: unknown key 'label.'"),
        ({"team": "x", "user": "a", "since": "March"}, "rule 2: since = 'March' is no date"),
        ({"team": "x", "user": "a", "since": 2026}, "rule 2: since = 2026 is no date"),
        ({"team": "x", "user": "a", "since": "1960-01-01"}, "rule 2: since"),
        ("ml", "rule 2 is 'ml'"),
    ],
)
def test_a_bad_rule_is_named_with_its_remedy(rule: Any, says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        check_rules([{"team": "good", "user": "bob"}, rule])

"""Flag before environment before file before default; what is not understood is refused."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from joulegram.cli import parts, settings
from joulegram.cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class Kettle:
    """A table with one key of every kind."""

    site: str = "here"
    warm: bool = False
    cups: int = 2
    tick_s: float = field(default=10.0, metadata={"flag": "tick"})
    state: Path = Path("~/kettle")
    idle_w: Mapping[str, float] = field(default_factory=dict)
    spouts: Sequence[str] = ()
    rules: Sequence[dict[str, Any]] = field(default=(), metadata={"flag": None})
    token: str = field(default="", metadata={"secret": True})
    limit_w: float | None = None


def read(
    *argv: str, toml: str | None = None, folder: Path | None = None, **environ: str
) -> settings.Settings:
    parser = argparse.ArgumentParser()
    settings.add_flags(parser, "kettle", Kettle)
    file = None
    if toml is not None:
        assert folder is not None
        file = folder / "joulegram.toml"
        file.write_text(toml)
    return settings.read(
        {"kettle": Kettle}, ["kettle", "oven"], vars(parser.parse_args(argv)), file, environ
    )


def kettle(found: settings.Settings) -> Kettle:
    built: Kettle = found.build("kettle", Kettle)
    return built


def origin(found: settings.Settings, name: str) -> str:
    return next(one.origin for one in found.given if one.key.name == name)


def test_defaults_stand_where_nobody_spoke() -> None:
    found = read()
    assert kettle(found) == Kettle(state=Path("~/kettle").expanduser())
    assert {one.origin for one in found.given} == {"default"}


def test_flag_goes_before_environment_before_file_before_default(tmp_path: Path) -> None:
    toml = "[kettle]\ntick_s = 1\ncups = 1\nsite = 'file'"
    found = read(
        "--tick=3",
        toml=toml,
        folder=tmp_path,
        JOULEGRAM_KETTLE_TICK_S="2",
        JOULEGRAM_KETTLE_CUPS="7",
    )
    got = kettle(found)
    assert (got.tick_s, got.cups, got.site, got.warm) == (3.0, 7, "file", False)
    assert origin(found, "tick_s") == "--tick"
    assert origin(found, "cups") == "JOULEGRAM_KETTLE_CUPS"
    assert origin(found, "site") == str(tmp_path / "joulegram.toml")
    assert origin(found, "warm") == "default"


def test_every_kind_can_be_said_in_every_way(tmp_path: Path) -> None:
    by_file = read(
        toml="[kettle]\nwarm=true\ncups=3\ntick_s=0.5\nstate='/k'\nidle_w={a=1.5,b=2}\n"
        "spouts=['x','y']\nlimit_w=9\n",
        folder=tmp_path,
    )
    by_flag = read(
        *("--warm", "--cups=3", "--tick=0.5", "--state=/k", "--idle-w=a=1.5", "--idle-w=b=2"),
        *("--spouts=x", "--spouts=y", "--limit-w=9"),
    )
    by_variable = read(
        JOULEGRAM_KETTLE_WARM="true",
        JOULEGRAM_KETTLE_CUPS="3",
        JOULEGRAM_KETTLE_TICK_S="0.5",
        JOULEGRAM_KETTLE_STATE="/k",
        JOULEGRAM_KETTLE_IDLE_W="a=1.5, b=2",
        JOULEGRAM_KETTLE_SPOUTS="x,y",
        JOULEGRAM_KETTLE_LIMIT_W="9",
    )
    said = Kettle(
        warm=True,
        cups=3,
        tick_s=0.5,
        state=Path("/k"),
        idle_w={"a": 1.5, "b": 2.0},
        spouts=("x", "y"),
        limit_w=9.0,
    )
    assert kettle(by_file) == kettle(by_flag) == kettle(by_variable) == said


def test_entries_of_a_mapping_are_merged_one_by_one(tmp_path: Path) -> None:
    found = read(
        "--idle-w=b=20", toml="[kettle.idle_w]\na = 1\nb = 2", folder=tmp_path, JOULEGRAM_URL="x"
    )
    assert kettle(found).idle_w == {"a": 1.0, "b": 20.0}


def test_what_was_flagged_can_be_said_again_to_a_child() -> None:
    argv = ["--no-warm", "--tick=3", "--idle-w=a=1", "--idle-w=b=2"]
    found = read(*argv)
    assert [word for one in found.given for word in one.words] == argv


def test_tables_of_other_parts_may_stand_in_the_file(tmp_path: Path) -> None:
    assert kettle(read(toml="[oven]\nanything = 1", folder=tmp_path)).cups == 2


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ("[ketle]", r"unknown table \[ketle\]; did you mean kettle\?"),
        ("[kettle]\ntick = 1", r"\[kettle\] has no key tick; did you mean tick_s\?"),
        ("[kettle]\nzzz = 1", r"\[kettle\] has no key zzz; known: cups, idle_w"),
        ("cups = 1", r"cups = \.\.\. stands outside a table"),
        ("[kettle", r"not TOML: Expected"),
        (
            "[kettle]\ntick_s = '10s'",
            r'\[kettle\] tick_s = "10s": takes a number of seconds, 0 or more, such as 10$',
        ),
        ("[kettle]\ntick_s = nan", r"takes a number of seconds"),
        ("[kettle]\ntick_s = inf", r"takes a number of seconds"),
        ("[kettle]\ntick_s = -1", r"takes a number of seconds, 0 or more"),
        ("[kettle]\ntick_s = true", r"takes a number of seconds"),
        ("[kettle]\ncups = 1.5", r"cups = 1\.5: takes a whole number, 0 or more, such as 2$"),
        (f"[kettle]\ncups = {10**400}", r"takes a whole number"),
        ("[kettle]\nwarm = 'yes'", r"takes true or false"),
        ("[kettle]\nstate = 3", r"takes a path"),
        ("[kettle]\nsite = 3", r"takes a string"),
        ("[kettle]\nidle_w = 3", r"takes NAME=VALUE entries, each value a number of watts"),
        ("[kettle.idle_w]\na = '3W'", r'idle_w = { a = "3W" }: takes NAME=VALUE'),
        ("[kettle]\nrules = ['a']", r"takes tables"),
        ("[kettle]\nspouts = 'a'", r"takes a list of strings"),
    ],
)
def test_a_file_is_refused_by_name_value_and_remedy(
    toml: str, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=complaint) as refused:
        read(toml=toml, folder=tmp_path)
    assert str(tmp_path / "joulegram.toml") in str(refused.value)


def test_flags_and_variables_are_refused_by_their_own_names() -> None:
    with pytest.raises(UsageError, match=r"^--tick 10s: takes a number of seconds"):
        read("--tick=10s")
    with pytest.raises(UsageError, match=r"^--idle-w cpu0: takes NAME=VALUE"):
        read("--idle-w=cpu0")
    with pytest.raises(UsageError, match=r"^JOULEGRAM_KETTLE_TICK_S=1h: takes a number of sec"):
        read(JOULEGRAM_KETTLE_TICK_S="1h")
    with pytest.raises(UsageError, match=r"^unknown variable JOULEGRAM_KETTLE_TIK_S; did you mean"):
        read(JOULEGRAM_KETTLE_TIK_S="1")
    with pytest.raises(
        UsageError, match=r"^unknown variable JOULEGRAM_KETLE_TICK_S; known: .*KETTLE"
    ):
        read(JOULEGRAM_KETLE_TICK_S="1")
    with pytest.raises(UsageError, match=r"^--site n\\xff: is not UTF-8"):
        read("--site=n\udcff")


def test_a_secret_is_not_repeated_in_a_complaint(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        read(toml="[kettle]\ntoken = 1234", folder=tmp_path)
    assert "1234" not in str(refused.value)


def test_a_kubernetes_service_named_like_a_part_is_no_misspelt_key() -> None:
    found = read(
        JOULEGRAM_KETTLE_PORT="tcp://10.0.0.1:7470",
        JOULEGRAM_KETTLE_SERVICE_HOST="10.0.0.1",
        JOULEGRAM_GRAFANA_SERVICE_HOST="10.0.0.2",
        JOULEGRAM_PORT="tcp://10.0.0.1:7470",
        JOULEGRAM_KETTLE_PORT_7470_TCP_ADDR="10.0.0.1",
    )
    assert kettle(found).cups == 2


def test_the_file_is_the_one_named_else_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    home = tmp_path / "config/joulegram/joulegram.toml"
    home.parent.mkdir(parents=True)
    home.write_text("")
    assert settings.find_file(None, environ) == home
    Path("joulegram.toml").write_text("")
    assert settings.find_file(None, environ) == Path("joulegram.toml")
    environ["JOULEGRAM_CONFIG"] = str(home)
    assert settings.find_file(None, environ) == home
    assert settings.find_file("joulegram.toml", environ) == Path("joulegram.toml")
    with pytest.raises(UsageError, match=r"--config nowhere\.toml: no such file"):
        settings.find_file("nowhere.toml", environ)


def test_no_two_keys_of_ours_share_a_flag() -> None:
    """`joulegram up` takes the flags of every part at once."""
    flags = [
        key.flag
        for table, cls in parts.tables().items()
        for key in settings.keys(table, cls)
        if key.flag
    ]
    assert len(flags) == len(set(flags))


def test_every_key_of_ours_explains_itself() -> None:
    for table, cls in parts.tables().items():
        for key in settings.keys(table, cls):
            assert key.help, key.id

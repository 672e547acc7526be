"""The command line speaks plainly: one page, one line per error, silent ends."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from joulegram.cli import main, parts
from tests.servers import joulegram


def said(*argv: str | bytes, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*joulegram(), *argv], capture_output=True, text=True, timeout=60, check=False, cwd=cwd
    )


def test_the_page_names_every_command() -> None:
    for command in [*main.OWN, *parts.parts()]:
        assert f"joulegram {command} " in main.PAGE


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"]])
def test_help_is_the_page(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(argv) == 0
    assert capsys.readouterr().out == main.PAGE


def test_help_is_quick() -> None:
    """CPU time, not wall time: the machine may be busy."""
    code = (
        "import time; from joulegram.cli.main import main; main(['--help']);"
        "import sys; sys.stderr.write(str(time.process_time()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stderr) < 0.2


@pytest.mark.parametrize("command", ["agent", "check", "collector", "config", "run", "up"])
def test_every_part_explains_its_flags(command: str) -> None:
    done = said(command, "--help")
    assert done.returncode == 0, done.stderr
    assert "--config FILE" in done.stdout


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["repot"], "no command repot; did you mean report?"),
        (["agent", "--winow", "10"], "agent: no flag --winow; did you mean --window?"),
        (["agent", "--window", "10s"], "--window 10s: takes a number of seconds"),
        (["agent", "--window"], "--window: expected one argument"),
        (["agent", "--zone", "GB"], "agent: --zone is a flag of [grid]"),
        (["agent", "extra"], "agent: extra is no flag"),
        (["agent", "--node", b"n\xff"], r"--node n\xff: is not UTF-8"),
        (["run", "--zone", "GB", "true"], "run: write `joulegram run [FLAGS] -- COMMAND"),
        (["run", "--collector", "x", "--", "true"], "run: --collector is a flag of [agent]"),
        (["report", "--sinc", "1h"], "report: no flag --sinc; did you mean --since?"),
        (["top", "--rows", "0"], "0: a whole number from 1 to 200"),
        # What only the part can judge is refused before any part runs.
        (["config", "--pue", "120"], "grid.pue = 120: PUE is facility energy / IT energy"),
        (["up", "--zone", "GBR"], "grid.zone = 'GBR' is no zone"),
        (["config", "--config", "none.toml"], "--config none.toml: no such file"),
    ],
)
def test_what_is_not_understood_is_one_line_and_status_2(
    argv: list[str | bytes], complaint: str
) -> None:
    done = said(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("joulegram: ")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_config_prints_toml_with_origins_and_can_be_read_back(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        '[grid]\nzone = "GB"\n[[teams.rules]]\nteam = "a"\nuser = "x*"\n[agent.idle_w]\ncpu0 = 3'
    )
    done = said("config", "--config", str(file), "--window", "60")
    assert done.returncode == 0, done.stderr
    printed = tomllib.loads(done.stdout)
    assert printed["grid"]["zone"] == "GB"
    assert printed["teams"]["rules"] == [{"team": "a", "user": "x*"}]
    assert printed["agent"]["idle_w"] == {"cpu0": 3.0}
    assert printed["agent"]["window_s"] == 60.0
    zone = next(line for line in done.stdout.splitlines() if line.startswith("zone ="))
    assert zone.endswith(f"# {file}")
    again = tmp_path / "again.toml"
    again.write_text(done.stdout)
    assert tomllib.loads(said("config", "--config", str(again)).stdout) == printed


def test_a_part_says_which_file_it_read(tmp_path: Path) -> None:
    (tmp_path / "joulegram.toml").write_text("[agent]\nnode = 'n1'")
    done = said("check", cwd=tmp_path)
    assert "configuration from joulegram.toml" in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    with subprocess.Popen(
        joulegram("config"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 141


def test_ctrl_c_is_silent(tmp_path: Path) -> None:
    with subprocess.Popen(
        joulegram("agent", "--print", "--state", tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stderr is not None
        time.sleep(1.0)  # long enough to be inside the part; sooner is silent as well
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
        assert process.wait(20) in (0, 130)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argv", [["version"], ["--help"], ["config"]])
def test_output_that_cannot_be_written_is_said(argv: list[str], unbuffered: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*joulegram(), *argv],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr == b"joulegram: cannot write what there is to say: No space left on device\n"


def test_a_configuration_may_come_from_a_device_or_a_pipe() -> None:
    assert said("config", "--config", "/dev/null").returncode == 0
    own, its = os.pipe()
    os.write(its, b'[grid]\nzone = "GB"\n')
    os.close(its)
    for command, status in (("config", 0), ("up", 2)):
        done = subprocess.run(
            [*joulegram(), command, f"--config=/dev/fd/{own}"],
            pass_fds=[own],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stderr
        if command == "up":  # it would start programs that have no such pipe
            assert "is a pipe" in done.stderr
        else:
            assert 'zone = "GB"' in done.stdout
    os.close(own)

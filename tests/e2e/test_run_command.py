"""`joulegram run` with real commands: what it counts, and that it is not in their way."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.agent.nvml.library import build, environment, play
from tests.agent.played import Machine
from tests.e2e.test_agent_program import fed
from tests.servers import joulegram, wait_until

WATTS, FLOOR_W = 50, 20

BURN = """
import sys, time
done = time.process_time() + float(sys.argv[1])
while time.process_time() < done: pass
"""
# 30 children that no tick sees twice, and one that leaves its parents behind.
FAMILY = """
import os, time
def burn(seconds):
    done = time.process_time() + seconds
    while time.process_time() < done: pass
for _ in range(30):
    if os.fork() == 0:
        burn(0.03)
        os._exit(0)
    os.wait()
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(0.7)  # adopted by now, and seen
        burn(0.4)
        os.write(write, b".")
    os._exit(0)
os.wait()
os.read(read, 1)
time.sleep(0.3)
"""


@pytest.fixture
def machine(tmp_path):
    """50 W that never change, in files that a feeder rewrites; the processes are real."""
    played = Machine(tmp_path / "machine")
    played.zone("intel-rapl:0", "package-0", watts=WATTS)
    with fed(played):
        yield played


def argv(machine, *command, flags=()):
    sysfs = [f"--sysfs={machine.root}/sys", f"--idle-w=cpu0={FLOOR_W}"] if machine else []
    return joulegram("run", "--node=n1", "--zone=GB", *sysfs, *flags, "--", *command)


def ran(machine, folder, *command, flags=(), **more):
    """What became of it, and its result or None."""
    file = folder / "result.json"
    done = subprocess.run(
        argv(machine, *command, flags=(f"--output={file}", *flags)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )
    return done, json.loads(file.read_text()) if file.exists() else None


def metered_all(result):
    """Whether what was metered is all the CPU time that the run is known to have used."""
    times = result["cpu_time_ns"]
    return times["metered"] == pytest.approx(times["used"], rel=0.01, abs=20_000_000)


def test_a_burner_gets_its_share_of_what_the_counter_counted(machine, tmp_path):
    done, result = ran(machine, tmp_path, sys.executable, "-c", BURN, "2")
    assert done.returncode == 0, done.stderr
    energy, idle = result["energy_uj"], result["machine_idle_uj"]
    (cpu,) = result["devices"]
    seconds = result["metered_s"]
    assert cpu["energy_uj"] == pytest.approx(WATTS * 1e6 * seconds, rel=0.2)
    assert idle["cpu"] == pytest.approx(FLOOR_W * 1e6 * seconds, rel=0.1)
    assert 0 < energy["cpu"] <= cpu["energy_uj"] - idle["cpu"]
    assert energy["total"] == energy["cpu"]
    assert result["quality"] == {"cpu": "measured", "total": "measured"}
    assert result["coverage"]["cpu"] > 0.95
    assert result["cpu_time_ns"]["used"] > 2e9
    assert metered_all(result)
    carbon = result["carbon"]
    assert carbon["grams_co2e"] == pytest.approx(energy["total"] / 3.6e12 * carbon["g_per_kwh"])
    assert (carbon["zone"], carbon["pue"]) == ("GB", 1.0)
    assert {"memory", "network, storage"} <= {one["what"] for one in result["not_metered"]}
    assert "Great Britain" in done.stderr and "Not metered: memory" in done.stderr


def test_children_that_come_and_go_and_daemons_are_the_runs(machine, tmp_path):
    done, result = ran(machine, tmp_path, sys.executable, "-c", FAMILY)
    assert done.returncode == 0, done.stderr
    assert result["cpu_time_ns"]["used"] > (30 * 0.03 + 0.4) * 1e9
    assert metered_all(result)
    assert result["left_running"] == 0


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 128 + signal.SIGKILL),
        (["sh", "-c", "sleep 3 > /dev/null 2>&1 & exit 0"], 0),
    ],
)
def test_the_exit_status_is_the_commands(tmp_path, command, status):
    done, result = ran(None, tmp_path, *command)
    assert done.returncode == result["exit_status"] == status
    assert result["left_running"] == ("sleep" in command[-1])


def test_a_command_that_is_not_there_is_127_and_starts_nothing(tmp_path):
    done, result = ran(None, tmp_path, "no-such-command-here")
    assert (done.returncode, result) == (127, None)
    assert done.stderr.count("\n") == 1 and "no such command" in done.stderr


def test_what_nobody_may_execute_is_126(tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    done, _ = ran(None, tmp_path, str(script))
    assert done.returncode in (126, 127)
    assert "Traceback" not in done.stderr


def test_streams_are_the_commands_own(tmp_path):
    done, _ = ran(None, tmp_path, "cat", input="through\n")
    assert done.stdout == "through\n"
    done, _ = ran(None, tmp_path, "echo", "--zone", "--", "-h", flags=["--quiet"])
    assert (done.stdout, done.stderr) == ("--zone -- -h\n", "")


@pytest.mark.parametrize("closed", ["0", "1", "2", "012"])
def test_streams_that_are_closed_stay_closed_and_cost_nothing(tmp_path, closed):
    """Files opened in their places would be taken for them, by the meter too."""
    script = (
        "import os, sys\n"
        "found = [n for n in '012' if os.path.exists(f'/proc/self/fd/{n}')]\n"
        "open(sys.argv[1], 'w').write(''.join(found))\n"
        "sys.exit(5)\n"
    )
    seen, file = tmp_path / "seen", tmp_path / "result.json"
    whole = argv(None, sys.executable, "-c", script, str(seen), flags=[f"--output={file}"])
    closing = " ".join(f"{n}>&-" for n in closed)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closing}', "sh", *whole],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 5
    assert seen.read_text() == "".join(n for n in "012" if n not in closed)
    assert json.loads(file.read_text())["metered_s"] > 0
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_a_signal_reaches_the_command_and_its_status_comes_back(tmp_path):
    file = tmp_path / "result.json"
    trap = 'trap "exit 9" TERM; echo up; while :; do sleep 0.05; done'
    with subprocess.Popen(
        argv(None, "sh", "-c", trap, flags=[f"--output={file}"]), stdout=subprocess.PIPE
    ) as running:
        assert running.stdout and running.stdout.readline() == b"up\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 9
    assert json.loads(file.read_text())["exit_status"] == 9


COUNTS = """
import signal, time
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
print("up", flush=True)
while not seen: time.sleep(0.02)
time.sleep(0.5)
raise SystemExit(40 + len(seen))
"""


def test_ctrl_c_on_a_terminal_reaches_the_command_once():
    pid, terminal = pty.fork()
    if pid == 0:
        command = argv(None, sys.executable, "-c", COUNTS)
        os.execv(command[0], [str(word) for word in command])
    said = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while more := os.read(terminal, 4096):
            if not said and b"up" in more:
                os.write(terminal, b"\x03")
            said += more
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 41, said
    assert b"joulegram run" in said and b"Traceback" not in said


def test_a_run_inside_a_run_steps_aside(tmp_path):
    inner = tmp_path / "inner.json"
    command = argv(None, "sh", "-c", "echo in; exit 5", flags=[f"--output={inner}"])
    done, result = ran(None, tmp_path, *map(str, command))
    assert (done.returncode, done.stdout) == (5, "in\n")
    assert result["exit_status"] == 5 and not inner.exists()
    assert done.stderr.count("CO2e") == 1
    assert "metered already" in done.stderr


def test_a_name_that_travelled_to_where_no_run_is_around_is_not_believed(tmp_path):
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    name = f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}/1/12345"
    done, result = ran(None, tmp_path, "true", env={**os.environ, "JOULEGRAM_RUN": name})
    assert done.returncode == 0 and result is not None


def rank(n, job, size=4):
    return {
        **os.environ,
        "OMPI_COMM_WORLD_RANK": str(n),
        "OMPI_COMM_WORLD_SIZE": str(size),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(size),
        "PMIX_NAMESPACE": job,
    }


def test_ranks_of_a_job_are_counted_once_and_the_last_one_says_it(machine, tmp_path):
    file = tmp_path / "result.json"
    script = BURN + "sys.exit(int(sys.argv[2]))"
    ranks = [
        subprocess.Popen(
            argv(
                machine,
                *(sys.executable, "-c", script, str(0.2 + 0.2 * n), str(n)),
                flags=[f"--output={file}"],
            ),
            env=rank(n, tmp_path.name),
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
    ]
    said = [process.communicate(timeout=60)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 1, 2, 3]
    assert sum("CO2e" in text for text in said) == 1
    result = json.loads(file.read_text())
    assert result["ranks"] == 4
    assert result["cpu_time_ns"]["used"] > 2.0e9
    assert metered_all(result)
    (cpu,) = result["devices"]
    assert 0 < result["energy_uj"]["total"] <= cpu["energy_uj"] - result["machine_idle_uj"]["cpu"]


def test_runs_beside_each_other_share_the_machine(machine, tmp_path):
    """The second takes the first's rank, so it is no rank of the same job."""
    files = [tmp_path / f"{n}.json" for n in range(2)]
    began = time.monotonic()
    runs = [
        subprocess.Popen(
            argv(machine, sys.executable, "-c", BURN, "1", flags=[f"--output={file}", "--quiet"]),
            env=rank(0, tmp_path.name),
        )
        for file in files
    ]
    assert [process.wait(60) for process in runs] == [0, 0]
    most_uj = (WATTS - FLOOR_W) * 1e6 * (time.monotonic() - began)
    results = [json.loads(file.read_text()) for file in files]
    assert [result["ranks"] for result in results] == [1, 1]
    assert all(metered_all(result) for result in results)
    assert 0 < sum(result["energy_uj"]["total"] for result in results) <= most_uj


def test_a_meter_that_dies_costs_the_number_alone(tmp_path):
    with subprocess.Popen(
        argv(None, "sh", "-c", "echo up; read x; exit 6"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdin and running.stdout and running.stderr
        assert running.stdout.readline() == b"up\n"
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text()
        meter, _command = map(int, children.split())
        os.kill(meter, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{meter}").exists(), "the meter's end")
        running.stdin.write(b"\n")
        running.stdin.close()
        said = running.stderr.read().decode()
        assert running.wait(30) == 6
    assert re.search(r"joulegram run: no result", said) and "Traceback" not in said


# It opens the GPU, rests, and works: the trace says so.
ON_A_GPU = """
import os, sys, time
def play(text):
    with open(sys.argv[1] + ".new", "w") as draft: draft.write(open(sys.argv[1]).read() + text)
    os.rename(draft.name, sys.argv[1])
play(f"process compute {os.getpid()}\\n")
time.sleep(2.5)
play(f"busy {os.getpid()} 60 100\\n")
time.sleep(2.5)
"""


def test_a_gpu_is_the_runs_from_when_it_opens_it(tmp_path):
    library, trace = build(tmp_path / "lib"), tmp_path / "trace"
    play(trace, f"gpu GPU-a\nenergy_mj 1000 {time.time_ns() // 1000} 200000\n")
    done, result = ran(
        None,
        tmp_path,
        *(sys.executable, "-c", ON_A_GPU, str(trace)),
        flags=["--idle-w=gpu:GPU-a=80"],
        env={**os.environ, **environment(library, trace)},
    )
    assert done.returncode == 0, done.stderr
    (gpu,) = [device for device in result["devices"] if device["component"] == "gpu"]
    assert gpu["name"] == "gpu:GPU-a" and gpu["coverage"] > 0.95
    assert gpu["energy_uj"] == pytest.approx(200e6 * result["metered_s"], rel=0.1)
    energy = result["energy_uj"]
    assert energy["gpu"] == gpu["run_uj"] == pytest.approx(2.5 * 120e6, rel=0.4)
    # Held and idle: all of it at first, then the floor.
    assert energy["gpu_held_idle"] == pytest.approx((2.5 * 200 + 2.5 * 80) * 1e6, rel=0.3)
    assert energy["gpu"] + energy["gpu_held_idle"] <= gpu["energy_uj"]
    assert "gpu, idle" in done.stderr and "1 GPU" in done.stderr


@pytest.mark.parametrize("broken", ["--procfs=/nonexistent", "--cgroupfs=/nonexistent"])
def test_whatever_cannot_be_metered_the_command_runs(tmp_path, broken):
    done, _ = ran(None, tmp_path, "sh", "-c", "exit 4", flags=[broken])
    assert done.returncode == 4
    assert "Traceback" not in done.stderr


def test_a_uid_that_nobody_knows_and_no_home_are_in_nobodys_way(machine, tmp_path):
    """As in a container that is started with any uid: learnt floors have no place, that is all."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root, with setpriv, can become somebody unknown")
    output = tmp_path / "run.json"
    tmp_path.chmod(0o777)
    # The interpreter, and this folder, may lie where only root may look.
    may = "+dac_override"
    unknown = ["setpriv", "--reuid=3999999", "--regid=3999999", "--clear-groups"]
    unknown += [f"--inh-caps={may}", f"--ambient-caps={may}"]
    done = subprocess.run(
        [*unknown, *argv(machine, "true", flags=[f"--output={output}"])],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "HOME"},
    )
    assert done.returncode == 0, done.stderr
    assert "joulegram run  true on n1" in done.stderr
    assert output.exists()

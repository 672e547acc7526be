"""The load model: what it claims to be off by, what it never says, and how it knows a machine."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import load_model as judged
from joulegram.agent.sensors.load import cpuinfo, rating
from joulegram.agent.sensors.load.cpufreq import REMEMBERED, Pace
from joulegram.agent.sensors.load.cpuinfo import CpuInfo, key_of
from joulegram.agent.sensors.load.model import (
    LEVEL,
    PACE_AT_REST,
    PACE_PER_LOAD,
    LoadModel,
    likely_pace,
    share_of_tdp,
)
from joulegram.agent.sensors.load.rating import DEFAULT_W_PER_CPU, MILAN, Rating, rating_of
from joulegram.agent.use.procfs import CpuTimes
from tests.agent.played import Clock

XEON = "Intel(R) Xeon(R) CPU E5-2620 v3 @ 2.40GHz"
LOADS = st.floats(0, 1)
PACES = st.one_of(st.none(), st.floats(0.01, 1))


def machine(
    root: Path,
    name: str = "",
    cpus: int = 4,
    packages: int = 1,
    flags: str = "fpu",
    more: str = "",
    dmi: tuple[str, str] | None = None,
) -> tuple[Path, Path]:
    """(sysfs, procfs) of a machine that has so many CPUs of that name."""
    sysfs, procfs = root / "sys", root / "proc"
    procfs.mkdir()
    (sysfs / "class/dmi/id").mkdir(parents=True)
    (procfs / "cpuinfo").write_text(
        "".join(
            f"processor\t: {n}\n{more}"
            + (f"model name\t: {name}\n" if name else "")
            + (f"physical id\t: {n * packages // cpus}\n" if packages else "")
            + f"flags\t\t: {flags}\n\n"
            for n in range(cpus)
        )
    )
    if dmi:
        (sysfs / "class/dmi/id/sys_vendor").write_text(dmi[0] + "\n")
        (sysfs / "class/dmi/id/product_name").write_text(dmi[1] + "\n")
    return sysfs, procfs


class TestClaims:
    """docs/load-model.md."""

    def test_error_is_at_most_half_of_codecarbons_machine_mode_and_below_its_process_mode(self):
        entries = {entry["name"]: entry for entry in judged.run()}
        assert len(entries) == 4
        for entry in entries.values():
            assert entry["ratio"] <= entry["limit"]

    def test_the_shipped_numbers_are_the_fitted_ones(self):
        machines = judged.rows()
        seen = [machines[m] for m in judged.FITTED]
        assert judged.fitted_level(seen) == pytest.approx(LEVEL, abs=0.0005)
        assert judged.fitted_pace(seen) == pytest.approx((PACE_AT_REST, PACE_PER_LOAD), abs=0.005)

    @pytest.mark.parametrize("clock", [True, False])
    def test_no_machine_is_judged_by_numbers_that_saw_it(self, clock: bool):
        """Ten times a machine's watts, and what is estimated for it stays the same.

        Without a clock, so it does at any clock that the machine had.
        """
        machines = judged.rows()
        before = judged.ours(machines, clock=clock)
        for name in machines:
            wrong = dict(machines)
            wrong[name] = [
                replace(
                    row,
                    measured_w=10 * row.measured_w,
                    pace=row.pace if clock else row.load / 3,
                )
                for row in machines[name]
            ]
            after = judged.ours(wrong, clock=clock)[name]
            for row, was, error in zip(machines[name], before[name], after, strict=True):
                # Both are far below ten times the watts.
                estimated_w = 10 * row.measured_w * (1 - error)
                assert abs(estimated_w - row.measured_w) / row.measured_w == pytest.approx(was)

    def test_the_agent_rates_the_measured_machines_by_their_names_alone(self, tmp_path: Path):
        for n, (name, rows) in enumerate(judged.rows().items()):
            (root := tmp_path / str(n)).mkdir()
            found = rating_of(*machine(root, name, rows[0].cpus, rows[0].packages))
            assert found.of(rows[0].cpus) == rows[0].tdp_w


class TestCurve:
    @given(LOADS, LOADS, PACES)
    def test_more_load_never_takes_less(self, one: float, other: float, pace: float | None):
        low, high = sorted((one, other))
        assert share_of_tdp(low, pace) <= share_of_tdp(high, pace)

    @given(LOADS, st.floats(0, 1), st.floats(0, 1))
    def test_a_faster_clock_never_takes_less(self, load: float, one: float, other: float):
        low, high = sorted((one, other))
        assert share_of_tdp(load, low) <= share_of_tdp(load, high)

    @given(st.floats(allow_nan=False), st.one_of(st.none(), st.floats(allow_nan=False)))
    def test_power_stays_between_idle_and_the_tdp(self, load: float, pace: float | None):
        assert 0 < share_of_tdp(0, 1) <= share_of_tdp(load, pace) <= share_of_tdp(1, 1) <= 1

    @given(LOADS, LOADS)
    def test_an_unknown_clock_is_one_that_cpus_have_and_rises_with_load(
        self, one: float, other: float
    ):
        low, high = sorted((one, other))
        assert 0 < likely_pace(low) <= likely_pace(high) <= 1
        assert share_of_tdp(one, None) == share_of_tdp(one, likely_pace(one))

    def test_energy_is_watts_times_time_at_the_load_that_was(self):
        clock = Clock()
        times = [CpuTimes(0, 0, 8)]
        model = LoadModel(lambda: times[-1], clock, rating=Rating("", tdp_w=100))
        assert model.read_uj() == 0
        clock.mono += 10**9
        times.append(CpuTimes(4 * 10**9, 0, 8))
        assert model.read_uj() == round(100e6 * share_of_tdp(0.5, None))

    def test_a_clock_or_a_counter_that_went_backwards_takes_nothing_back(self):
        clock = Clock()
        times = [CpuTimes(9 * 10**9, 0, 8)]
        model = LoadModel(lambda: times[-1], clock, rating=Rating("", tdp_w=100))
        model.read_uj()
        clock.mono += 10**9
        times.append(CpuTimes(0, 0, 8))
        idle = model.read_uj()
        assert idle == round(100e6 * share_of_tdp(0, None))
        clock.mono -= 10**9
        assert model.read_uj() == idle

    def test_cpus_that_come_to_a_virtual_machine_bring_their_share(self):
        model = LoadModel(lambda: CpuTimes(0, 0, 4), Clock(), rating=Rating("", w_per_cpu=2))
        assert model.watts(1, 8) == pytest.approx(2 * model.watts(1, 4))


class TestPace:
    def frequencies(self, root: Path, *mhz: tuple[int, int]) -> Path:
        for n, (now, greatest) in enumerate(mhz):
            folder = root / f"devices/system/cpu/cpu{n}/cpufreq"
            folder.mkdir(parents=True)
            (folder / "scaling_cur_freq").write_text(f"{now}000\n")
            (folder / "cpuinfo_max_freq").write_text(f"{greatest}000\n")
        return root

    def test_it_is_the_mean_of_each_cpus_own_share(self, tmp_path: Path):
        pace = Pace.find(self.frequencies(tmp_path, (1000, 4000), (3000, 3000)))
        for _ in range(REMEMBERED):
            found = pace.read()
        assert found == pytest.approx((0.25 + 1) / 2)

    def test_a_boost_beyond_the_stated_maximum_is_the_maximum(self, tmp_path: Path):
        assert Pace.find(self.frequencies(tmp_path, (3700, 2400))).read() == 1

    def test_of_many_cpus_a_few_are_read_spread_over_the_machine(self, tmp_path: Path):
        pace = Pace.find(self.frequencies(tmp_path, *[(1000, 2000)] * 100))
        assert len(pace.cpus) == REMEMBERED
        assert f"{tmp_path}/devices/system/cpu/cpu90/cpufreq/scaling_cur_freq" in dict(pace.cpus)

    @pytest.mark.parametrize("text", ["", "<unknown>\n", "-5\n", "9" * 4000, "\0\xff"])
    def test_a_clock_that_says_no_number_is_not_known(self, tmp_path: Path, text: str):
        root = self.frequencies(tmp_path, (1000, 2000))
        pace = Pace.find(root)
        path = root / "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"
        path.write_bytes(text.encode("latin-1"))
        assert pace.read() in (None, 1.0)
        path.unlink()
        assert Pace.find(root).read() is None
        assert Pace.find(tmp_path / "none").read() is None


class TestRating:
    @pytest.mark.parametrize(
        ("name", "tdp_w"),
        [
            (XEON, 85),
            ("AMD EPYC 7763 64-Core Processor", 280),
            ("Intel(R) Xeon(R) Platinum 8480+", 350),
            ("AMD Ryzen Threadripper PRO 5995WX 64-Cores", 280),
            ("Intel(R) Xeon(R) CPU           X5650  @ 2.67GHz", 95),
            ("AMD Ryzen 7 5700G with Radeon Graphics", 65),
            ("8th Gen Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz", 65),
            ("AMD Opteron(tm) Processor 6376", 115),
        ],
    )
    def test_a_name_is_found_as_the_kernel_writes_it(self, name: str, tdp_w: float):
        assert (rating.look_up(key_of(name)) or (0, 0))[0] == tdp_w

    def test_the_table_holds_only_what_can_be_looked_up(self):
        lines = rating.TABLE.read_text().splitlines()[1:]
        assert len(lines) > 3000
        assert rating.TABLE.stat().st_size < 64 << 10
        for line in lines:
            name, watts, *threads = line.split(",")
            assert key_of(name) == name
            assert 0 < float(watts) <= 600
            assert all(2 <= int(n) <= 1024 for n in threads)

    def test_packages_are_counted(self, tmp_path: Path):
        found = rating_of(*machine(tmp_path, XEON, cpus=24, packages=2))
        assert found.of(24) == 170
        assert found.basis == f"TDP 170 W: 2 x {XEON}, data sheet"

    def test_packages_that_are_not_told_follow_from_the_threads(self, tmp_path: Path):
        assert rating_of(*machine(tmp_path, XEON, cpus=24, packages=0)).of(24) == 170

    def test_a_virtual_machine_has_the_share_of_its_cpus(self, tmp_path: Path):
        found = rating_of(*machine(tmp_path, "AMD EPYC 7763 64-Core Processor", 4, 1, "hypervisor"))
        assert found.of(4) == pytest.approx(280 * 4 / 128)
        assert "128 threads" in found.basis

    def test_few_cpus_of_a_large_processor_are_a_share_though_no_flag_says_so(self, tmp_path: Path):
        found = rating_of(*machine(tmp_path, "AMD EPYC 7763 64-Core Processor", 4, 1, "fpu"))
        assert found.of(4) == pytest.approx(280 * 4 / 128)

    def test_what_a_cloud_hides_is_told_by_family_and_model(self, tmp_path: Path):
        numbers = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\n"
        found = rating_of(*machine(tmp_path, "AMD EPYC", 8, 1, "hypervisor", numbers))
        assert found.of(8) == pytest.approx(8 * MILAN.tdp_w / MILAN.threads)
        assert "Milan" in found.basis

    @pytest.mark.parametrize(
        ("name", "generation"),
        [
            ("Intel Xeon Processor (Skylake, IBRS)", rating.SKYLAKE),
            ("Intel Xeon Processor (Cascadelake)", rating.CASCADE_LAKE),
            ("AMD EPYC-Rome Processor", rating.ROME),
        ],
    )
    def test_and_by_the_names_that_qemu_gives(
        self, tmp_path: Path, name: str, generation: rating.Generation
    ):
        found = rating_of(*machine(tmp_path, name, 2, 1, "hypervisor"))
        assert found.of(2) == pytest.approx(2 * generation.w_per_thread)

    @pytest.mark.parametrize(
        ("instance", "generation", "core"),
        [
            ("m5.xlarge", rating.CASCADE_LAKE, False),
            ("c7a.large", rating.GENOA, True),
            ("m6gd.metal", rating.ALTRA, True),
            ("c6gn.large", rating.ALTRA, True),
            ("r8g.large", rating.GRACE, True),
            ("n2-standard-8", rating.CASCADE_LAKE, False),
            ("c3-standard-4", rating.SAPPHIRE_RAPIDS, False),
            ("c3.large", rating.IVY_BRIDGE, False),
            ("Standard_D4s_v5", rating.ICE_LAKE, False),
            ("Standard_E16-4as_v4", rating.ROME, False),
            ("Standard_DS2_v2", rating.BROADWELL, False),
        ],
    )
    def test_instance_types(self, instance: str, generation: rating.Generation, core: bool):
        assert rating.generation_of_instance(instance) == (generation, core)

    def test_what_nobody_states_is_not_taken_from_another_core(self, tmp_path: Path):
        """Graviton3 is Neoverse V1: neither Altra's N1 nor Grace's V2."""
        sysfs, procfs = machine(tmp_path, "", 2, dmi=("Amazon EC2", "c7g.large"))
        (procfs / "cpuinfo").write_text(
            "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
        )
        found = rating_of(sysfs, procfs)
        assert found.of(2) == 2 * DEFAULT_W_PER_CPU
        assert "guessed" in found.basis and "Neoverse V1" in found.basis
        told = rating_of(sysfs, procfs, instance_type="c7gn.large")
        assert told.of(2) == 2 * DEFAULT_W_PER_CPU and "c7gn.large" in told.basis
        for instance in ("c7g.large", "m7gd.metal", "n4a-standard-2", "Standard_D4ps_v6"):
            assert rating.generation_of_instance(instance) is None

    def test_grace_is_known_by_its_part_number(self, tmp_path: Path):
        sysfs, procfs = machine(tmp_path, "", 2)
        (procfs / "cpuinfo").write_text(
            "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n"
        )
        assert rating_of(sysfs, procfs).of(144) == pytest.approx(500)

    def test_amazon_says_the_type_itself(self, tmp_path: Path):
        found = rating_of(
            *machine(tmp_path, "unheard of", 2, 1, "hypervisor", dmi=("Amazon EC2", "c7a.large"))
        )
        assert found.of(2) == pytest.approx(2 * 360 / 96)
        assert "c7a.large, from DMI" in found.basis

    def test_the_operators_word_wins(self, tmp_path: Path):
        sysfs, procfs = machine(tmp_path, XEON, 24, 2)
        assert rating_of(sysfs, procfs, 33).of(24) == 33
        typed = rating_of(sysfs, procfs, instance_type="m6a.xlarge")
        assert typed.of(4) == pytest.approx(4 * MILAN.w_per_thread)
        assert rating_of(sysfs, procfs, instance_type="no.such").of(24) == 170

    def test_what_nobody_knows_has_the_stated_default_and_says_so(self, tmp_path: Path):
        sysfs, procfs = machine(tmp_path, "Vortex86 SoC", 2)
        found = rating_of(sysfs, procfs, instance_type="\x1b[2Jevil" * 99)
        assert found.of(2) == 2 * DEFAULT_W_PER_CPU
        assert "guessed" in found.basis
        assert "Vortex86" in found.basis
        assert found.basis.isprintable()
        assert len(found.basis) < 300
        assert rating_of(tmp_path / "no", tmp_path / "no").of(0) == DEFAULT_W_PER_CPU

    def test_the_model_says_what_it_assumed(self, tmp_path: Path):
        sysfs, procfs = machine(tmp_path, XEON, 24, 2)
        assert LoadModel.find(sysfs, procfs, Clock()).basis == (
            f"TDP 170 W: 2 x {XEON}, data sheet; "
            "clock taken as 71% of the greatest at rest, 95% at full load"
        )


class TestHostileCpuinfo:
    @given(
        st.one_of(
            st.binary(max_size=2000),
            st.lists(
                st.tuples(
                    st.sampled_from(
                        [b"processor", b"model name", b"physical id", b"cpu family", b"flags",
                         b"siblings", b"CPU part", b"CPU implementer", b"vendor_id", b"model"]
                    ),
                    st.binary(max_size=60),
                )
            ).map(lambda fields: b"".join(k + b"\t: " + v + b"\n" for k, v in fields)),
        )
    )  # fmt: skip
    def test_any_bytes_end_in_a_rating(self, tmp_path_factory: pytest.TempPathFactory, raw: bytes):
        root = tmp_path_factory.mktemp("any")
        (root / "cpuinfo").write_bytes(raw)
        found = rating_of(root, root)
        assert 0 < found.of(4) < 64 * 600
        assert math.isfinite(found.of(10**6))
        assert found.basis.isprintable()

    def test_a_file_without_end_is_read_up_to_a_bound(self, tmp_path: Path):
        (tmp_path / "cpuinfo").symlink_to("/dev/zero")
        assert CpuInfo.read(tmp_path).name == ""

    def test_a_line_of_4_mb_and_names_that_are_not_text(self, tmp_path: Path):
        (tmp_path / "cpuinfo").write_bytes(
            b"processor : 0\nmodel name : \xff\xfe\x1b[31m" + b"A" * (4 << 20) + b"\nflags : x\n"
        )
        found = CpuInfo.read(tmp_path)
        assert len(found.name) <= cpuinfo.NAME_MAX
        assert found.name.isprintable()
        assert found.cpus == 1

    def test_4096_cpus_in_64_packages(self, tmp_path: Path):
        found = rating_of(*machine(tmp_path, XEON, 4096, 64, flags="fpu " * 300))
        assert found.of(4096) == 64 * 85

    def test_a_thousand_packages_are_not_believed(self, tmp_path: Path):
        found = rating_of(*machine(tmp_path, XEON, 1000, 1000))
        assert found.of(1000) == rating.PACKAGES_MAX * 85

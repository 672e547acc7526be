"""AMD and Intel GPUs on constructed trees, in the formats of amdgpu, i915, xe and KFD."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.agent.errors import SensorFailed
from joulegram.agent.sensors.drm.cards import CountedCard, Gpu, SampledCard, find, unmetered
from joulegram.agent.sensors.drm.clients import (
    CLIENTS_PER_PROCESS,
    DESCRIPTORS_PER_LOOK,
    TURN,
    UNFINISHED_MAX,
    Clients,
)
from joulegram.agent.sensors.drm.fdinfo import ENGINES_MAX, parse
from joulegram.agent.sensors.gpu import GpuLook
from tests.agent.played import Clock, Machine, device_j, rows

S = 1_000_000_000
XE, AMD = "0000:03:00.0", "0000:83:00.0"
NOBODY = 65534


def fdinfo(address: str, client: int, *engines: str, driver: str = "i915") -> str:
    """One descriptor's file, as the kernel prints it; `engines` are its own lines."""
    head = ["pos:\t0", "flags:\t02400002", "mnt_id:\t27", "ino:\t531", f"drm-driver:\t{driver}"]
    head += [f"drm-client-id:\t{client}", f"drm-pdev:\t{address}", "drm-total-system0:\t6044 KiB"]
    return "\n".join([*head, *engines, ""])


@dataclass
class Tree:
    """A sysfs and a procfs with GPUs and who has them open."""

    root: Path
    clock: Clock = field(default_factory=Clock)
    gpus: list[Gpu] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sys, self.proc = self.root / "sys", self.root / "proc"
        for folder in (self.sys / "class/drm", self.proc):
            folder.mkdir(parents=True, exist_ok=True)

    def card(
        self, number: int, address: str, vendor: str, meter: str = "", **files: object
    ) -> Path:
        """A card on PCI; `meter` names its hwmon, whose files are `files`."""
        device = self.sys / f"devices/pci{address[:7]}/{address}"
        (device / f"drm/card{number}").mkdir(parents=True)
        (device / f"drm/renderD{128 + number}").mkdir()
        for name in (f"card{number}", f"card{number}-DP-1", f"renderD{128 + number}"):
            (self.sys / f"class/drm/{name}").mkdir()
            (self.sys / f"class/drm/{name}/device").symlink_to(device)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "uevent").write_text(f"DRIVER=x\nPCI_SLOT_NAME={address}\nMODALIAS=pci:v\n")
        return self.hwmon(device, number, meter, **files) if meter else device

    def hwmon(self, device: Path, number: int, name: str, **files: object) -> Path:
        folder = device / f"hwmon/hwmon{number}"
        folder.mkdir(parents=True)
        for file, value in {"name": name, **files}.items():
            (folder / file).write_text(f"{value}\n")
        return device

    def xe(self, number: int = 0, address: str = XE) -> Path:
        files = {
            "energy1_label": "card",
            "energy1_input": 5_000_000,
            "power1_rated_max": 190 * 10**6,
        }
        files |= {"energy2_label": "pkg", "energy2_input": 3_000_000}
        return self.card(number, address, "0x8086", "xe", **files)

    def amdgpu(
        self, number: int = 1, address: str = AMD, unique_id: str = "", **more: object
    ) -> Path:
        files = {
            "power1_average": 250 * 10**6,
            "power1_label": "PPT",
            "power1_cap_max": 300 * 10**6,
        }
        device = self.card(number, address, "0x1002", "amdgpu", **files, **more)
        if unique_id:
            (device / "unique_id").write_text(f"{unique_id}\n")
        return device

    def opens(self, pid: int, descriptor: int, content: str, node: str = "renderD128") -> None:
        for name in ("fd", "fdinfo"):
            (self.proc / f"{pid}/{name}").mkdir(parents=True, exist_ok=True)
        link = self.proc / f"{pid}/fd/{descriptor}"
        if not link.is_symlink():
            link.symlink_to(f"/dev/dri/{node}")
        (self.proc / f"{pid}/fdinfo/{descriptor}").write_text(content)

    def others(self, pid: int, count: int) -> None:
        """Descriptors that are no GPU's."""
        (self.proc / f"{pid}/fd").mkdir(parents=True, exist_ok=True)
        for n in range(count):
            (self.proc / f"{pid}/fd/{1000 + n}").symlink_to("/dev/null")

    def closes(self, pid: int, descriptor: int) -> None:
        for name in ("fd", "fdinfo"):
            (self.proc / f"{pid}/{name}/{descriptor}").unlink()

    def ends(self, pid: int) -> None:
        shutil.rmtree(self.proc / str(pid))

    def node(self, number: int, gpu_id: int, **properties: int) -> None:
        """A node of KFD's topology."""
        folder = self.sys / f"class/kfd/kfd/topology/nodes/{number}"
        folder.mkdir(parents=True)
        (folder / "gpu_id").write_text(f"{gpu_id}\n")
        lines = "".join(f"{name} {value}\n" for name, value in properties.items())
        (folder / "properties").write_text(lines)

    def computes(self, pid: int, gpu_id: int, occupied: int | None, vram: int = 1 << 30) -> None:
        folder = self.sys / f"class/kfd/kfd/proc/{pid}"
        (folder / f"stats_{gpu_id}").mkdir(parents=True, exist_ok=True)
        (folder / "queues").mkdir(exist_ok=True)
        (folder / f"vram_{gpu_id}").write_text(f"{vram}\n")
        if occupied is not None:
            (folder / f"stats_{gpu_id}/cu_occupancy").write_text(f"{occupied}\n")

    def find(self) -> list[Gpu]:
        self.gpus = find(self.sys, self.proc, self.clock)
        return self.gpus

    def after(self, seconds: float, gpu: int = 0) -> GpuLook:
        self.clock.mono += round(seconds * S)
        return self.gpus[gpu].look()

    def used(self, seconds: float, gpu: int = 0) -> dict[int, int]:
        return {use.pid: use.weight for use in self.after(seconds, gpu).uses}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# What is metered


def test_a_machine_without_gpus_is_an_answer(tree, tmp_path):
    assert tree.find() == []
    assert find(tmp_path / "nothing", tmp_path / "nothing", Clock()) == []


def test_xe_counts_the_card_not_its_chip(tree):
    tree.xe()
    (gpu,) = tree.find()
    assert isinstance(gpu, CountedCard)
    assert (gpu.device, gpu.component, gpu.quality) == (f"gpu:{XE}", "gpu", "measured")
    assert (gpu.range_uj, gpu.max_power_w) == (0, 190.0)
    assert gpu.read_uj() == 5_000_000


def test_xe_with_a_chips_counter_alone_counts_that(tree):
    tree.card(0, XE, "0x8086", "xe", energy2_label="pkg", energy2_input=3_000_000)
    (gpu,) = tree.find()
    assert isinstance(gpu, CountedCard)
    assert gpu.read_uj() == 3_000_000


def test_i915_counts_the_card_not_its_tiles(tree):
    device = tree.card(0, XE, "0x8086", "i915_gt0", energy1_input=2_000_000)
    tree.hwmon(device, 7, "i915", energy1_input=9_000_000)
    (gpu,) = tree.find()
    assert isinstance(gpu, CountedCard)
    assert gpu.read_uj() == 9_000_000


def test_amdgpu_goes_by_its_mean_power(tree):
    tree.amdgpu(unique_id="9a4c2b1d3e5f6071", power1_input=240 * 10**6)
    (gpu,) = tree.find()
    assert isinstance(gpu, SampledCard)
    assert (gpu.device, gpu.quality) == ("gpu:9a4c2b1d3e5f6071", "derived")
    assert (gpu.max_power_w, gpu.averaged_s) == (300.0, 0.0)
    assert gpu.sample().power_uw == 250 * 10**6
    assert gpu.sample().at_ns == tree.clock.mono_ns()


def test_amdgpu_whose_mean_does_not_answer_goes_by_the_moment(tree):
    device = tree.amdgpu(power1_input=240 * 10**6)
    (device / "hwmon/hwmon1/power1_average").write_text("")
    (gpu,) = tree.find()
    assert isinstance(gpu, SampledCard)
    assert gpu.sample().power_uw == 240 * 10**6


def test_an_hwmon_that_only_its_class_lists_is_found(tree):
    device = tree.card(0, XE, "0x8086")
    folder = tree.sys / "class/hwmon/hwmon2"
    folder.mkdir(parents=True)
    (folder / "device").symlink_to(device)
    (folder / "name").write_text("xe\n")
    (folder / "energy1_input").write_text("77\n")
    (gpu,) = tree.find()
    assert isinstance(gpu, CountedCard)
    assert gpu.read_uj() == 77


def test_without_any_card_hwmon_alone_tells(tree):
    for number, name in enumerate(["coretemp", "amdgpu", "xe"]):
        folder = tree.sys / f"class/hwmon/hwmon{number}"
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "power1_average").write_text(f"{(50 + number) * 10**6}\n")
    gpus = find(tree.sys, tree.proc, tree.clock)
    assert [(g.device, g.sample().power_uw) for g in gpus if isinstance(g, SampledCard)] == [
        ("gpu:hwmon1", 51 * 10**6),
        ("gpu:hwmon2", 52 * 10**6),
    ]
    tree.amdgpu()
    assert [g.device for g in find(tree.sys, tree.proc, tree.clock)] == [f"gpu:{AMD}"]


def test_a_card_whose_address_nothing_tells_is_metered(tree):
    folder = tree.sys / "class/drm/card0/device"
    tree.hwmon(folder, 0, "amdgpu", power1_input=90 * 10**6)
    (folder / "vendor").write_text("0x1002\n")
    (gpu,) = tree.find()
    assert isinstance(gpu, SampledCard)
    assert (gpu.device, gpu.sample().power_uw) == ("gpu:card0", 90 * 10**6)
    assert gpu.look() == GpuLook()


@pytest.mark.parametrize("content", ["", "12", "-1\n", "\xff\n", "99999999999999\n"])
def test_a_foolish_power_is_no_sample(tree, content):
    device = tree.amdgpu()
    (gpu,) = tree.find()
    assert isinstance(gpu, SampledCard)
    (device / "hwmon/hwmon1/power1_average").write_text(content, encoding="latin-1")
    with pytest.raises(SensorFailed, match="power1_average"):
        gpu.sample()


def test_a_gpu_inside_a_cpu_package_is_no_device_and_says_why(tree):
    tree.card(0, "0000:00:02.0", "0x8086", "xe", energy1_input=1)
    tree.amdgpu(1, "0000:04:00.0", in1_label="vddnb", in1_input=700)
    tree.amdgpu(2, "0000:05:00.0")
    tree.node(
        0, 4444, cpu_cores_count=16, simd_count=32, simd_per_cu=4, domain=0, location_id=0x500
    )
    socket = tree.amdgpu(3, "0000:06:00.0")
    (socket / "device").write_text("0x74a0\n")
    assert tree.find() == []
    assert [name for name, why in unmetered(tree.sys) if "package" in why] == [
        "card2",
        "card0",
        "card1",
        "card3",
    ]


def test_a_card_without_a_meter_is_no_device_and_others_are_not_ours(tree):
    tree.card(0, XE, "0x8086")
    tree.card(1, "0000:01:00.0", "0x1a03")  # a management controller's
    tree.card(2, "0000:02:00.0", "0x10de")
    assert tree.find() == []
    assert [name for name, _ in unmetered(tree.sys)] == ["card0"]


def test_every_name_of_a_gpu_is_the_whole_gpu(tree):
    tree.amdgpu(1, AMD, unique_id="9a4c2b1d3e5f6071")
    tree.amdgpu(2, "0000:03:00.0", unique_id="9a4c2b1d3e5f6072")
    tree.node(1, 11, simd_count=440, simd_per_cu=4, domain=0, location_id=0x8300)
    tree.node(2, 12, simd_count=440, simd_per_cu=4, unique_id=0x9A4C2B1D3E5F6072)
    first, second = tree.find()
    assert first.names() == dict.fromkeys(
        [
            "card1",
            AMD,
            "83:00.0",
            "renderD129",
            "9a4c2b1d3e5f6071",
            "GPU-9a4c2b1d3e5f6071",
            "0x9a4c2b1d3e5f6071",
            "0",  # ROCm numbers them as KFD does
        ],
        1.0,
    )
    assert "1" in second.names()


def test_a_bare_number_names_nothing_where_two_makers_count_from_0(tree):
    tree.amdgpu()
    tree.xe()
    assert not {"0", "1"} & {name for gpu in tree.find() for name in gpu.names()}


def test_cards_that_share_a_unique_id_go_by_their_addresses(tree):
    tree.amdgpu(1, AMD, unique_id="1")
    tree.amdgpu(2, "0000:84:00.0", unique_id="1")
    assert [gpu.device for gpu in tree.find()] == [f"gpu:{AMD}", "gpu:0000:84:00.0"]


# Who used it


def test_engine_time_is_divided_by_capacity_and_summed(tree):
    tree.xe()
    engines = (
        "drm-engine-render:\t{} ns",
        "drm-engine-video:\t{} ns",
        "drm-engine-capacity-video:\t2",
    )

    def play(render: int, video: int) -> None:
        lines = engines[0].format(render), engines[1].format(video), engines[2]
        tree.opens(7, 5, fdinfo(XE, 3, *lines))

    play(40 * S, 9 * S)
    tree.find()
    assert tree.used(0) == {}  # what was before is nobody's now
    play(40 * S + S // 4, 9 * S + S // 2)
    assert tree.used(1) == {7: S // 4 + S // 4}
    assert tree.used(1) == {}


def test_a_process_is_busy_no_longer_than_time_passed(tree):
    tree.xe()
    lines = [f"drm-engine-{name}:\t0 ns" for name in ("render", "copy", "video")]
    tree.opens(7, 5, fdinfo(XE, 3, *lines))
    tree.find()
    tree.after(0)
    lines = [f"drm-engine-{name}:\t{9 * S} ns" for name in ("render", "copy", "video")]
    tree.opens(7, 5, fdinfo(XE, 3, *lines))
    (use,) = tree.after(1).uses
    assert (use.busy_ns, use.weight) == (S, 3 * S)


def test_xe_counts_cycles_of_those_that_passed(tree):
    tree.xe()

    def play(cycles: int, total: int) -> None:
        lines = [f"drm-cycles-ccs:\t{cycles}", f"drm-total-cycles-ccs:\t{total}"]
        capacity = "drm-engine-capacity-ccs:\t4"
        tree.opens(7, 5, fdinfo(XE, 3, *lines, capacity, driver="xe"))

    play(500, 7_655_183_225)
    tree.find()
    tree.after(0)
    play(500 + 9_600_000, 7_655_183_225 + 19_200_000)
    assert tree.used(1) == {7: S // 2 // 4}
    play(500 + 9_600_000, 19)  # the GPU's clock began again
    assert tree.used(1) == {}
    play(500 + 9_600_000 + 100, 19 + 100)
    assert tree.used(1) == {7: S // 4}


def test_a_client_is_counted_once_however_many_hold_it(tree):
    tree.xe()
    shared = "drm-engine-render:\t{} ns"

    def play(busy: int, *holders: tuple[int, int]) -> None:
        for pid, descriptor in holders:
            tree.opens(pid, descriptor, fdinfo(XE, 3, shared.format(busy)))

    everyone = ((7, 5), (7, 6), (8, 5))  # a duplicate, and a child that inherited it
    play(0, *everyone)
    tree.find()
    assert {at.pid for at in tree.after(0).opened} == {7, 8}
    play(S // 2, *everyone)
    assert tree.used(1) == {7: S // 2}
    tree.closes(7, 5)
    play(S, (7, 6), (8, 5))
    first = tree.used(1)
    tree.ends(7)
    play(3 * S // 2, (8, 5))
    assert sum(first.values()) + sum(tree.used(1).values()) == S


def test_two_clients_of_one_process_add(tree):
    tree.xe()
    for client in (3, 4):
        tree.opens(7, client, fdinfo(XE, client, "drm-engine-copy:\t0 ns"))
    tree.find()
    tree.after(0)
    for client in (3, 4):
        tree.opens(7, client, fdinfo(XE, client, f"drm-engine-copy:\t{S // 10} ns"))
    assert tree.used(1) == {7: S // 5}


def test_a_process_on_two_gpus_uses_each_for_itself(tree):
    tree.xe(0, XE)
    tree.xe(1, "0000:04:00.0")
    for address, descriptor in ((XE, 5), ("0000:04:00.0", 6)):
        tree.opens(7, descriptor, fdinfo(address, 3, "drm-engine-render:\t0 ns"))
    tree.find()
    assert tree.used(0, gpu=0) == tree.used(0, gpu=1) == {}
    tree.opens(7, 5, fdinfo(XE, 3, f"drm-engine-render:\t{S // 2} ns"))
    tree.opens(7, 6, fdinfo("0000:04:00.0", 3, f"drm-engine-render:\t{S // 8} ns"))
    assert tree.used(1, gpu=0) == {7: S // 2}
    assert tree.used(0, gpu=1) == {7: S // 8}


def test_a_value_that_goes_back_is_waited_for(tree):
    tree.xe()
    tree.opens(7, 5, fdinfo(XE, 3, f"drm-engine-render:\t{S} ns"))
    tree.find()
    tree.after(0)
    used = []
    for busy in (S // 2, S, S + S // 4):
        tree.opens(7, 5, fdinfo(XE, 3, f"drm-engine-render:\t{busy} ns"))
        used.append(tree.used(1))
    assert used == [{}, {}, {7: S // 4}]


def test_a_torn_file_costs_no_use(tree):
    tree.xe()
    tree.opens(7, 5, fdinfo(XE, 3, "drm-engine-render:\t0 ns"))
    tree.find()
    tree.after(0)
    (tree.proc / "7/fdinfo/5").write_text("pos:\t0\ndrm-driver:\ti915\ndrm-eng")
    assert tree.used(6) == {}  # long enough to be looked at again
    tree.opens(7, 5, fdinfo(XE, 3, f"drm-engine-render:\t{S} ns"))
    assert tree.used(1) == {7: S}


def test_a_new_process_is_charged_from_its_start_and_an_old_one_from_first_sight(tree):
    tree.xe()
    (tree.proc / "7/fd").mkdir(parents=True)
    tree.find()
    for _ in range(3):
        tree.after(1)
    tree.opens(7, 5, fdinfo(XE, 3, f"drm-engine-render:\t{90 * S} ns"))
    tree.opens(8, 5, fdinfo(XE, 4, f"drm-engine-render:\t{S // 2} ns"))
    assert tree.used(1) == {8: S // 2}
    tree.opens(7, 5, fdinfo(XE, 3, f"drm-engine-render:\t{90 * S + S // 4} ns"))
    assert tree.used(1) == {7: S // 4}


def test_a_descriptor_that_another_client_took_over_is_another_client(tree):
    tree.xe()
    tree.opens(7, 5, fdinfo(XE, 3, "drm-engine-render:\t0 ns"))
    tree.find()
    tree.after(0)
    tree.opens(7, 5, fdinfo(XE, 9, f"drm-engine-render:\t{80 * S} ns"))
    assert tree.used(1) == {}
    tree.opens(7, 5, fdinfo(XE, 9, f"drm-engine-render:\t{80 * S + S // 2} ns"))
    assert tree.used(1) == {7: S // 2}


def test_a_tree_without_links_is_told_by_its_fdinfo(tree):
    tree.xe()
    tree.opens(7, 5, fdinfo(XE, 3, "drm-engine-render:\t0 ns"))
    shutil.rmtree(tree.proc / "7/fd")
    tree.find()
    assert [at.pid for at in tree.after(0).opened] == [7]


def test_a_screens_card_node_holds_no_gpu_until_it_draws(tree):
    tree.xe()
    tree.opens(7, 5, fdinfo(XE, 3, "drm-engine-render:\t0 ns"), node="card0")
    tree.opens(8, 5, fdinfo(XE, 4, "drm-engine-render:\t0 ns"))
    tree.find()
    assert [(at.pid, at.partition, at.fraction) for at in tree.after(0).opened] == [(8, "", 1.0)]
    tree.opens(7, 5, fdinfo(XE, 3, "drm-engine-render:\t77 ns"), node="card0")
    assert [at.pid for at in tree.after(1).opened] == [7, 8]


# Hostile neighbours, and what a look costs


@given(
    st.binary(max_size=300)
    | st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"drm-driver",
                    b"drm-pdev",
                    b"drm-client-id",
                    b"drm-engine-render",
                    b"drm-engine-capacity-render",
                    b"drm-cycles-render",
                    b"drm-total-cycles-render",
                    b"drm-engine-\xff",
                ]
            ),
            st.binary(max_size=12)
            | st.sampled_from([b"i915", XE.encode(), b"3", b"7 ns", b"0", b"-1", b"9" * 5000]),
        ),
        max_size=12,
    ).map(lambda lines: b"".join(key + b":\t" + value + b"\n" for key, value in lines))
)
def test_whatever_a_file_holds_it_is_an_account_or_none(raw):
    account = parse(raw)
    if account is not None:
        assert all(e.capacity >= 1 and e.busy_ns >= 0 for e in account.engines.values())


def test_a_file_of_a_thousand_engines_is_bounded():
    lines = [f"drm-engine-e{n}:\t1 ns" for n in range(1000)]
    account = parse(fdinfo(XE, 3, *lines).encode())
    assert account is not None
    assert len(account.engines) == ENGINES_MAX


def test_a_huge_file_is_not_read_whole_and_hurts_nobody(tree):
    tree.xe()
    tree.opens(7, 5, fdinfo(XE, 3, "drm-engine-render:\t0 ns"))
    tree.opens(8, 5, "drm-engine-render:\t1 ns\n" * 100_000)
    tree.find()
    assert [at.pid for at in tree.after(0).opened] == [7]


def test_a_process_with_many_files_holds_up_nobody(tree):
    tree.xe()
    tree.find()
    tree.after(0)
    tree.others(7, 3 * DESCRIPTORS_PER_LOOK)
    tree.opens(7, 9999, fdinfo(XE, 3, "drm-engine-render:\t0 ns"))
    tree.opens(8, 5, fdinfo(XE, 4, "drm-engine-render:\t0 ns"))
    assert 8 in {at.pid for at in tree.after(1).opened}
    for _ in range(8):
        opened = {at.pid for at in tree.after(1).opened}
    assert opened == {7, 8}


def test_a_program_that_loads_for_a_while_before_it_computes_is_found_soon(tree):
    tree.xe()
    for pid in range(100, 160):
        tree.others(pid, 100)  # a round takes longer
    tree.find()
    tree.after(0)
    (tree.proc / "200/fd").mkdir(parents=True)
    tree.after(1)
    tree.opens(200, 5, fdinfo(XE, 4, "drm-engine-render:\t0 ns"))
    assert any(tree.after(1).opened for _ in range(3))


def test_a_process_that_opens_late_is_found_within_a_round(tree):
    tree.xe()
    processes, each = 60, 50
    for pid in range(100, 100 + processes):
        tree.others(pid, each)
    tree.find()
    tree.after(0)
    tree.after(1)
    tree.opens(100 + processes - 1, 5, fdinfo(XE, 4, "drm-engine-render:\t0 ns"))
    looks = processes * each // DESCRIPTORS_PER_LOOK + 1
    found = [bool(tree.after(1).opened) for _ in range(2 * looks + 2)]
    assert found[-1]


@pytest.mark.parametrize("hoarders", [3, UNFINISHED_MAX + 2])
def test_hoarders_of_files_keep_nobody_from_being_found(tree, hoarders):
    tree.xe()
    for pid in range(100, 100 + hoarders):
        tree.others(pid, 90_000 // hoarders)
    late, larger = 200, 201
    tree.others(late, 1)
    tree.others(larger, 2 * TURN)
    tree.find()
    for _ in range(3):
        tree.after(1)
    tree.opens(late, 5, fdinfo(XE, 4, "drm-engine-render:\t0 ns"))
    tree.opens(larger, 9999, fdinfo(XE, 5, "drm-engine-render:\t0 ns"))
    for _ in range(60):
        opened = {at.pid for at in tree.after(1).opened}
    assert opened == {late, larger}


def test_a_process_with_many_clients_leaves_room_for_others(tree):
    tree.xe()
    for n in range(CLIENTS_PER_PROCESS + 20):
        tree.opens(7, 5 + n, fdinfo(XE, 100 + n, "drm-engine-render:\t0 ns"))
    tree.opens(8, 5, fdinfo(XE, 4, "drm-engine-render:\t0 ns"))
    clients = Clients(tree.proc, tree.clock)
    (gpu,) = find(tree.sys, tree.proc, tree.clock, clients)
    assert {at.pid for at in gpu.look().opened} == {7, 8}
    for _ in range(3):
        tree.clock.mono += S
        gpu.look()
    assert len(clients) == CLIENTS_PER_PROCESS + 1
    assert clients.left_out >= 20


def test_what_ended_is_forgotten(tree):
    tree.xe()
    clients = Clients(tree.proc, tree.clock)
    (gpu,) = find(tree.sys, tree.proc, tree.clock, clients)
    for pid in range(50):
        tree.opens(pid + 10, 5, fdinfo(XE, pid, "drm-engine-render:\t0 ns"))
        gpu.look()
        tree.ends(pid + 10)
        tree.clock.mono += S
    gpu.look()
    assert len(clients) == 0


@pytest.fixture
def open_tree() -> Iterator[Tree]:
    """A tree that every user may enter, which pytest's own folder is not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield Tree(folder)
    shutil.rmtree(folder)


def test_a_process_that_may_not_be_inspected_costs_its_own(open_tree):
    open_tree.xe()
    for pid in (7, 8):
        open_tree.opens(pid, 5, fdinfo(XE, pid, "drm-engine-render:\t0 ns"))
    for name in ("fd", "fdinfo"):
        (open_tree.proc / f"7/{name}").chmod(0o000)
    open_tree.find()
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        assert [at.pid for at in open_tree.after(0).opened] == [8]
    finally:
        if root:
            os.seteuid(0)


def test_a_driver_that_hangs_holds_up_no_tick_and_costs_no_use(tree):
    """A FIFO that nobody writes to hangs its reader as a driver's lock does."""
    tree.xe()
    tree.opens(7, 5, fdinfo(XE, 3, "drm-engine-render:\t0 ns"))
    tree.find()
    tree.after(0)
    file = tree.proc / "7/fdinfo/5"
    file.unlink()
    os.mkfifo(file)
    for _ in range(2):
        with pytest.raises(SensorFailed, match="fdinfo"):
            tree.after(1)
    with file.open("w") as writer:
        file.unlink()
        tree.opens(7, 5, fdinfo(XE, 3, f"drm-engine-render:\t{S} ns"))
        writer.write("drm-dri")  # it answers, though not well
    used: dict[int, int] = {}
    while not used:
        with contextlib.suppress(SensorFailed):
            used = tree.used(1)
    assert used == {7: S}


# ROCm


def rocm(tree: Tree, *, tells: bool = True) -> None:
    """Two GPUs, and processes 7 and 8 that opened both, as ROCm does."""
    for number, gpu_id in ((1, 51), (2, 52)):
        address = f"0000:8{number}:00.0"
        device = tree.amdgpu(number, address)
        (device / "gpu_busy_percent").write_text("60\n")
        tree.node(
            number,
            gpu_id,
            cpu_cores_count=0,
            simd_count=416,
            simd_per_cu=4,
            domain=0,
            location_id=int(address[5:7], 16) << 8,
        )
        for pid in (7, 8):
            engines = "drm-memory-vram:\t1 KiB", "drm-engine-gfx:\t1 ns"
            tree.opens(pid, number, fdinfo(address, number, *engines, driver="amdgpu"))
            mine = gpu_id == 51
            tree.computes(pid, gpu_id, (0 if tells else None), vram=4096 if mine else 0)


def test_rocm_processes_use_by_the_units_they_fill_and_hold_where_they_have_memory(tree):
    rocm(tree)
    tree.find()
    tree.after(0)
    tree.computes(7, 51, 26)
    tree.computes(8, 51, 104)
    look = tree.after(2)
    assert [(u.pid, u.busy_ns, u.weight) for u in look.uses] == [
        (7, S // 2, S // 2),
        (8, 2 * S, 2 * S),
    ]
    assert [at.pid for at in look.opened] == [7, 8]
    assert not look.modelled
    assert tree.after(0, gpu=1) == GpuLook()


def test_a_queue_is_a_hold_too(tree):
    rocm(tree)
    queue = tree.sys / "class/kfd/kfd/proc/8/queues/0"
    queue.mkdir(parents=True)
    (queue / "gpuid").write_text("52\n")
    tree.find()
    assert [at.pid for at in tree.after(0, gpu=1).opened] == [8]


def test_where_occupancy_is_not_told_those_that_hold_share_the_busy_time(tree):
    rocm(tree, tells=False)
    tree.find()
    tree.after(0)
    look = tree.after(1)
    assert {u.pid: u.weight for u in look.uses} == {7: 3 * S // 10, 8: 3 * S // 10}
    assert look.modelled


def test_partitions_of_one_gpu_are_one_gpu(tree):
    tree.amdgpu(1, "0000:81:00.0")
    for number, gpu_id in ((1, 51), (2, 52)):
        tree.node(
            number,
            gpu_id,
            simd_count=208,
            simd_per_cu=4,
            domain=0,
            location_id=0x8100 + number - 1,
        )
    tree.computes(7, 51, 26)
    tree.computes(7, 52, 52)
    tree.find()
    tree.after(0)
    assert tree.used(4) == {7: 3 * S}


# Through the meter


class PlayedXe(Machine):
    """A machine with an xe card of 200 W, used by processes by their share of its time."""

    def start(self, tree: Tree, shares: dict[int, float]) -> None:
        self.device, self.tree, self.shares, self.seconds = tree.xe(), tree, shares, 0.0
        self.advance(0)

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        if hasattr(self, "tree"):
            self.seconds += seconds
            energy_uj = round(self.seconds * 200e6)
            (self.device / "hwmon/hwmon0/energy1_input").write_text(f"{energy_uj}\n")
            for pid, share in self.shares.items():
                busy = f"drm-engine-compute:\t{round(share * self.seconds * 1e9)} ns"
                self.tree.opens(pid, 4, fdinfo(XE, pid, busy))


def test_processes_share_a_cards_energy_by_engine_time(tmp_path):
    machine = PlayedXe(tmp_path)
    for pid in (1, 2):
        machine.task(pid, b"train", f"/slurm/uid_1/job_{pid}/step_0".encode())
    clock = Clock()
    tree = Tree(tmp_path, clock)
    machine.start(tree, {1: 0.6, 2: 0.2})
    frames = machine.play(3, clock=clock, sensors=list(tree.find()))
    assert device_j(frames, f"gpu:{XE}") == pytest.approx(600, rel=0.01)
    joules = {
        pid: sum(int(r["gpu_uj"]) for f in frames for r in rows(f) if r["pid"] == pid) / 1e6
        for pid in (1, 2)
    }
    assert joules == {1: pytest.approx(450, rel=0.01), 2: pytest.approx(150, rel=0.01)}

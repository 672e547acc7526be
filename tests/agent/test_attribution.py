"""Laws of sharing energy out, whatever the numbers."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from joulegram.agent.attribution import IDLE, NOBODY, Metered, attribute, split_uj

uj = st.integers(0, 10**13)
ns = st.lists(st.integers(0, 10**12), max_size=30)


@given(uj, st.lists(st.integers(0, 10**12), min_size=1, max_size=50))
def test_a_split_conserves_energy_and_is_fair_to_a_microjoule(energy_uj, weights):
    assume(sum(weights) > 0)
    shares = split_uj(energy_uj, weights)
    assert sum(shares) == energy_uj
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - energy_uj * weight / sum(weights)) < 1 + energy_uj * 1e-12


def test_ties_go_to_who_stands_first():
    assert split_uj(2, [1, 1, 1]) == [1, 1, 0]


@pytest.mark.parametrize(("energy_uj", "weights"), [(-1, [1]), (1, [0, 0]), (1, [2, -1]), (1, [])])
def test_a_split_refuses_what_it_cannot_share(energy_uj, weights):
    with pytest.raises(ValueError, match="out of range"):
        split_uj(energy_uj, weights)


metered = st.builds(
    Metered,
    name=st.just("x"),
    component=st.just("cpu"),
    energy_uj=uj,
    floor_uw=st.integers(0, 10**9),
    quality=st.sampled_from(["measured", "derived", "modelled"]),
    coverage=st.floats(0, 1),
    late=st.booleans(),
)


@st.composite
def machines(draw):
    """Up to two packages, two memories and a platform."""
    devices = []
    for component, name, most in (("cpu", "cpu", 2), ("dram", "dram", 2), ("other", "platform", 1)):
        for n in range(draw(st.integers(0, most))):
            device = draw(metered)
            devices.append(
                Metered(
                    f"{name}{n}",
                    component,
                    device.energy_uj,
                    0 if component == "other" else device.floor_uw,
                    device.quality,
                    device.coverage,
                )
            )
    return devices


@given(machines(), ns, st.sampled_from([1000, 10_000, 60_000]))
def test_rows_sum_to_their_devices_and_idle_rows_to_idle(devices, cpu_ns, window_ms):
    drawn, shares = attribute(devices, window_ms, cpu_ns)
    for component in ("cpu", "dram", "other"):
        parts = [d for d in drawn if d.component == component]
        held = [getattr(s, f"{component}_uj") for s in shares]
        assert sum(held) == sum(d.energy_uj for d in parts)
        idle = [getattr(s, f"{component}_uj") for s in shares if s.use == IDLE]
        assert sum(idle) == sum(d.idle_uj for d in parts)
        assert all(energy >= 0 for energy in held)
    assert all(0 <= d.idle_uj <= d.energy_uj for d in drawn)
    assert [s.use for s in shares if s.use >= 0] == list(range(len(cpu_ns)))


def test_active_energy_without_any_use_is_nobodys():
    _, shares = attribute([Metered("cpu0", "cpu", 500, 0, "measured", 1.0)], 1000, [])
    assert [(s.use, s.cpu_uj) for s in shares] == [(NOBODY, 500)]


def test_the_floor_counts_for_the_covered_time_only():
    half = Metered("cpu0", "cpu", 10**9, 125_000_000, "measured", 0.5)
    (device,), _ = attribute([half], 10_000, [1])
    assert device.idle_uj == 625_000_000


def test_a_modelled_part_makes_the_platform_modelled():
    devices = [
        Metered("cpu0", "cpu", 10, 0, "modelled", 1.0),
        Metered("platform", "other", 30, 0, "measured", 0.5),
    ]
    platform = attribute(devices, 1000, [1])[0][-1]
    assert (platform.energy_uj, platform.quality, platform.coverage) == (20, "modelled", 0.5)

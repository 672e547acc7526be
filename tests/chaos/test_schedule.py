"""The seed alone decides which faults come."""

import itertools

import pytest

from chaos.__main__ import MINUTES, SEED
from chaos.faults import ACTS
from chaos.schedule import AT_ONCE, DISK, SHAPES, plan, ways


@pytest.mark.parametrize("shape", SHAPES)
def test_a_seed_gives_the_same_faults_again(shape: str) -> None:
    assert plan(7, 300, shape) == plan(7, 300, shape)
    assert plan(7, 300, shape) != plan(8, 300, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_disks_the_other_faults_stay(shape: str) -> None:
    every = plan(7, 300, shape)
    assert any(one.kind in DISK for one in every)
    assert plan(7, 300, shape, disks=False) == [one for one in every if one.kind not in DISK]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_comes_and_ends_in_time(shape: str) -> None:
    faults = plan(1, 450, shape)
    assert {one.kind for one in faults} == set(ACTS)
    assert all(one.at_s + one.for_s <= 450 for one in faults)
    assert faults == sorted(faults, key=lambda one: one.at_s)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_make_chaos_does_leaves_out_no_fault_of_any_part(shape: str) -> None:
    seconds = MINUTES * 60 / len(SHAPES)
    every = {f"{way.kind}, {way.targets[0].rstrip('12')}" for way in ways(shape, seconds)}
    assert {one.name for one in plan(SEED, seconds, shape)} == every


def test_every_server_is_killed_held_and_restarted_and_its_disk_spoilt() -> None:
    named = {f"{way.kind}, {who}" for way in ways("kafka", 240) for who in way.targets}
    for server in ("intake", "writer1", "writer2", "broker", "clickhouse"):
        assert {f"{kind}, {server}" for kind in ("kill -9", "stop and continue", "restart")} < named
    for owner in ("broker", "clickhouse"):
        assert {f"{kind}, {owner}" for kind in DISK} < named


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shape", SHAPES)
def test_no_part_has_two_faults_at_once(shape: str, seed: int) -> None:
    faults = plan(seed, 300, shape)
    for one, other in itertools.combinations(faults, 2):
        together = one.at_s < other.at_s + other.for_s and other.at_s < one.at_s + one.for_s
        assert not (together and one.touches & other.touches)
    for one in faults:
        running = [f for f in faults if f.at_s <= one.at_s + 0.05 < f.at_s + f.for_s]
        assert len(running) <= AT_ONCE

"""Any JSON at any place of an answer: parsers take what they can, and never raise."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.agent.errors import SourceFailed
from joulegram.agent.owners.answers import at, document, indices, number, quantity
from joulegram.agent.owners.docker import known_of
from joulegram.agent.owners.known import CPUS_MAX, GPUS_MAX, LABELS_MAX, TEXT_MAX, Known, bounded
from joulegram.agent.owners.kubelet import pods_of
from joulegram.agent.owners.slurm_jobs import hosts, jobs_of
from tests.agent.owners.answered import CONTAINER, PODS, SLURM_2305, SLURM_2405

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["gpu:a100:2(IDX:0-1)", "0-99999999", "1e999", "9" * 40, "-1", "500m", "inf"]),
)
KEYS = st.text(max_size=4) | st.sampled_from(["set", "number", "infinite", "name", "count"])
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=4) | st.dictionaries(KEYS, v, max_size=4), max_leaves=8
)


def places(value, path=()):
    """Every place in a document."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def with_put(value, path, new):
    """The document with another value at one place."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = with_put(value[path[0]], path[1:], new)
    return copy


def sane(known: Known) -> bool:
    texts = [known.user, known.project, known.name, *known.reserved_gpus]
    texts += [*known.attributes, *known.attributes.values()]
    return (
        math.isfinite(known.reserved_cpus)
        and 0 <= known.reserved_cpus <= CPUS_MAX
        and len(known.reserved_gpus) <= GPUS_MAX
        and len(known.attributes) <= LABELS_MAX
        and all(isinstance(text, str) and text.isprintable() for text in texts if text.isascii())
        and all(len(text) <= 317 for text in texts)
    )


@given(VALUES, st.data())
def test_slurm_with_anything_anywhere(value, data):
    answer = data.draw(st.sampled_from([SLURM_2305, SLURM_2405]))
    path = data.draw(st.sampled_from(list(places(answer))))
    for ours in (False, True):
        for job in jobs_of(with_put(answer, path, value), {"gpu2"}, ours=ours):
            assert sane(job.known)
            assert job.id.isdigit()


@given(VALUES, st.data())
def test_kubelet_with_anything_anywhere(value, data):
    path = data.draw(st.sampled_from(list(places(PODS))))
    for pod in pods_of(with_put(PODS, path, value)).values():
        assert sane(pod.known)
        assert 0 <= pod.gpus <= 1024


@given(VALUES, st.data())
def test_docker_with_anything_anywhere(value, data):
    path = data.draw(st.sampled_from(list(places(CONTAINER))))
    assert sane(known_of(with_put(CONTAINER, path, value)))


@given(st.text() | st.text("[],-0123456789n "))
def test_lists_are_read_within_bounds(text):
    assert len(indices(text)) <= 2048
    assert len(hosts(text)) <= 20_000


@given(st.binary())
def test_bytes_are_a_document_or_refused(raw):
    try:
        value = document(raw, "it")
    except SourceFailed:
        return
    assert json.loads(raw) == value or value != value


def test_what_nests_too_deeply_is_refused():
    with pytest.raises(SourceFailed):
        document(b"[" * 200_000, "it")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (4, 4.0),
        (4.5, 4.5),
        ("4", 4.0),
        ({"set": True, "infinite": False, "number": 4}, 4.0),
        ({"set": False, "infinite": False, "number": 4}, 0.0),
        ({"set": True, "infinite": True, "number": 4}, 0.0),
        ({"number": {"number": 4}}, 0.0),
        (True, 0.0),
        (-1, 0.0),
        (10**400, 0.0),
        (math.nan, 0.0),
        (None, 0.0),
        ("²", 0.0),
    ],
)
def test_numbers_as_slurm_writes_them(value, said):
    assert number(value) == said


@pytest.mark.parametrize(
    ("value", "cpus"),
    [("500m", 0.5), ("2", 2.0), ("1.5", 1.5), (3, 3.0), ("", 0.0), ("nan", 0.0), ("-1", 0.0)],
)
def test_quantities_as_kubernetes_writes_them(value, cpus):
    assert quantity(value) == cpus


@pytest.mark.parametrize(
    ("listed", "numbers"),
    [
        ("0-2,5", [0, 1, 2, 5]),
        ("7", [7]),
        ("", []),
        ("3-1", []),
        ("0-99999", []),
        ("a", []),
        ("1,,2", []),
    ],
)
def test_indices(listed, numbers):
    assert indices(listed) == numbers


def test_way_that_ends_early():
    assert at({"a": [{"b": 1}]}, "a", 0, "b") == 1
    assert at({"a": [{"b": 1}]}, "a", 1, "b") is None
    assert at([1], -1) is None


def test_what_comes_from_outside_is_cut_and_printable():
    wild = Known(
        user="a\nb\x00",
        name="x" * 10_000,
        attributes={f"k{n}": "\x7f" * 300 for n in range(100)},
        reserved_cpus=math.inf,
        reserved_gpus=("0", "0", *map(str, range(500))),
    )
    known = bounded(wild)
    assert known.user == r"a\x0ab\x00"
    assert len(known.name) == TEXT_MAX
    assert sane(known)

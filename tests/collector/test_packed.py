"""Frames that are read with their workloads and commands as bytes: the same frames all the same."""

import pytest
from google.protobuf.message import DecodeError

from joulegram.collector import columns
from joulegram.collector.checked import Checked
from joulegram.collector.packed import PackedFrame, read_frame, whole
from joulegram.collector.validate import MAX_COMMAND, Refusal, validate_all
from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.made_frames import NOW_MS, frame


def answers(*packed: bytes) -> list[Checked | Refusal]:
    burst = [(PackedFrame.FromString(one), one, "n1") for one in packed]
    return validate_all(burst, NOW_MS, 90.0)


def spoilt(text: str, by: bytes) -> bytes:
    """A frame's bytes with a text of it replaced by bytes of the same length."""
    packed = frame().SerializeToString()
    assert packed.count(text.encode()) == 1 and len(text) == len(by)
    return packed.replace(text.encode(), by)


def test_a_packed_frame_has_all_of_a_frame() -> None:
    for one in (frame(gpu=True), Frame()):
        packed = one.SerializeToString()
        read = read_frame(packed)
        assert isinstance(read, tuple) and read[1] == packed
        assert whole(read[0]) == one == whole(one)
        assert columns.content_of(read[0]) == columns.content_of(one)


@pytest.mark.parametrize(
    ("text", "by", "names"),
    [("train", b"tr\xc3in", "UTF-8"), ("c3", b"c\xff", "UTF-8"), ("gold", b"g\xf0ld", "UTF-8")],
    ids=["a workload's name", "a command", "an attribute"],
)
def test_text_that_is_not_utf8_costs_its_frame_alone(text: str, by: bytes, names: str) -> None:
    good = frame(2).SerializeToString()
    bad, fine = answers(spoilt(text, by), good)
    assert isinstance(bad, tuple) and bad[0] == "shape" and names in bad[1]
    assert isinstance(fine, Checked)


def test_halves_of_a_letter_in_two_commands_are_no_letter() -> None:
    packed = frame().SerializeToString()
    first, second = b"\x22\x02c1", b"\x22\x02c2"
    assert first + second in packed
    (bad,) = answers(packed.replace(first + second, b"\x22\x02c\xc3\x22\x02\xa92"))
    assert isinstance(bad, tuple) and "UTF-8" in bad[1]


@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("letter", ["x", "é", "\0"])
def test_a_command_may_be_as_long_as_it_says_and_no_longer(at: int, letter: str) -> None:
    fits, beyond = frame(), frame(2)
    fits.rows.command[at] = letter * MAX_COMMAND
    beyond.rows.command[at] = "y" + letter * MAX_COMMAND
    fine, bad = answers(fits.SerializeToString(), beyond.SerializeToString())
    assert isinstance(fine, Checked)
    assert isinstance(bad, tuple) and f"{MAX_COMMAND + 1} characters" in bad[1]


def test_the_same_workload_in_other_bytes_is_the_same_content() -> None:
    """A map's entries may come in any order, and a field's parts, too."""
    one = frame()
    one.workloads[2].attributes["area"] = "hall 3"
    packed = one.SerializeToString(deterministic=True)
    workload = one.workloads[2].SerializeToString(deterministic=True)
    gold = b"\x3a\x0c\x0a\x04tier\x12\x04gold"
    assert gold in workload
    turned = workload.replace(gold, b"") + gold
    assert turned != workload and packed.count(workload) == 1
    as_it_is, otherwise = answers(packed, packed.replace(workload, turned))
    assert isinstance(as_it_is, Checked) and isinstance(otherwise, Checked)
    hashes = {columns.hash_of(columns.content_of(c.frame)) for c in (as_it_is, otherwise)}
    assert hashes == {columns.hash_of(columns.content_of(one))}
    details = [[w.details for w in c.workloads] for c in (as_it_is, otherwise)]
    assert details[0] == details[1]


@pytest.mark.parametrize("depth", [98, 99, 100, 101])
def test_what_nests_too_deep_for_a_frame_is_refused(depth: int) -> None:
    """Else it would be in the ledger, and nobody could read it as a frame."""
    one = frame()
    opened, closed = b"\x9b\x06", b"\x9c\x06"  # a group, a field that nobody knows
    workload = one.workloads[3].SerializeToString() + depth * opened + depth * closed
    packed = one.SerializeToString() + b"\x3a" + encoded(len(workload)) + workload
    (answer,) = answers(packed)
    try:
        Frame.FromString(packed)
    except DecodeError:
        assert isinstance(answer, tuple) and "cannot be read" in answer[1]
    else:
        assert isinstance(answer, Checked)
        assert whole(answer.frame) == Frame.FromString(packed)


def test_a_frame_may_come_in_parts() -> None:
    """A message that comes twice is one: rows add their commands, a later column wins."""
    one = frame()
    first, then = Frame(), Frame()
    first.CopyFrom(one)
    first.rows.Clear()
    first.rows.workload = b"other"
    first.rows.command.extend(one.rows.command[:2])
    then.rows.CopyFrom(one.rows)
    del then.rows.command[:2]
    packed = then.SerializeToString()
    (answer,) = answers(first.SerializeToString() + packed)
    assert isinstance(answer, Checked)
    assert whole(answer.frame) == one
    assert columns.content_of(answer.frame) == columns.content_of(one)


def encoded(number: int) -> bytes:
    """A number below 2**14 as a varint of two bytes."""
    return bytes([number & 127 | 128, number >> 7])

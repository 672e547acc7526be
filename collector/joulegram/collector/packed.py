"""Frames read in part: what is needed of one whose rest is not looked into, or cannot be read."""

from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from joulegram.v1.telemetry_pb2 import Frame


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Bytes that are no Frame, such as text that is not UTF-8."""

    epoch: int  # 0: not even that could be read
    seq: int
    why: str


def read_frame(packed: bytes) -> tuple[Frame, bytes] | Unreadable:
    """A frame with its bytes, or what can be said of one that does not parse."""
    try:
        return Frame.FromString(packed), packed
    except DecodeError as exc:
        # Only the message is broken: the stream has the next one whole.
        try:
            head = PackedFrame.FromString(packed)
        except DecodeError:
            return Unreadable(0, 0, str(exc))
        return Unreadable(head.epoch, head.seq, str(exc))


def _packed_frame() -> Any:
    """A message that reads a Frame's identity, its workloads as bytes, and skips all else.

    On the wire a message in a message is bytes, so these are the same fields.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="joulegram/collector/packed.proto", package="joulegram.collector", syntax="proto3"
    )
    message = file.message_type.add(name="PackedFrame")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, label, kind in (
        ("epoch", kinds.LABEL_OPTIONAL, kinds.TYPE_FIXED64),
        ("seq", kinds.LABEL_OPTIONAL, kinds.TYPE_UINT64),
        ("workloads", kinds.LABEL_REPEATED, kinds.TYPE_BYTES),
    ):
        number = Frame.DESCRIPTOR.fields_by_name[name].number
        message.field.add(name=name, number=number, label=label, type=kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("joulegram.collector.PackedFrame")
    )


PackedFrame: Any = _packed_frame()

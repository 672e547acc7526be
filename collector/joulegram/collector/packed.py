"""Frames as they are read off the wire: what repeats itself, or lies in columns, stays bytes.

A frame's workloads are the same bytes in every frame while they run, and its commands go into a
column as they are: making a message or a text of each would cost more than all else together.
"""

from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from joulegram.v1.telemetry_pb2 import Frame

PACKAGE = "joulegram.collector"
AS_BYTES = (("Frame", "workloads"), ("Rows", "command"))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Bytes that are no Frame, such as a node's name that is not UTF-8."""

    epoch: int  # 0: not even that could be read
    seq: int
    why: str


def read_frame(packed: bytes) -> "tuple[PackedFrame, bytes] | Unreadable":
    """A frame with its bytes, or what can be said of one that does not parse."""
    try:
        return PackedFrame.FromString(packed), packed
    except DecodeError as exc:
        # Only the message is broken: the stream has the next one whole.
        try:
            head = _Head.FromString(packed)
        except DecodeError:
            return Unreadable(0, 0, str(exc))
        return Unreadable(head.epoch, head.seq, str(exc))


def whole(frame: Frame) -> Frame:
    """The same frame, packed or not, with its workloads and commands as messages and texts."""
    return Frame.FromString(frame.SerializeToString())


def _message(name: str, file: descriptor_pb2.FileDescriptorProto) -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def _packed_frame() -> Any:
    """Frame, but for the fields of AS_BYTES.

    On the wire a message in a message, and a text, are bytes: these are the same fields.
    """
    file = descriptor_pb2.FileDescriptorProto()
    Frame.DESCRIPTOR.file.CopyToProto(file)
    was = file.package
    file.name, file.package = "joulegram/collector/packed.proto", PACKAGE
    del file.service[:]
    for message in file.message_type:
        for field in (*message.field, *(f for nested in message.nested_type for f in nested.field)):
            if (message.name, field.name) in AS_BYTES:
                field.type = field.TYPE_BYTES
                field.ClearField("type_name")
            elif field.type_name:
                field.type_name = f".{PACKAGE}{field.type_name.removeprefix(f'.{was}')}"
    return _message("Frame", file)


def _head() -> Any:
    """A message that reads a Frame's identity and skips all else."""
    file = descriptor_pb2.FileDescriptorProto(
        name="joulegram/collector/head.proto", package=PACKAGE, syntax="proto3"
    )
    message = file.message_type.add(name="Head")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, kind in (("epoch", kinds.TYPE_FIXED64), ("seq", kinds.TYPE_UINT64)):
        number = Frame.DESCRIPTOR.fields_by_name[name].number
        message.field.add(name=name, number=number, label=kinds.LABEL_OPTIONAL, type=kind)
    return _message("Head", file)


_Head: Any = _head()

if TYPE_CHECKING:

    class PackedFrame(Frame):  # type: ignore[misc]
        """A Frame whose workloads, and whose rows' commands, are bytes."""

        workloads: MutableSequence[bytes]  # type: ignore[assignment]
else:
    PackedFrame = _packed_frame()

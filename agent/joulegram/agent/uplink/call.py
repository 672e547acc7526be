"""A stream of grpc.aio, and the one of its habits that we cannot live with."""

import grpc

Call = grpc.aio.StreamStreamCall[bytes, bytes]


async def write(call: Call, message: bytes) -> None:
    """Send a message on a call that is connected.

    `call.write` does the same, and where it meets the end of the stream puts an error of its own
    in place of the collector's status: drained, busy until then, too old would all be INTERNAL.
    https://github.com/grpc/grpc/blob/master/src/python/grpcio/grpc/aio/_call.py

    Raises: grpc.aio.BaseError when the stream has ended; the call knows how, or will.
    """
    await call._cython_call.send_serialized_message(message)  # type: ignore[attr-defined]

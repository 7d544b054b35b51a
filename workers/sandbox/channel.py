"""Messages between parent and child: a length of four bytes, then msgpack; descriptors travel beside the length."""

import os
import socket
import struct
from typing import BinaryIO, Final

import msgspec

HEADER: Final = struct.Struct(">I")
#: The largest message to a child.
MAX_BYTES: Final = 1 << 20
_MAX_DESCRIPTORS: Final = 4


class ChildReady(msgspec.Struct, frozen=True, tag=True):
    """Say that the child has started; `missing` are the parts of the confinement that the kernel refused."""

    missing: tuple[str, ...] = ()


decode_ready = msgspec.msgpack.Decoder(ChildReady).decode


class Channel:
    """The child's end. `missing` is what `confine` returned."""

    def __init__(self, missing: tuple[str, ...]) -> None:
        """Take standard input, a socket, and standard output, a pipe; what libraries print goes nowhere."""
        self.missing = missing
        self._messages = socket.socket(fileno=os.dup(0))
        self._answers: BinaryIO = os.fdopen(os.dup(1), "wb")
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1):
            os.dup2(nowhere, number)
        os.close(nowhere)

    def ready(self) -> None:
        """Tell the parent that messages can come."""
        self.send(msgspec.msgpack.encode(ChildReady(self.missing)))

    def send(self, message: bytes) -> None:
        self._answers.write(HEADER.pack(len(message)) + message)
        self._answers.flush()

    def receive(self) -> tuple[bytes, list[int]] | None:
        """Return the next message and the descriptors that came with it; None when the parent is gone."""
        header, descriptors, _, _ = socket.recv_fds(self._messages, HEADER.size, _MAX_DESCRIPTORS)
        header += self._read(HEADER.size - len(header)) if header else b""
        if len(header) < HEADER.size:
            return None
        (length,) = HEADER.unpack(header)
        message = self._read(min(length, MAX_BYTES))
        return (message, descriptors) if len(message) == length else None

    def _read(self, size: int) -> bytes:
        got = bytearray()
        while len(got) < size and (some := self._messages.recv(size - len(got))):
            got += some
        return bytes(got)

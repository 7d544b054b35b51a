"""A child that misbehaves as the name of the file says; run in place of the real one."""

import ctypes
import os
import signal
import socket
import threading
from pathlib import Path
from typing import BinaryIO

from jobs.retrieval.documents import Chunk, Document
from workers.retrieval.parsing import contract, parser_child
from workers.sandbox import resource_limits
from workers.sandbox.channel import HEADER, Channel, ChildReady


def work(ask: contract.Ask, file: BinaryIO, _tokenizer: BinaryIO) -> contract.Parsed:
    resource_limits.allow(ask.limits.memory_bytes, ask.limits.cpu_seconds)
    name, _, argument = ask.filename.partition(":")
    if name in DEEDS:
        DEEDS[name]()
    if name == "killed" and file.tell() == 0:
        file.seek(1)  # the next child sees it: they share the offset
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "always killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "write":
        Path(argument).write_bytes(b"x")
    if name == "call":
        socket.create_connection(("127.0.0.1", int(argument))).close()
    text = os.environ.get(name, "") if name.startswith("$") else "good text"
    if name == "bad offsets":
        return contract.Parsed(Document("short", (Chunk(0, 99, 1),)), 0)
    if name == "begins again":
        return ChildReady()  # type: ignore[return-value]
    grown = 1 << 40 if name == "grown" else 0
    return contract.Parsed(Document(text or "unset", (Chunk(0, 4, 1),), title=str(os.getpid())), grown)


def hang() -> None:
    threading.Event().wait()


def spin() -> None:
    while True:
        pass


def eat() -> None:
    held = [bytearray(1 << 20)]
    while True:
        held.append(bytearray(1 << 20))


def crash() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(3)


def chatter() -> None:
    """Print where a library believes the terminal to be."""
    print("noise" * 100_000, flush=True)
    os.write(2, b"more noise" * 100_000)


def babble() -> None:
    """Write past the protocol, into the pipe itself."""
    for number in range(3, 12):
        try:
            os.write(number, HEADER.pack(1 << 31))
        except OSError:
            continue


DEEDS = {
    "hang": hang,
    "spin": spin,
    "eat": eat,
    "crash": crash,
    "leave": leave,
    "chatter": chatter,
    "babble": babble,
}


def main(channel: Channel) -> None:
    parser_child.serve(channel, work)

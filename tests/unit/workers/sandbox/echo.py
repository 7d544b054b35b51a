"""A child that says back what it was told, or what it sees of a file or of itself."""

import json
import os

from workers.sandbox.channel import Channel


def main(channel: Channel) -> None:
    channel.ready()
    while (received := channel.receive()) is not None:
        message, descriptors = received
        channel.send(answer(message, descriptors))
        for one in descriptors:
            os.close(one)


def answer(message: bytes, descriptors: list[int]) -> bytes:
    if message == b"file":
        return os.read(descriptors[0], 100)
    if message.startswith(b"open "):
        try:
            os.close(os.open(message.removeprefix(b"open "), os.O_RDONLY))
        except OSError as error:
            return type(error).__name__.encode()
    if message == b"self":
        return json.dumps({"variables": dict(os.environ), "descriptors": descriptors_of_this()}).encode()
    return message


def descriptors_of_this() -> dict[int, str]:
    """Return what each open descriptor is, without /proc: its kind and inode."""
    found = {}
    for number in range(64):
        try:
            status = os.fstat(number)
        except OSError:
            continue
        found[number] = f"{status.st_mode:o} {status.st_dev}:{status.st_ino}"
    return found

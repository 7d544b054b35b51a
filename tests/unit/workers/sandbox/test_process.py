"""The child as its parent sees it: messages, descriptors, and what it inherits."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.sandbox.channel import HEADER, MAX_BYTES, Channel
from workers.sandbox.child import Child, Died, TooLarge
from workers.sandbox.confinement import Policy

POLICY = Policy("tests.unit.workers.sandbox.echo", readable=(str(Path(__file__).parents[4]),))


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child(POLICY)
    made.begin()
    yield made
    made.end()


def answer(child: Child, message: bytes, *descriptors: int) -> bytes:
    child.send(message, descriptors)
    return child.receive(60.0, MAX_BYTES + 100)


@pytest.mark.parametrize("size", [0, 1, MAX_BYTES])
def test_messages_of_any_size_are_heard_whole(child: Child, size: int) -> None:
    assert answer(child, b"x" * size) == b"x" * size


def test_an_open_file_is_read_that_its_path_would_not_open(child: Child, tmp_path: Path) -> None:
    for text in (b"first", b"second"):  # descriptors of the message before are closed
        (tmp_path / "file").write_bytes(text)
        with (tmp_path / "file").open("rb") as file:
            assert answer(child, b"file", file.fileno()) == text
    assert answer(child, b"open " + str(tmp_path / "file").encode()) == b"PermissionError"


def test_child_inherits_no_parent_descriptor_or_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NIGHTMILL_SECRET", "secret")
    inheritable = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(inheritable, True)
    child = Child(POLICY)
    child.begin()
    seen = json.loads(answer(child, b"self"))
    child.end()
    os.close(inheritable)

    assert "secret" not in json.dumps(seen)
    assert not {"PATH", "HOME", "NIGHTMILL_SECRET"} & set(seen["variables"])
    status = tmp_path.stat()
    assert not [one for one in seen["descriptors"].values() if one.endswith(f" {status.st_dev}:{status.st_ino}")]
    assert len(seen["descriptors"]) <= 7  # the standard three, both ends, its own /proc/self/statm, a library's


def test_an_answer_that_is_too_large_is_not_read(child: Child) -> None:
    child.send(b"x" * 100)
    with pytest.raises(TooLarge):
        child.receive(60.0, 99)


def test_killed_child_raises_died(child: Child) -> None:
    child.kill()
    with pytest.raises(Died):
        child.receive(60.0, MAX_BYTES)
    with pytest.raises(Died):
        flood(child)


def flood(child: Child) -> None:
    """Send more than the socket holds: a dead process may not have let go of it yet."""
    for _ in range(100):
        child.send(b"x" * (1 << 16))


@pytest.mark.parametrize(
    ("written", "received"),
    [
        (HEADER.pack(5) + b"whole", [b"whole", None]),
        (HEADER.pack(0) + HEADER.pack(4) + b"next", [b"", b"next", None]),
        (HEADER.pack(5)[:2], [None]),
        (HEADER.pack(5) + b"cut", [None]),
        (HEADER.pack(MAX_BYTES + 1) + bytes(MAX_BYTES + 1), [None]),
    ],
)
def test_message_is_received_whole_or_not_at_all(written: bytes, received: list[bytes | None]) -> None:
    ours, theirs = socket.socketpair()
    heard = Channel.__new__(Channel)
    heard._messages = theirs
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_BYTES)
    ours.sendall(written)
    ours.close()

    found = [heard.receive() for _ in received]
    theirs.close()

    assert [one and one[0] for one in found] == received

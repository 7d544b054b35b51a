"""The proxy of the doses fails as it is configured to, and no more."""

import random
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.proxy import Proxy
from tests.support.system import pause

pytestmark = pytest.mark.verify

_TURNS = 200


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)
        except OSError:
            return  # reset: as some of these tests have it


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Proxy(server.server_address[1], rng=random.Random(1)) as made:
            yield made
        server.shutdown()


def _open(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 10)


def _turn(proxy: Proxy) -> bool:
    """Send a question on a new connection; return whether it was answered."""
    with _open(proxy) as client:
        try:
            client.sendall(b"word")
            return client.recv(4) == b"word"
        except ConnectionResetError:
            return False


def test_each_chunk_is_late_and_none_is_lost(proxy: Proxy) -> None:
    proxy.worsen(0.1, 0.0)
    with _open(proxy) as client:
        began, sent = time.monotonic(), b"".join(b"%04d" % number for number in range(20))
        for start in range(0, len(sent), 4):
            client.sendall(sent[start : start + 4])
            pause(0.01)  # a chunk each
        found, first = client.recv(4), time.monotonic() - began
        while len(found) < len(sent):
            found += client.recv(1 << 16)

    assert found == sent
    assert first >= 0.2


def test_a_share_of_the_chunks_is_lost_and_its_connection_with_it(proxy: Proxy) -> None:
    proxy.worsen(0.0, 0.05)
    lost = [_turn(proxy) for _ in range(_TURNS)].count(False)

    assert lost == proxy.resets
    assert 0.05 * _TURNS < lost < 0.2 * _TURNS  # two chunks a turn


def test_swallowed_answers_are_lost_until_the_connection_is_reset(proxy: Proxy) -> None:
    with _open(proxy) as client, _open(proxy) as idle:
        client.settimeout(0.3)
        proxy.deafen()
        client.sendall(b"word")
        with pytest.raises(TimeoutError):
            client.recv(4)
        proxy.mend()
        client.settimeout(10)
        with pytest.raises(ConnectionResetError):
            client.recv(4)
        idle.sendall(b"word")

        assert idle.recv(4) == b"word"
    assert proxy.resets == 1


def test_proxy_answers_in_place_of_server_until_restored(proxy: Proxy) -> None:
    proxy.say(b"no")
    with _open(proxy) as client:
        client.sendall(b"word")

        assert client.recv(4) == b"no"
        assert client.recv(4) == b""
    proxy.mend()
    assert _turn(proxy)

"""The local receiver accepts what is signed, refuses what is not, and counts an event once."""

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from cli.client.receiver import Receiver
from cli.errors import Trouble

SECRET = "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c="
BODY = json.dumps({"type": "batch.completed", "data": {"id": "batch_1"}})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver("127.0.0.1", 0)
    thread = threading.Thread(target=receiver.run, args=(SECRET, 2))
    thread.start()
    yield receiver
    receiver.stop()
    thread.join(30)
    assert not thread.is_alive()


def _post(receiver: Receiver, webhook_id: str, secret: str = SECRET, body: str = BODY) -> int:
    at = datetime.now(UTC)
    headers = {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(webhook_id, at, body),
    }
    request = urllib.request.Request(receiver.url, body.encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_signed_event_is_accepted_and_printed(receiver: Receiver, capsys: pytest.CaptureFixture[str]) -> None:
    status = _post(receiver, "wh_1")

    assert status == 204
    assert "batch.completed batch_1 wh_1 verified" in capsys.readouterr().out


def test_an_event_signed_with_another_secret_is_refused(receiver: Receiver, capsys: pytest.CaptureFixture[str]) -> None:
    status = _post(receiver, "wh_1", secret="whsec_" + "A" * 44)

    assert status == 400
    assert "refused: " in capsys.readouterr().out


def test_a_repeated_event_is_marked_and_does_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    receiver = Receiver("127.0.0.1", 0)
    thread = threading.Thread(target=receiver.run, args=(SECRET, 2))
    thread.start()

    _post(receiver, "wh_1")
    _post(receiver, "wh_1")
    still = thread.is_alive()
    _post(receiver, "wh_2")
    thread.join(30)

    assert still
    assert not thread.is_alive()
    assert "wh_1 verified (again)" in capsys.readouterr().out


def test_a_secret_that_is_none_is_told_in_one_line() -> None:
    receiver = Receiver("127.0.0.1", 0)

    with pytest.raises(Trouble, match="no signing secret"):
        receiver.run("whsec_not base64!")


def test_a_port_that_is_taken_is_told_in_one_line(receiver: Receiver) -> None:
    port = int(receiver.url.rsplit(":", 1)[1].strip("/"))

    with pytest.raises(Trouble, match="cannot listen on"):
        Receiver("127.0.0.1", port)


@pytest.mark.parametrize("length", ["-1", "+5", "five", "1" * 5000, "\u0663"])
def test_a_length_that_is_no_number_is_refused_and_nothing_is_read(
    receiver: Receiver, capsys: pytest.CaptureFixture[str], length: str
) -> None:
    head = f"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode()
    port = int(receiver.url.rsplit(":", 1)[1].strip("/"))

    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(head)  # it stays open: who reads to its end waits
        answer = client.recv(100)

    assert b" 400 " in answer
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "event", ['{"data": [1]}', '{"data": "x"}', '{"data": {"id": [1]}}', "[1]", "3", '{"type": {}}']
)
def test_an_event_of_another_shape_is_printed_without_a_traceback(
    receiver: Receiver, capsys: pytest.CaptureFixture[str], event: str
) -> None:
    assert _post(receiver, "wh_1", body=event) == 204

    told = capsys.readouterr()
    assert " wh_1 verified" in told.out
    assert told.err == ""


def test_an_event_that_is_nested_too_deeply_is_refused(receiver: Receiver, capsys: pytest.CaptureFixture[str]) -> None:
    assert _post(receiver, "wh_1", body="[" * 100_000) == 400

    assert capsys.readouterr().err == ""

"""Commands report a server that breaks off in the middle of an answer."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.client.progress import Snapshot
from cli.client.server import Server, ServerUnavailable
from cli.commands.results import _write_raw
from cli.errors import CliError
from cli.output_files import require_writable, whole
from jobs.timings import Timings

WHOLE = b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}'
CUT = WHOLE[:-3]
CUT_CHUNKS = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{"a": 1}\n\r\n9\r\n{"a":'
CHUNKS = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{"a": 1}\n\r\n8\r\n{"b": 2}\r\n0\r\n\r\n'
HTML = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"
GONE = b'HTTP/1.1 404 Not Found\r\nContent-Length: 33\r\n\r\n{"error": {"message": "No file"}}'


@contextmanager
def answering(*answers: bytes, patience: float = 60.0) -> Iterator[Server]:
    """Yield a server that gives one answer to each connection, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for answer in answers:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        timings = Timings(download_retry=0.0, download_patience=patience)
        with Server(f"http://127.0.0.1:{listening.getsockname()[1]}", "key", timings) as server:
            yield server
        thread.join()


def job(state: str) -> Snapshot:
    return Snapshot.of(
        {
            "id": "batch_1", "kind": "generation", "state": state, "created_at": 0, "endpoint": "/v1/embeddings",
            "progress": {"total": 1, "completed": 1, "failed": 0}, "usage": {"input_tokens": 0, "output_tokens": 0},
            "overrides": {}, "input_file_id": "file-in", "output_file_id": "file-out",
        }
    )  # fmt: skip


def test_cut_download_is_retried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(CUT, WHOLE) as server:
        server.download("file-out", tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == b'{"a": 1}'
    assert "broke off its answer; trying again" in capsys.readouterr().err


def test_failed_download_leaves_existing_file_unchanged(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"before")

    with answering(CUT, patience=-1.0) as server, pytest.raises(ServerUnavailable, match="broke off"):
        server.download("file-out", tmp_path / "out")

    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out", b"before")]


def test_cut_results_of_live_job_raise_and_leave_file_unchanged(tmp_path: Path) -> None:
    with answering(CHUNKS, CUT_CHUNKS) as server:
        _write_raw(server, job("running"), tmp_path / "out")
        with pytest.raises(ServerUnavailable, match="broke off"):
            _write_raw(server, job("running"), tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == b'{"a": 1}\n{"b": 2}\n'


def test_cut_line_stream_raises_server_unavailable() -> None:
    with (
        answering(CUT) as server,
        pytest.raises(ServerUnavailable, match="broke off"),
        server.content("file-out") as lines,
    ):
        list(lines)


def test_missing_results_leave_existing_file_unchanged(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"before")

    with answering(GONE) as server, pytest.raises(CliError, match="No file"):
        _write_raw(server, job("succeeded"), tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == b"before"


def test_writing_to_device_does_not_replace_device() -> None:
    with whole(Path("/dev/null")) as out:
        out.write(b"x")

    assert Path("/dev/null").is_char_device()


def test_an_open_file_that_is_named_as_a_device_is_added_to(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as redirected:
        redirected.write(b"before ")
        redirected.flush()
        door = Path(f"/proc/self/fd/{redirected.fileno()}")
        with whole(door) as out:
            out.write(b"x")
        redirected.write(b" after")

    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out", b"before x after")]


def test_the_file_that_a_link_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")

    with whole(tmp_path / "link") as out:
        out.write(b"x")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"x"


def test_cut_download_to_file_descriptor_is_not_restarted(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as redirected, answering(CUT) as server, pytest.raises(ServerUnavailable):
        server.download("file-out", Path(f"/proc/self/fd/{redirected.fileno()}"))

    assert (tmp_path / "out").read_bytes() == b'{"a":'


@pytest.mark.parametrize(("name", "told"), [("none/out", "no such folder"), (".", "is a folder")])
def test_impossible_output_path_is_refused(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(CliError, match=told):
        require_writable(tmp_path / name)


def test_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)

    with pytest.raises(CliError, match="nothing can be written"):
        require_writable(tmp_path / "out")


def test_a_file_that_can_be_is_not_made_yet(tmp_path: Path) -> None:
    require_writable(tmp_path / "out")

    assert list(tmp_path.iterdir()) == []


def test_answer_of_foreign_program_is_reported() -> None:
    with answering(HTML) as server, pytest.raises(ServerUnavailable, match="is the URL right"):
        server.get("/jobs")


def test_invalid_url_is_refused() -> None:
    with pytest.raises(CliError, match="http://here:80OO is no URL"):
        Server("http://here:80OO", "key")

"""Where the commands find a deployment that no `up` has started, and to whom they give its key."""

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from cli.client.server import ServerUnavailable, connect
from cli.doctor import reachable
from cli.doctor.checks import Patient
from cli.errors import CliError
from cli.up import readiness
from cli.up.effective import effective, running
from cli.up.folder import DataFolder
from cli.up.readiness import reachable_url

READY = b'{"status": "ready", "database": "ok", "workers": {}}'


@contextmanager
def listening(body: bytes, *, raw: bool = False) -> Iterator[int]:
    """Yield the port of a server that answers everything with this, in HTTP unless it is `raw`."""
    answer = body if raw else b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with socket.create_server(("127.0.0.1", 0)) as server:
        stopped = threading.Event()

        def serve() -> None:
            while True:
                connection, _ = server.accept()
                with connection:
                    if stopped.is_set():
                        return
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stopped.set()
            socket.create_connection(server.getsockname()).close()
            thread.join()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With an operator's key, and nothing in the environment."""
    for name in [name for name in os.environ if name.startswith("NIGHTMILL_")]:
        monkeypatch.delenv(name)
    (tmp_path / "operator.key").write_text("nm_key\n")
    return tmp_path


Name = Callable[[pytest.MonkeyPatch, int], None]


def by_port(patch: pytest.MonkeyPatch, port: int) -> None:
    patch.setenv("NIGHTMILL_PORT", str(port))


def by_url(patch: pytest.MonkeyPatch, port: int) -> None:
    patch.setenv("NIGHTMILL_PUBLIC_URL", f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("name", [by_port, by_url])
def test_deployment_named_by_settings_is_used_with_key_of_its_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: Name
) -> None:
    with listening(READY) as port:
        name(monkeypatch, port)
        with connect(None, None, folder) as found:
            assert (found.url, found.sdk.api_key) == (f"http://127.0.0.1:{port}", "nm_key")


def test_running_deployment_takes_precedence_over_settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "run.json").write_text(json.dumps({"url": "http://running", "api_key": "nm_other"}))
    with listening(READY) as port:
        by_port(monkeypatch, port)
        with connect(None, None, folder) as found:
            assert (found.url, found.sdk.api_key) == ("http://running", "nm_other")


def test_no_key_is_given_to_a_server_that_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(READY) as port:
        by_port(monkeypatch, port)
        with listening(READY) as other, pytest.raises(CliError, match=f"no API key for http://127.0.0.1:{other}:"):
            connect(f"http://127.0.0.1:{other}", None, folder)


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost:8000/v1", True),
        ("http://localhost:8001", False),
        ("https://127.0.0.1:8000", False),
        ("http://127.0.0.1:8000/another", False),
        ("http://other:8000", False),
        ("http://:80OO", False),
    ],
)
def test_key_of_running_deployment_is_used_only_for_its_url(folder: Path, url: str, same: bool) -> None:
    (folder / "run.json").write_text(json.dumps({"url": "http://127.0.0.1:8000", "api_key": "nm_own"}))

    told = f"no server answers at {url}; is the URL right? what runs in {folder} is at http://127.0.0.1:8000"
    with (
        nullcontext() if same else pytest.raises(ServerUnavailable, match=re.escape(told)),
        connect(url, None, folder) as found,
    ):
        assert found.sdk.api_key == "nm_own"


def test_invalid_key_is_reported(folder: Path) -> None:
    with pytest.raises(CliError, match="characters that no key has"):
        connect("http://other", "nm_…", folder)


def test_models_file_of_running_deployment_is_used_unless_overridden(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DataFolder(folder).write_run({"models_file": "/srv/models.yaml"})

    assert running(folder).models_file == "/srv/models.yaml"
    assert effective(data_dir=folder).models_file == ""
    monkeypatch.setenv("NIGHTMILL_MODELS_FILE", "/srv/other.yaml")
    assert running(folder).models_file == "/srv/other.yaml"
    monkeypatch.delenv("NIGHTMILL_MODELS_FILE")
    (folder / "up.lock").write_text(f"1 1 of-another-day {socket.gethostname()}")
    assert running(folder).models_file == ""


def test_local_port_is_used_if_proxy_does_not_forward_health(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(b'{"error": {}}') as proxy, listening(READY) as port:
        by_url(monkeypatch, proxy)
        by_port(monkeypatch, port)
        with connect(None, None, folder) as found:
            assert found.url == f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(("host", "port"), [("0.0.0.0", 80), ("::", 80)])
def test_wildcard_address_is_reached_on_local_machine(host: str, port: int) -> None:
    assert reachable_url(host, port) in ("http://127.0.0.1:80", "http://[::1]:80")


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"status": "ready"}', b'{"status": 404, "database": "x"}'])
def test_no_key_is_given_to_another_server(folder: Path, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    with listening(body) as port:
        by_port(monkeypatch, port)
        with pytest.raises(CliError, match="nothing runs in"):
            connect(None, None, folder)


def test_server_on_default_port_is_not_contacted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def look(url: str) -> dict[str, str]:
        asked.append(url)
        return {"status": "ready"}

    monkeypatch.setattr("cli.up.readiness.look", look)
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", "postgresql+psycopg://h/x")

    with pytest.raises(CliError, match="nothing runs in"):
        connect(None, None, folder)
    assert asked == []


def test_a_folder_without_a_key_names_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "operator.key").unlink()
    with listening(READY) as port:
        by_port(monkeypatch, port)
        with pytest.raises(CliError, match="nothing runs in"):
            connect(None, None, folder)


@pytest.mark.parametrize(("body", "told"), [(READY, []), (b"<html>", ["port of api", "port of flower"])])
def test_a_port_that_its_own_api_has_is_not_in_the_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch, body: bytes, told: list[str]
) -> None:
    with listening(body) as port:
        by_port(monkeypatch, port)
        patient = Patient(effective(data_dir=folder), DataFolder(folder), {})

        assert [one.check for one in reachable.ports(patient)] == told


@pytest.mark.parametrize("said", [b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b""])
def test_unrecognised_answer_is_not_accepted_as_server(said: bytes) -> None:
    with listening(said, raw=True) as port:
        assert not readiness.look(f"http://127.0.0.1:{port}")


def test_invalid_url_is_not_accepted_as_server() -> None:
    assert readiness.look("example.org:80") is None
    assert readiness.look("http://:::80") is None


OPENAI = ("http://openai.test/v1", "sk-theirs")
BOTH = [
    # --url, --api-key or our variables; OPENAI_BASE_URL, OPENAI_API_KEY; what is asked, with which key
    ((None, None), OPENAI, ("http://openai.test", "sk-theirs")),
    (("http://other", "nm_own"), OPENAI, ("http://other", "nm_own")),
    (("http://other", None), OPENAI, None),
    (("http://openai.test", None), OPENAI, ("http://openai.test", "sk-theirs")),
    (("http://other", None), ("", "nm_theirs"), ("http://other", "nm_theirs")),
    (("http://other", None), ("", "sk-theirs"), None),
]


@pytest.mark.parametrize(("given", "openai", "asked"), BOTH)
def test_variables_of_openai_count_after_our_own_and_a_foreign_key_goes_to_its_server_only(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[str | None, str | None],
    openai: tuple[str, str],
    asked: tuple[str, str] | None,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OPENAI_BASE_URL", openai[0])
    monkeypatch.setenv("OPENAI_API_KEY", openai[1])

    if asked is None:
        with pytest.raises(ServerUnavailable, match="no server answers at http://other"):
            connect(*given, None)
    else:
        with connect(*given, None) as found:
            assert (found.url, found.sdk.api_key) == asked


def test_a_key_of_ours_is_not_sent_to_the_server_of_openais_variable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OPENAI_BASE_URL", OPENAI[0])

    with pytest.raises(CliError, match="nothing runs"):
        connect(None, "nm_own", None)


def test_a_data_folder_that_is_named_comes_before_the_variables_of_openai(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "run.json").write_text(json.dumps({"url": "http://running", "api_key": "nm_own"}))
    monkeypatch.setenv("OPENAI_BASE_URL", OPENAI[0])
    monkeypatch.setenv("OPENAI_API_KEY", OPENAI[1])

    with connect(None, None, folder) as found:
        assert (found.url, found.sdk.api_key) == ("http://running", "nm_own")

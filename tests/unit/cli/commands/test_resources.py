"""Files, vector stores, webhook endpoints and lists, against a web process in which nobody works."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from typer.testing import CliRunner, Result

from cli.main import app
from tests.support import worker_steps
from tests.support.web import make_key, running_app, serve
from tests.unit.api.batches.test_batches import create, upload
from tests.unit.api.conftest import client_of


class Client:
    """The command, and a key to the server."""

    def __init__(self, web: FastAPI, url: str, key: str) -> None:
        self.web = web
        self.server = httpx2.Client(base_url=f"{url}/v1", headers={"Authorization": f"Bearer {key}"})
        self.where = ["--url", url, "--api-key", key]

    def __call__(self, *words: str, given: bytes = b"", code: int = 0) -> Result:
        done = CliRunner().invoke(app, [*words, *self.where], input=given)
        assert done.exit_code == code, (done.output, done.exception)
        return done

    def entries(self, *words: str) -> list[dict[str, object]]:
        """Return what `--json` prints: an object a line."""
        return [json.loads(line) for line in self(*words, "--json").stdout.splitlines()]


@pytest.fixture
def client(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.chdir(tmp_path)
    settings = {"webhook_allow_private": True, "data_dir": tmp_path / "data"}
    with running_app(tmp_path, sqlite_url, **settings) as web, serve(web) as url:
        client = Client(web, url, make_key(web))
        yield client
        client.server.close()


def line(n: int) -> bytes:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    line = {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line).encode() + b"\n"


def test_a_file_goes_up_is_listed_comes_back_and_is_deleted(client: Client, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    file_id = client("files", "upload", "notes.txt", "--purpose", "assistants").stdout.strip()
    (tmp_path / "notes.txt").unlink()

    [listed] = client.entries("files", "list")
    [other] = [client.entries("files", "list", "--purpose", "batch")]
    shown = client("files", "list").stdout
    [got] = client.entries("files", "get", file_id)
    client("files", "download", file_id)
    printed = client("files", "download", file_id, "--output", "copy.txt", "--json")
    [gone] = client.entries("files", "delete", file_id)

    assert (listed["id"], got["id"], other) == (file_id, file_id, [])
    assert (file_id in shown, "notes.txt" in shown) == (True, True)
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "copy.txt").read_text() == "hello"
    assert json.loads(printed.stdout) == {"id": file_id, "path": "copy.txt"}
    assert (gone["deleted"], client.entries("files", "list")) == (True, [])


def test_download_ignores_path_in_file_name(client: Client, tmp_path: Path) -> None:
    sent = client.server.post("/files", data={"purpose": "batch"}, files={"file": ("../../evil.txt", b"x")}).json()

    client("files", "download", sent["id"])

    assert (tmp_path / "evil.txt").read_bytes() == b"x"


def test_a_store_is_made_filled_listed_and_deleted(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("about cats")
    store = client("stores", "create", "pets").stdout.strip()
    known = client("files", "upload", "a.txt", "--purpose", "assistants").stdout.strip()

    [batch] = client.entries("stores", "add", store, "a.txt", known, "--no-wait")
    inside = client.entries("stores", "files", store)
    [listed] = client.entries("stores", "list")
    assert client("stores", "files", store).stdout.count("waiting to be parsed") == 2
    table = client("stores", "list").stdout
    client("stores", "remove", store, known)
    left = client.entries("stores", "files", store)
    [gone] = client.entries("stores", "delete", store)

    assert str(batch["id"]).startswith("vsfb_")
    assert (len(inside), known in {one["id"] for one in inside}, len(left)) == (2, True, 1)
    assert (listed["id"], listed["name"], "pets" in table) == (store, "pets", True)
    assert (gone["deleted"], client.entries("stores", "list")) == (True, [])


def test_missing_file_prevents_all_additions_to_store(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("about cats")
    store = client("stores", "create").stdout.strip()

    failed = client("stores", "add", store, "a.txt", "b.txt", code=1)

    assert str(failed.exception) == "b.txt is neither a file here nor the id of an uploaded file; nothing was added"
    assert client.entries("files", "list") == client.entries("stores", "files", store) == []


def test_an_endpoint_is_made_listed_tested_and_deleted(client: Client) -> None:
    [made] = client.entries("webhooks", "create", f"{client.where[1]}/hook", "--event-type", "batch.completed")
    [listed] = client.entries("webhooks", "list")
    refused = client("webhooks", "test", str(made["id"]), code=1)
    deliveries = client.entries("webhooks", "deliveries", str(made["id"]))
    [gone] = client.entries("webhooks", "delete", str(made["id"]))

    assert str(made["signing_secret"]).startswith("whsec_")
    assert (listed["id"], listed["event_types"], "signing_secret" in listed) == (made["id"], ["batch.completed"], False)
    assert "status 40" in refused.stdout
    assert (deliveries, gone["deleted"], client.entries("webhooks", "list")) == ([], True, [])


def test_an_endpoint_subscribes_to_everything_by_default_and_prints_its_secret_once(client: Client) -> None:
    told = client("webhooks", "create", "http://127.0.0.1:9/hook").stdout

    [listed] = client.entries("webhooks", "list")
    assert told.split("\n")[0] == listed["id"]
    assert "signing secret: whsec_" in told
    assert "batch.completed" in str(listed["event_types"])
    assert "whsec_" not in client("webhooks", "list").stdout


@pytest.mark.parametrize("options", [(), ("--no-check",)])
def test_requests_are_submitted_from_standard_input(client: Client, tmp_path: Path, options: tuple[str, ...]) -> None:
    requests = b"".join(map(line, range(3)))

    submitted = client("submit", "-", "--no-wait", "--no-check", "--json", *options, given=requests)

    batch = json.loads(submitted.stdout)
    assert batch["endpoint"] == "/v1/chat/completions"
    assert client.server.get(f"/files/{batch['input_file_id']}/content").content == requests
    assert not list(tmp_path.glob("stdin*"))


def test_jobs_show_their_tokens_and_times_and_that_there_are_more(client: Client) -> None:
    api = client_of(client.web, client.where[3])
    file_id = upload(api)
    ids = [create(api, file_id)["id"] for _ in range(3)]
    services = client.web.state.services
    worker_steps.run(services.db, services.storage, ids[0], 4)

    some, every = client("jobs", "--limit", "2"), client("jobs", "--limit", "3")

    assert "there are more than these 2; --limit shows more" in some.stderr
    assert "there are more" not in every.stderr
    assert every.stdout.split("\n")[0].split() == [
        "job", "kind", "model", "state", "done", "failed", "tokens", "created", "duration",
    ]  # fmt: skip
    [done] = [words for words in map(str.split, every.stdout.splitlines()) if words[0] == ids[0]]
    assert done[6:11] == ["4", "of", "4", "0", "20"]
    assert done[-1] == "s"

"""`nightmill sources` against a web process in which nobody works: what it sends, and what it shows."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from tests.support.web import make_key, running_app, serve


class Client:
    """The command, one store, and a key to it."""

    def __init__(self, url: str, key: str) -> None:
        self.server = httpx2.Client(base_url=f"{url}/v1", headers={"Authorization": f"Bearer {key}"})
        self.where = ["--url", url, "--api-key", key]
        self.store = str(self.server.post("/vector_stores", json={}).json()["id"])

    def __call__(self, command: str, *words: str) -> Result:
        return CliRunner().invoke(app, ["sources", command, self.store, *words, *self.where])

    def listed(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = self.server.get(f"/vector_stores/{self.store}/sources").json()["data"]
        return found


@pytest.fixture
def client(tmp_path: Path, sqlite_url: str) -> Iterator[Client]:
    settings = {
        "source_folders": (str(tmp_path / "docs"),),
        "source_s3": ("s3://bucket",),
        "data_dir": tmp_path / "data",
    }
    with running_app(tmp_path, sqlite_url, **settings) as web, serve(web) as url:
        client = Client(url, make_key(web))
        yield client
        client.server.close()


def test_each_place_becomes_a_source_of_its_type(client: Client, tmp_path: Path) -> None:
    added = [
        client("add", "https://192.0.43.8/a", "https://192.0.43.8/b"),
        client("add", str(tmp_path / "docs"), "--glob", "*.md", "--every", "0 3 * * *", "--timezone", "Europe/Zurich"),
        client("add", "s3://bucket/docs"),
    ]

    assert [one.exit_code for one in added] == [0, 0, 0], [one.output for one in added]
    s3, folder, pages = client.listed()
    assert [one["id"] for one in (pages, folder, s3)] == [one.output.strip() for one in added]
    assert (pages["urls"], s3["prefix"]) == (["https://192.0.43.8/a", "https://192.0.43.8/b"], "s3://bucket/docs/")
    assert (folder["glob"], folder["cron"], folder["timezone"]) == ("*.md", "0 3 * * *", "Europe/Zurich")


def test_sources_are_shown_synced_and_removed(client: Client) -> None:
    source = client("add", "https://192.0.43.8/a").output.strip()

    shown, told = client("list").output, [json.loads(client("list", "--json").output)]
    synced = client("sync", source).output
    gone = client("remove", source)

    assert (source in shown, "https://192.0.43.8/a" in shown) == (True, True)
    assert [one["id"] for one in told] == [source]
    assert str(told[0]["file_batch_id"]) in synced
    assert gone.exit_code == 0
    assert client.listed() == []


def test_disallowed_source_folder_error_names_setting(client: Client) -> None:
    with pytest.raises(Exception, match="NIGHTMILL_SOURCE_FOLDERS"):
        CliRunner().invoke(app, ["sources", "add", client.store, "/etc", *client.where], catch_exceptions=False)

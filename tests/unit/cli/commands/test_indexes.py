"""`nightmill indexes` against a web process: what it sends, what it shows. Where a worker is asked, it is played."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import update
from typer.testing import CliRunner, Result

from cli.errors import CliError
from cli.main import app
from jobs.retrieval.tables import VectorStore, VectorStoreFile
from tests.support import worker_steps
from tests.support.system import eventually
from tests.support.web import make_key, running_app, serve
from tests.unit.api.retrieval.test_vector_store_indexes import CUT, MODELS, FakeWorkers
from tests.unit.api.retrieval.test_vector_stores import MODEL


class Client:
    """The command, one store with two files that can be found, and a key to it."""

    def __init__(self, web: FastAPI, url: str) -> None:
        key = make_key(web)
        self.db = web.state.services.db
        self.server = httpx2.Client(base_url=f"{url}/v1", headers={"Authorization": f"Bearer {key}"})
        self.where = ["--url", url, "--api-key", key]
        self.files = [self._upload(n) for n in range(2)]
        self.store = str(self.server.post("/vector_stores", json={"file_ids": self.files}).json()["id"])
        self.found_all()

    def _upload(self, n: int) -> str:
        given: Any = {"file": ("a.txt", f"text {n}"), "purpose": (None, "assistants")}
        return str(self.server.post("/files", files=given).json()["id"])

    def found_all(self) -> None:
        """As if the workers were done with every file of every index."""
        with self.db.write() as session:
            session.execute(update(VectorStoreFile).values(status="completed", document="vsd_x"))

    def replaced(self, index: str, at: float) -> None:
        with self.db.write() as session:
            session.execute(update(VectorStore).where(VectorStore.id == index).values(replaced_at=at))

    def __call__(self, command: str, *words: str) -> Result:
        return CliRunner().invoke(app, ["indexes", command, self.store, *words, *self.where])

    def indexes(self) -> dict[str, dict[str, Any]]:
        found = self.server.get(f"/vector_stores/{self.store}/indexes").json()["data"]
        return {one["id"]: one for one in found}

    def made(self, *words: str) -> str:
        name = self("create", *words).stdout.strip()
        self.found_all()
        return name


@pytest.fixture
def web(tmp_path: Path, sqlite_url: str) -> Iterator[FastAPI]:
    models = tmp_path / "models.yaml"
    models.write_text(MODELS)
    with running_app(tmp_path, sqlite_url, models_file=str(models), embedding_model=MODEL) as web:
        yield web


@pytest.fixture
def client(web: FastAPI) -> Iterator[Client]:
    with serve(web) as url:
        client = Client(web, url)
        yield client
        client.server.close()


def trouble(done: Result) -> str:
    assert isinstance(done.exception, CliError), done.exception
    return str(done.exception)


def test_index_is_created_with_requested_options_and_listed(client: Client) -> None:
    cut = client("create", "--chunking", json.dumps(CUT)).stdout.strip()
    other = client("create", "--model", "second", "--dimensions", "64", "--chunking", "auto").stdout.strip()

    found = client.indexes()
    assert (found[cut]["embedding_model"], found[cut]["chunking_strategy"]) == (MODEL, CUT)
    assert (found[other]["embedding_model"], found[other]["embedding_dimensions"]) == ("second", 64)
    assert found[other]["chunking_strategy"]["type"] == "static"
    assert [json.loads(line)["id"] for line in client("list", "--json").stdout.splitlines()] == [
        other,
        cut,
        client.store,
    ]
    rows = [line.split() for line in client("list").stdout.splitlines()]
    assert [row[:2] for row in rows[1:]] == [[other, "building"], [cut, "building"], [client.store, "active"]]
    assert rows[2][2:] == [MODEL, "-", "sentence", "100/0", "0,", "2", "in", "progress", "2"]


def test_switch_activates_index_and_back_reverts_switch(client: Client) -> None:
    second = client.made("--dimensions", "64")

    switched, shown = client("switch", second), client.indexes()
    undone, restored = client("back"), client.indexes()
    client("back")

    assert f"{second} active" in switched.stdout
    assert (shown[second]["status"], shown[client.store]["status"]) == ("active", "previous")
    assert f"{client.store} active" in undone.stdout
    assert (restored[second]["status"], restored[client.store]["status"]) == ("previous", "active")
    assert client.indexes()[second]["status"] == "active"


def test_back_is_to_the_index_that_was_replaced_last(client: Client) -> None:
    first, second = client.made("--dimensions", "64"), client.made("--dimensions", "32")
    assert "no index to go back to" in trouble(client("back"))
    client("switch", first)
    client("switch", second)

    client.replaced(client.store, 1000.0)
    client.replaced(first, 1000.4)
    said = trouble(client("back"))
    client.replaced(first, 2000.0)
    done = client("back")

    assert all(name in said for name in (client.store, first))
    assert done.exit_code == 0
    assert client.indexes()[first]["status"] == "active"


def test_switch_with_missing_files_requires_allow_missing(client: Client) -> None:
    index = client.made("--dimensions", "64")
    with client.db.write() as session:
        gone = VectorStoreFile.store_id == index, VectorStoreFile.id == client.files[0]
        session.execute(update(VectorStoreFile).where(*gone).values(document=None, status="failed"))

    refused = trouble(client("switch", index))
    switched = client("switch", index, "--allow-missing")

    assert "lacks 1 of the store's files" in refused
    assert f"{index} active" in switched.stdout


def test_sync_reports_missing_files_and_syncing_job(client: Client) -> None:
    index = client.made("--dimensions", "64")
    whole = client("sync", index, "--wait")
    with client.db.write() as session:
        session.execute(update(VectorStoreFile).where(VectorStoreFile.store_id == index).values(document=None))

    busy = client("sync", index)

    assert (whole.exit_code, whole.stdout) == (0, f"{index} ready, lacks no files\n")
    shown = client.indexes()[index]
    assert busy.stdout == f"{index} building, lacks 2 files; nightmill watch {shown['job_id']} follows it\n"


def test_wait_option_reports_build_progress_and_failed_files(web: FastAPI, client: Client) -> None:
    def work(index: dict[str, Any], failed: int) -> None:
        files = VectorStoreFile.store_id == index["id"]
        with client.db.write() as session:
            session.execute(update(VectorStoreFile).where(files).values(status="completed", document="vsd_x"))
            gone = VectorStoreFile.id.in_(client.files[:failed])
            session.execute(update(VectorStoreFile).where(files, gone).values(status="failed", document=None))
        worker_steps.run(client.db, web.state.services.storage, index["job_id"], 2, failed=failed)

    def built(failed: int, *words: str) -> Result:
        with ThreadPoolExecutor(1) as threads:
            done = threads.submit(client, "create", *words, "--wait")
            eventually(lambda: any(one["status"] == "building" for one in client.indexes().values()), 10, "it is begun")
            work(next(one for one in client.indexes().values() if one["status"] == "building"), failed)
            return done.result()

    whole, broken = built(0, "--dimensions", "64"), built(1, "--dimensions", "32")

    assert whole.exit_code == 0, whole.output
    name = whole.stdout.strip()
    assert "succeeded: 2 completed, 0 failed of 2" in whole.stderr
    assert whole.stderr.endswith(f"{name} ready\n")
    assert "lacks 1 file; `nightmill explain" in trouble(broken)


def test_wait_option_follows_every_job_that_fills_index(web: FastAPI, client: Client) -> None:
    index = client.made("--dimensions", "64")
    built = client.indexes()[index]["job_id"]
    files = VectorStoreFile.store_id == index
    with client.db.write() as session:
        session.execute(update(VectorStoreFile).where(files).values(document=None))

    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(client, "sync", index, "--wait")
        eventually(lambda: client.indexes()[index]["job_id"] != built, 10, "it is begun")
        with client.db.write() as session:
            session.execute(update(VectorStoreFile).where(files).values(job_id=built))  # another job brings them in
        worker_steps.run(client.db, web.state.services.storage, client.indexes()[index]["job_id"], 2)
        early = wait([done], timeout=2.0).done
        client.found_all()
        result = done.result(30)
    assert not early

    assert result.exit_code == 0, result.output
    assert result.stderr.endswith(f"{index} ready\n")


def test_both_indexes_are_compared_in_a_table(web: FastAPI, client: Client, tmp_path: Path) -> None:
    second = client.made("--model", "second")
    workers = FakeWorkers(web)
    names = [file.removeprefix("file-") for file in client.files]
    workers.found = {client.store: names, second: names[::-1]}
    file = tmp_path / "queries"
    file.write_text(f"one\n\n{json.dumps({'query': 'two', 'relevant': [client.files[0]]})}\n")

    told = client("compare", second, "zero", "--file", str(file), "--results", "5")
    report = json.loads(client("compare", second, "zero", "--file", str(file), "--json").stdout)

    assert [search.queries for search in workers.asked[:6:2]] == [("zero",), ("one",), ("two",)]
    assert workers.asked[0].limit == 25
    assert [one["query"] for one in report["data"]] == ["zero", "one", "two"]
    head, active, candidate, alike = (line.split() for line in told.stdout.splitlines())
    assert head[5:8] == ["recall@5", "nDCG@5", "MRR@5"]
    assert active[:3] + active[-4:-1] == [client.store, "active", MODEL, "1.0000", "1.0000", "1.0000"]
    assert candidate[:3] + candidate[-4:-1] == [second, "ready", "second", "1.0000", "0.6309", "0.5000"]
    assert " ".join(alike) == "overlap 1.0000, rank correlation -1.0000; 3 queries, 1 of them judged"


def test_impossible_comparison_is_reported_in_single_line(client: Client, tmp_path: Path) -> None:
    second = client.made("--model", "second")
    broken = tmp_path / "broken"
    broken.write_text("one\n{two\n")

    assert "there is no query" in trouble(client("compare", second))
    assert trouble(client("compare", second, "--file", str(broken))) == f"{broken}, line 2 is not valid JSON"
    assert "is the one in use" in trouble(client("compare", client.store, "one"))
    assert "No index found" in trouble(client("compare", "vsi_none", "one"))


def test_invalid_create_is_reported_in_single_line(client: Client) -> None:
    assert "is required" in trouble(client("create"))
    assert "(embedding_model)" in trouble(client("create", "--model", "nobody"))
    assert "--chunking is not valid JSON" in trouble(client("create", "--chunking", "{"))
    assert "chunking_strategy" in trouble(client("create", "--chunking", "nonsense"))
    assert list(client.indexes()) == [client.store]


def test_an_index_is_removed_unless_it_is_in_use(client: Client) -> None:
    second = client.made("--dimensions", "64")

    done = client("remove", second)

    assert (done.exit_code, done.stdout) == (0, f"{second} removed\n")
    assert list(client.indexes()) == [client.store]
    assert "in use" in trouble(client("remove", client.store))

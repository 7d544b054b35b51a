"""Datasets: versions of rows, made by a worker, and used by fine-tuning, evals and batches by their references."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import select

from jobs.datasets.tables import DatasetFile
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.ledger import kinds, ledger
from jobs.ledger.tables import Job
from tests.support.eval_client import World, evaluating

TICKETS = [
    {"id": n, "user": f"u{n % 7}", "at": f"2026-03-{n % 28 + 1:02d}T08:00:00Z", "text": f"Ticket {n} about a refund."}
    for n in range(60)
]
PARTS = [{"name": "train", "fraction": 0.75}, {"name": "test", "fraction": 0.25}]


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path) as world:
        yield world


class Datasets:
    """A client of datasets, beside the worker of a world."""

    def __init__(self, world: World) -> None:
        self.world, self.client = world, world.client

    def post(self, path: str, **body: Any) -> Any:
        return self.client.post(f"/datasets{path}", body=body, cast_to=object)

    def get(self, path: str) -> Any:
        return self.client.get(f"/datasets{path}", cast_to=object)

    def delete(self, path: str) -> Any:
        return self.client.delete(f"/datasets{path}", cast_to=object)

    def upload(self, rows: list[Any], purpose: Any = "user_data") -> str:
        content = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
        return self.client.files.create(file=("tickets.jsonl", content), purpose=purpose).id

    def add(self, name: str, *sources: Any, **fields: Any) -> Any:
        """Add a version and return it when its job has ended. A list of rows is uploaded first."""
        listed = [
            {"type": "file_id", "id": self.upload(source)} if isinstance(source, list) else source for source in sources
        ]
        made = self.post(f"/{name}/versions", sources=listed, **fields)
        self.world.inline.drain(made["id"])
        return self.get(f"/{name}/versions/{made['version']}")

    def rows(self, split: dict[str, Any]) -> list[Any]:
        content = self.client.files.content(split["file_id"]).read()
        assert hashlib.sha256(content).hexdigest() == split["sha256"]
        assert len(content) == split["bytes"]
        rows = [json.loads(line) for line in content.splitlines()]
        assert len(rows) == split["rows"]
        return rows

    def by_split(self, version: dict[str, Any]) -> dict[str, list[Any]]:
        assert version["status"] == "completed", version
        return {split["name"]: self.rows(split) for split in version["splits"]}


@pytest.fixture
def datasets(world: World) -> Datasets:
    return Datasets(world)


def refusal(call: Any, *args: Any, **kwargs: Any) -> tuple[int, str | None]:
    with pytest.raises(openai.APIStatusError) as caught:
        call(*args, **kwargs)
    return caught.value.status_code, caught.value.code


def test_version_has_each_row_once_and_later_rows_move_none(datasets: Datasets) -> None:
    datasets.post("", name="refunds", split={"type": "random", "parts": PARTS}, seed=7)
    first = datasets.add("refunds", TICKETS[:30], git_commit="0a1b2c3", dvc_hash="d" * 32 + ".dir")
    second = datasets.add("refunds", TICKETS[30:], {"type": "file_id", "id": "dataset:refunds/train"})

    before = datasets.by_split(first)
    assert sorted(row["id"] for rows in before.values() for row in rows) == list(range(30))
    assert min(map(len, before.values())) > 2
    assert (first["rows"], first["duplicates"], first["git_commit"]) == (30, 0, "0a1b2c3")
    whole = b"".join(json.dumps(row).encode() + b"\n" for row in TICKETS[:30])
    assert first["sha256"] == hashlib.sha256(whole).hexdigest()
    after = datasets.by_split(second)
    assert [row for row in after["train"] if row["id"] < 30] == before["train"]
    assert all(row["id"] >= 30 for row in after["test"])
    assert second["sources"][1]["reference"] == "dataset:refunds@1/train"
    assert second["splits"][0]["reference"] == "dataset:refunds@2/train"
    assert datasets.get("/refunds")["latest_version"] == 2
    assert [version["version"] for version in datasets.get("/refunds/versions")["data"]] == [2, 1]
    assert datasets.world.told(second["id"]) == ["dataset.version.succeeded"]


@pytest.mark.parametrize("kind", ["group", "k_fold"])
def test_rows_of_a_group_stay_together(datasets: Datasets, kind: str) -> None:
    split = {"type": kind, "by": "/user"} | ({"folds": 3} if kind == "k_fold" else {"parts": PARTS})
    datasets.post("", name="by-user", split=split)
    splits = datasets.by_split(datasets.add("by-user", TICKETS))

    if kind == "k_fold":
        assert list(splits) == ["fold_0", "fold_1", "fold_2", "train_0", "train_1", "train_2"]
        for n in range(3):
            both = sorted(row["id"] for name in (f"fold_{n}", f"train_{n}") for row in splits[name])
            assert both == list(range(60))
    folds = [{row["user"] for row in rows} for name, rows in splits.items() if not name.startswith("train_")]
    assert sum(map(len, folds)) == len(set().union(*folds)) == 7


def test_temporal_split_has_oldest_rows_first(datasets: Datasets) -> None:
    datasets.post("", name="by-time", split={"type": "temporal", "by": "/at", "parts": PARTS})
    splits = datasets.by_split(datasets.add("by-time", TICKETS))

    assert max(row["at"] for row in splits["train"]) < min(row["at"] for row in splits["test"])
    assert 10 <= len(splits["test"]) <= 18


def test_equal_rows_are_left_out_where_asked(datasets: Datasets) -> None:
    datasets.post("", name="once")
    spelled = [b'{"a": 1, "b": 2}', b'{"b":2,"a":1}', b'{"a": 1, "b": 3}']
    version = datasets.add("once", spelled, deduplicate=True)

    assert (version["rows"], version["duplicates"]) == (2, 1)
    assert datasets.by_split(version) == {"all": [{"a": 1, "b": 2}, {"a": 1, "b": 3}]}
    assert datasets.add("once", spelled)["rows"] == 3


@pytest.mark.parametrize(
    ("rows", "split", "code", "line"),
    [
        ([{"user": "a"}, b"[1]"], None, "invalid_json_line", 2),
        ([b"{", {"user": "a"}], None, "invalid_json_line", 1),
        (
            [{"user": "a"}, {"other": 1}],
            {"type": "group", "by": "/user", "parts": PARTS},
            "missing_required_parameter",
            2,
        ),
        ([{"at": "soon"}], {"type": "temporal", "by": "/at", "parts": PARTS}, "missing_required_parameter", 1),
        ([], None, "empty_file", None),
    ],
)
def test_bad_row_fails_the_version_and_leaves_no_file(
    datasets: Datasets, rows: list[Any], split: Any, code: str, line: int | None
) -> None:
    datasets.post("", name="bad", **({} if split is None else {"split": split}))
    version = datasets.add("bad", rows or [b""])

    assert (version["status"], version["splits"], version["rows"]) == ("failed", [], None)
    assert [(error["code"], error["line"]) for error in version["errors"]["data"]] == [(code, line)]
    assert datasets.get("/bad")["latest_version"] is None
    with datasets.world.inline.db.read() as session:
        assert session.scalars(select(File.id).where(File.purpose == "dataset")).all() == []


def test_splits_are_read_by_batches_evals_and_trainings(datasets: Datasets) -> None:
    client = datasets.client
    line = {"method": "POST", "url": "/v1/chat/completions"}
    body = {"model": "fake-model", "messages": [{"role": "user", "content": "Hello"}]}
    datasets.post("", name="asked")
    version = datasets.add("asked", [{"custom_id": str(n), **line, "body": body} for n in range(3)])

    made = client.batches.create(
        input_file_id="dataset:asked", endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert made.input_file_id == version["splits"][0]["file_id"]
    assert made.to_dict()["dataset"] == "dataset:asked@1/all"
    in_use = refusal(datasets.delete, "/asked/versions/1")
    datasets.world.inline.drain(made.id)
    assert in_use == (409, "dataset_version_in_use")
    assert client.batches.retrieve(made.id).request_counts.completed == 3  # type: ignore[union-attr]
    assert refusal(client.files.delete, made.input_file_id) == (409, "file_in_use")
    datasets.delete("/asked/versions/1")
    assert refusal(client.files.retrieve, made.input_file_id)[0] == 404

    datasets.post("", name="items")
    datasets.add("items", [{"item": {"answer": word}, "sample": {"output_text": word}} for word in ("Lima", "Oslo")])
    criterion = {"type": "string_check", "name": "same", "operation": "eq"}
    criterion |= {"input": "{{ item.answer }}", "reference": "{{ sample.output_text }}"}
    config = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
    evaluation = client.evals.create(data_source_config=config, testing_criteria=[criterion])  # type: ignore[arg-type, list-item]
    source = {"type": "jsonl", "source": {"type": "file_id", "id": "dataset:items@1/all"}}
    run = client.evals.runs.create(evaluation.id, data_source=source)  # type: ignore[arg-type]
    datasets.world.inline.drain(run.id)
    run = client.evals.runs.retrieve(run.id, eval_id=evaluation.id)
    assert (run.result_counts.passed, run.to_dict()["data_source"]["source"]["id"]) == (2, "dataset:items@1/all")  # type: ignore[index]

    datasets.post("", name="graded")
    graded = datasets.add("graded", {"type": "eval_run", "run_id": run.id, "status": "pass"})
    assert [row["item"] for row in datasets.by_split(graded)["all"]] == [{"answer": "Lima"}, {"answer": "Oslo"}]
    assert {row["sample"]["output_text"] for row in datasets.by_split(graded)["all"]} == {"Lima", "Oslo"}


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/responses"])
def test_answers_of_a_batch_become_rows(datasets: Datasets, endpoint: str) -> None:
    client, field = datasets.client, "input" if endpoint == "/v1/responses" else "messages"
    asked = [f"Ticket {n}: !500" if n == 1 else f"Ticket {n}: where is my refund?" for n in range(4)]
    bodies = [{"model": "fake-model", field: [{"role": "user", "content": text}]} for text in asked]
    if field == "input":
        bodies[0]["input"] = asked[0]
    rows = [{"custom_id": f"t{n}", "method": "POST", "url": endpoint, "body": body} for n, body in enumerate(bodies)]
    made = client.batches.create(
        input_file_id=datasets.upload(rows, "batch"),
        endpoint=endpoint,  # type: ignore[arg-type]
        completion_window="24h",
    )
    datasets.post("", name="answered")
    waiting = datasets.post("/answered/versions", sources=[{"type": "batch", "batch_id": made.id}])
    assert waiting["status"] == "queued"
    datasets.world.inline.drain(made.id)
    datasets.world.inline.drain(waiting["id"])

    items = datasets.by_split(datasets.get("/answered/versions/1"))["all"]
    assert [row["item"]["custom_id"] for row in items] == ["t0", "t2", "t3"]
    assert [row["item"]["input"][0]["content"] for row in items] == [asked[0], *asked[2:]]
    assert all(row["sample"]["output_text"] for row in items)
    version = datasets.add("answered", {"type": "batch", "batch_id": made.id, "format": "messages"})
    for row, item in zip(datasets.by_split(version)["all"], items, strict=True):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["messages"][1]["content"] == item["sample"]["output_text"]

    client.files.delete(str(client.batches.retrieve(made.id).output_file_id))
    gone = datasets.add("answered", {"type": "batch", "batch_id": made.id})
    assert [error["code"] for error in gone["errors"]["data"]] == ["batch_output_not_found"]


def test_batch_without_answers_of_a_model_is_no_source(datasets: Datasets) -> None:
    datasets.post("", name="none")
    body = {"model": "fake-model", "input": "Ticket 1"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}
    file_id = datasets.upload([line], "batch")
    made = datasets.client.batches.create(input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h")

    for batch_id, code in ((made.id, "batch_not_found"), ("batch_none", "batch_not_found")):
        sources = [{"type": "batch", "batch_id": batch_id}]
        assert refusal(datasets.post, "/none/versions", sources=sources) == (400, code)


def test_cancelled_version_leaves_no_file_and_its_removal_no_trace(datasets: Datasets) -> None:
    datasets.post("", name="stopped")
    file_id = datasets.upload(TICKETS)
    made = datasets.post("/stopped/versions", sources=[{"type": "file_id", "id": file_id}])
    db = datasets.world.inline.db
    with db.read() as session:
        assert session.scalar(select(kinds.is_read(File.id)).where(File.id == file_id))
    with db.write() as session:
        ledger.cancel(session, made["id"], actor="test")
    datasets.world.inline.drain(made["id"])

    assert datasets.get("/stopped/versions/1")["status"] == "cancelled"
    datasets.delete("/stopped")
    assert refusal(datasets.get, "/stopped") == (404, "dataset_not_found")
    with db.read() as session:
        assert session.scalars(select(DatasetFile.file_id)).all() == []
        assert session.get_one(Job, made["id"]).state == "cancelled"


def test_repeated_planning_makes_the_version_once(datasets: Datasets, monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder that dies before its last transaction leaves files without rows; the next one makes the version."""
    from workers.datasets.version_builder import _VersionBuilder

    record, deaths = _VersionBuilder.record, [OSError("killed")]

    def die_once(self: Any, session: Any) -> None:
        if deaths:
            raise deaths.pop()
        record(self, session)

    monkeypatch.setattr(_VersionBuilder, "record", die_once)
    datasets.post("", name="repeated")
    version = datasets.add("repeated", TICKETS)

    assert len(datasets.by_split(version)["all"]) == 60
    with datasets.world.inline.db.read() as session:
        assert len(session.scalars(select(File.id).where(File.purpose == "dataset")).all()) == 1

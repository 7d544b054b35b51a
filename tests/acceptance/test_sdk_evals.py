"""The SDK's whole `evals` surface, against the real API, dispatcher and workers over a fake engine."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from jobs.db.engine import Database
from tests.support.eval_client import JUDGE, SAME, SCORE, World, echo, evaluating, items, judged
from tests.support.inline_deployment import MODEL
from tests.support.web import keep_completion_in


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path) as world:
        yield world


def test_evals_runs_and_output_items(world: World) -> None:
    evals = world.client.evals
    eval_id = world.eval(SAME, SCORE, metadata={"team": "a"})
    other_id = world.eval(SAME)
    renamed = evals.update(eval_id, name="renamed", metadata={"team": "b"})
    run = world.run(eval_id, items("a", "b") + items("c", right=False))
    cancelled = evals.runs.cancel(world.run(eval_id, items("d")).id, eval_id=eval_id)

    done = world.ended(run)

    assert (renamed.name, renamed.metadata, evals.retrieve(eval_id).name) == ("renamed", {"team": "b"}, "renamed")
    assert [row.id for row in evals.list(limit=1, order="desc", order_by="updated_at")] == [eval_id, other_id]
    assert (done.status, done.object, done.eval_id, done.name) == ("completed", "eval.run", eval_id, "r")
    assert (done.result_counts.total, done.result_counts.passed, done.result_counts.failed) == (3, 2, 1)
    assert done.data_source.type == "completions"
    assert cancelled.status == "canceled"
    assert [row.id for row in evals.runs.list(eval_id, status="completed")] == [run.id]
    assert [row.id for row in evals.runs.list(eval_id, limit=1)] == [run.id, cancelled.id]
    listed = list(evals.runs.output_items.list(run.id, eval_id=eval_id, limit=1, order="desc"))
    assert [item.datasource_item_id for item in listed] == [2, 1, 0]
    item = evals.runs.output_items.retrieve(listed[0].id, eval_id=eval_id, run_id=run.id)
    assert (item.status, item.object, [result.name for result in item.results]) == (
        "fail",
        "eval.run.output_item",
        ["same", "score"],
    )
    assert evals.runs.delete(run.id, eval_id=eval_id).deleted
    assert evals.delete(eval_id).deleted
    with pytest.raises(openai.NotFoundError):
        evals.retrieve(eval_id)


def test_evaluation_that_was_written_for_openai_runs_unchanged(world: World) -> None:
    """Rows in a file, a label and a text to compare, a prompt of two roles, and a model that answers as `responses`."""
    client = world.client
    world.verdicts[:] = [judged("polite")]
    questions = ("Where is my parcel?", "Cancel my order.")
    rows = [{"item": {"mail": text, "reply": echo(text)}} for text in questions]
    data = io.BytesIO("\n".join(map(json.dumps, rows)).encode())
    file = client.files.create(file=("mails.jsonl", data), purpose="evals")
    properties = {"mail": {"type": "string"}, "reply": {"type": "string"}}
    made = client.evals.create(
        name="Replies to customers",
        data_source_config={
            "type": "custom",
            "item_schema": {"type": "object", "properties": properties, "required": ["mail", "reply"]},
            "include_sample_schema": True,
        },
        testing_criteria=[
            {
                "type": "label_model",
                "name": "Tone",
                "model": JUDGE,
                "input": [
                    {"role": "developer", "content": "Name the tone of a reply: polite or curt."},
                    {"role": "user", "content": "Reply: {{ sample.output_text }}"},
                ],
                "labels": ["polite", "curt"],
                "passing_labels": ["polite"],
            },
            {
                "type": "text_similarity",
                "name": "Same words",
                "input": "{{ sample.output_text }}",
                "reference": "{{ item.reply }}",
                "evaluation_metric": "bleu",
                "pass_threshold": 0.1,
            },
        ],
    )

    run = client.evals.runs.create(
        made.id,
        name="first prompt",
        data_source={
            "type": "responses",
            "model": MODEL,
            "input_messages": {
                "type": "template",
                "template": [
                    {"role": "user", "type": "message", "content": {"type": "input_text", "text": "{{ item.mail }}"}},
                ],
            },
            "sampling_params": {"temperature": 1, "top_p": 1, "seed": 42, "max_completion_tokens": 2048},
            "source": {"type": "file_id", "id": file.id},
        },
    )
    done = world.ended(run)

    assert (done.status, done.error, done.result_counts.total) == ("completed", None, 2)
    assert done.report_url.startswith("http")
    assert [result.testing_criteria for result in done.per_testing_criteria_results] == ["Tone", "Same words"]
    assert done.per_testing_criteria_results[0].passed == 2
    assert {usage.run_model_name: usage.invocation_count for usage in done.per_model_usage} == {MODEL: 2, JUDGE: 2}
    items_of_run = list(client.evals.runs.output_items.list(run.id, eval_id=made.id))
    assert [item.datasource_item["mail"] for item in items_of_run] == list(questions)
    assert all(item.sample.output[0].content.startswith("echo ") for item in items_of_run)


def test_stored_logs_are_evaluated_unchanged_and_resampled(world: World) -> None:
    client, source = world.client, {"type": "stored_completions", "metadata": {"use": "chat"}, "limit": 10}
    keep_completion_in(world.inline.db, world.inline.storage, "default", said="Hello?", metadata_={"use": "chat"})
    logs: Any = {"type": "logs", "metadata": {"use": "chat"}}
    greets: Any = {**SAME, "name": "greets", "operation": "ilike", "reference": "hello"}
    eval_id = client.evals.create(name="logs", data_source_config=logs, testing_criteria=[greets]).id
    as_stored: Any = {"type": "completions", "source": source}
    reference = {"type": "item_reference", "item_reference": "item.input"}
    again: Any = {**as_stored, "model": MODEL, "input_messages": reference}

    runs = [client.evals.runs.create(eval_id, data_source=data_source) for data_source in (as_stored, again)]
    stored, sampled = (world.ended(run) for run in runs)

    assert (stored.result_counts.passed, sampled.result_counts.failed) == (1, 1)
    assert (stored.model, stored.data_source.source.metadata, sampled.model) == (None, {"use": "chat"}, MODEL)

"""The pages of pipelines: submitted as YAML with files, drawn as a graph with results, cancelled and resumed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from jobs.db.engine import Database
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Job
from tests.support.console import HOSTILE, Console, Deployment, deployed
from tests.support.eval_client import SAME, SCHEMA, items
from tests.support.inline_deployment import MODEL, chat_line, jsonl
from tests.support.pipeline_requests import batch_step

pytestmark = pytest.mark.verify

TICKETS = ("My parcel is late.", "The lamp is broken.", "I was charged twice.")
YAML = """
name: Weekly answers
metadata: {team: support}
steps:
  - name: answer
    kind: batch
    request:
      input_file_id: {file: tickets.jsonl}
      endpoint: /v1/chat/completions
      completion_window: 24h
  - name: check
    kind: eval_run
    request:
      eval_id: EVAL
      metadata: {answers: "{{answer.output_file_id}}"}
      data_source:
        type: completions
        model: MODEL
        source: {type: file_id, id: {file: items.jsonl}}
        input_messages:
          type: template
          template: [{role: user, content: "{{ item.question }}"}]
  - name: digest
    kind: batch
    after: [check]
    request:
      input_file_id: {file: tickets.jsonl}
      endpoint: /v1/chat/completions
      completion_window: 24h
"""


@pytest.fixture
def deployment(db: Database, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(db, tmp_path) as deployment:
        yield deployment


def ticket_lines() -> bytes:
    return jsonl([chat_line(f"t{n}", f"Answer the ticket: {text}") for n, text in enumerate(TICKETS)])


def jsonl_file(name: str, content: bytes) -> Any:
    return {"name": name, "mimeType": "text/plain", "buffer": content}


def create_eval(deployment: Deployment) -> str:
    config: Any = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
    criteria: Any = [SAME]
    made = deployment.client.evals.create(name="answers", data_source_config=config, testing_criteria=criteria)
    return made.id


def create_pipeline(deployment: Deployment, *steps: dict[str, Any], **fields: Any) -> str:
    made: Any = deployment.client.post("/pipelines", body={"steps": list(steps), **fields}, cast_to=object)
    return str(made["id"])


def upload(deployment: Deployment, content: bytes) -> str:
    return deployment.client.files.create(file=("tickets.jsonl", content), purpose="batch").id


def failing_steps(deployment: Deployment) -> list[dict[str, Any]]:
    """Return steps of which the second one fails, and the third one waits for it."""
    bad = upload(deployment, jsonl([{"custom_id": "t1", "method": "POST", "url": "/v1/embeddings", "body": {}}]))
    good = upload(deployment, ticket_lines())
    return [batch_step("sort", good), batch_step("answer", bad), batch_step("digest", good, after=["sort", "answer"])]


def end(deployment: Deployment, pipeline_id: str) -> Any:
    """Run a pipeline to its end, with the jobs of its steps; return it."""
    deployment.inline.drain(pipeline_id, timeout=60)

    def has_ended() -> bool:
        with deployment.inline.db.read() as session:
            return all(job.state in TERMINAL for job in session.query(Job))

    deployment.inline.until(has_ended, timeout=60)
    return deployment.client.get(f"/pipelines/{pipeline_id}", cast_to=object)


def test_pipeline_is_submitted_with_its_files_and_shows_its_results(console: Console, deployment: Deployment) -> None:
    tab = console.open("/pipelines")
    expect(tab.get_by_role("heading", name="No pipelines yet")).to_be_visible()
    console.inspect("pipelines-empty")
    tab.get_by_role("link", name="New pipeline").first.click()
    start = tab.get_by_role("button", name="Start the pipeline")
    steps = tab.get_by_label("Steps", exact=True)
    steps.fill("steps:\n  - name: [")
    expect(tab.get_by_text("neither YAML nor JSON")).to_be_visible()
    steps.fill(YAML.replace("EVAL", create_eval(deployment)).replace("MODEL", MODEL))
    expect(tab.get_by_text("3 steps: answer, check, digest")).to_be_visible()
    expect(start).to_be_disabled()
    tab.get_by_label("File tickets.jsonl").set_input_files(jsonl_file("tickets.jsonl", ticket_lines()))
    tab.get_by_label("File items.jsonl").set_input_files(jsonl_file("items.jsonl", jsonl(items(*TICKETS))))
    console.inspect("pipeline-new")
    start.click()

    expect(console.heading).to_have_text("Weekly answers")
    expect(tab.get_by_role("list", name="Step 2")).to_contain_text("check")
    [listed] = deployment.client.get("/pipelines", cast_to=object)["data"]  # type: ignore[index]
    done = end(deployment, listed["id"])
    assert done["status"] == "completed", done
    table = tab.get_by_role("table", name="Steps")
    expect(tab.locator(".page-title .state")).to_have_text("completed")
    expect(table.get_by_role("link", name="3 of 3 passed")).to_be_visible()
    answer = done["steps"][0]
    output = deployment.client.batches.retrieve(answer["job_id"]).output_file_id
    expect(table.get_by_role("link", name=str(output))).to_be_visible()
    console.inspect("pipeline")
    console.check_reload()
    table.get_by_role("link", name=answer["job_id"]).click()
    expect(tab.get_by_role("tab", name="Results")).to_be_visible()


def test_failed_pipeline_names_its_error_and_is_resumed(console: Console, deployment: Deployment) -> None:
    pipeline_id = create_pipeline(deployment, *failing_steps(deployment), name="Weekly answers")
    create_pipeline(deployment, batch_step("sort", upload(deployment, ticket_lines())), name=HOSTILE[:255])
    failed = end(deployment, pipeline_id)
    tab = console.open("/pipelines?status=failed")
    listed = tab.get_by_role("table", name="Pipelines")
    expect(listed.locator("tbody tr")).to_have_count(1)
    tab.get_by_label("State").select_option("")
    expect(listed.locator("tbody tr")).to_have_count(2)
    console.inspect("pipelines")
    tab.get_by_role("link", name="Weekly answers").click()

    table = tab.get_by_role("table", name="Steps")
    expect(table.get_by_role("row", name="answer")).to_contain_text(failed["steps"][1]["error"]["message"])
    expect(table.get_by_role("row", name="digest")).to_contain_text("skipped")
    console.inspect("pipeline-failed")
    tab.get_by_role("button", name="Resume").click()
    expect(tab.get_by_role("link", name=pipeline_id)).to_be_visible()
    expect(table.get_by_role("row", name="sort")).to_contain_text("completed")
    [resumed, *_] = deployment.client.get("/pipelines", cast_to=object)["data"]  # type: ignore[index]
    assert resumed["resumed_from"] == pipeline_id
    assert tab.url.endswith(resumed["id"])


def test_pipeline_is_cancelled_after_a_question(console: Console, deployment: Deployment) -> None:
    pipeline_id = create_pipeline(deployment, batch_step("sort", upload(deployment, ticket_lines())))
    tab = console.open(f"/pipelines/{pipeline_id}")
    tab.get_by_role("button", name="Cancel").click()
    tab.get_by_role("button", name="Cancel the pipeline").click()
    expect(tab.locator(".page-title .state")).to_contain_text("cancel")

    assert end(deployment, pipeline_id)["status"] == "cancelled"
    expect(tab.locator(".page-title .state")).to_have_text("cancelled")
    expect(tab.get_by_role("button", name="Resume")).to_be_visible()


def test_refused_pipeline_keeps_its_text_and_sends_its_files_once(console: Console, deployment: Deployment) -> None:
    console.expect_errors("status of 404")
    tab = console.open("/pipelines/new")
    text = YAML.replace("EVAL", "eval_gone").replace("MODEL", MODEL)
    tab.get_by_label("Steps", exact=True).fill(text)
    tab.get_by_label("File tickets.jsonl").set_input_files(jsonl_file("tickets.jsonl", ticket_lines()))
    tab.get_by_label("File items.jsonl").set_input_files(jsonl_file("items.jsonl", jsonl(items(*TICKETS))))
    start = tab.get_by_role("button", name="Start the pipeline")
    start.click()
    expect(tab.get_by_role("alert")).to_contain_text("eval_gone")
    tab.get_by_label("Steps", exact=True).fill(text.replace("eval_gone", create_eval(deployment)))
    start.click()

    expect(console.heading).to_have_text("Weekly answers")
    assert len(deployment.client.files.list().data) == 2

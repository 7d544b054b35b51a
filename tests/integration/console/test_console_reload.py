"""A reload of a page in every state: it shows the same again, and asks before something would be lost."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect

from jobs.clock import now
from jobs.ledger import pauses
from jobs.ledger.pauses import Scope
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from tests.support.console import Console, Deployment, console_of, deployed
from tests.support.console_data import BASE, create_batch, create_tuning
from tests.support.databases import fresh
from tests.support.eval_client import SAME, SCHEMA
from tests.support.inline_deployment import chat_line, jsonl
from tests.support.system import eventually

pytestmark = [pytest.mark.verify, pytest.mark.timeout(600)]

#: The column of the time at which a job came into a state.
TIMES = {
    JobState.QUEUED: "created_at",
    JobState.RUNNING: "in_progress_at",
    JobState.FINISHING: "finalizing_at",
    JobState.EXPIRING: "expiring_at",
    JobState.CANCELLING: "cancelling_at",
    JobState.SUCCEEDED: "completed_at",
    JobState.FAILED: "failed_at",
    JobState.EXPIRED: "expired_at",
    JobState.CANCELLED: "cancelled_at",
}
#: The words of fine-tuning and of evaluation runs for each of these states, and for a pause.
TUNING_WORDS = {
    JobState.QUEUED: "validating files",
    JobState.RUNNING: "queued",
    JobState.FINISHING: "running",
    JobState.CANCELLING: "cancelled",
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
RUN_WORDS = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in progress",
    JobState.FINISHING: "in progress",
    JobState.CANCELLING: "canceled",
    JobState.FAILED: "failed",
    JobState.EXPIRED: "failed",
    JobState.CANCELLED: "canceled",
}


def all_states(states: Iterable[JobState]) -> list[Any]:
    """Return all states as parameters: one for `make verify`, the others for `make soak`."""
    return [pytest.param(state, marks=() if state is JobState.RUNNING else pytest.mark.soak) for state in states]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("reload")
    with fresh("sqlite", folder) as db, deployed(db, folder) as deployment:
        yield deployment


@pytest.fixture
def console(browser: Browser, deployment: Deployment) -> Iterator[Console]:
    with console_of(browser, deployment, operator=True) as console:
        yield console


def set_state(deployment: Deployment, job_id: str, state: JobState) -> None:
    """Put a job into a state, as if it had come there."""
    with deployment.inline.db.write() as session:
        job = session.get_one(Job, job_id)
        job.state = state
        if state is not JobState.QUEUED:
            job.in_progress_at = now()
        setattr(job, TIMES[state], now())
        if state is JobState.FAILED:
            job.errors = [{"code": "broken", "message": "It broke.", "line": None, "param": None}]


def create_run(deployment: Deployment) -> tuple[str, str]:
    """Create an evaluation run that nobody grades; return the ids of its evaluation and of itself."""
    config: Any = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
    evaluation = deployment.client.evals.create(
        name="greetings", data_source_config=config, testing_criteria=[SAME]  # type: ignore[list-item]
    )  # fmt: skip
    content: Any = [{"item": {"question": "q", "answer": "a"}, "sample": {"output_text": "a"}}]
    source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": content}}
    return evaluation.id, deployment.client.evals.runs.create(evaluation.id, name="first", data_source=source).id


@pytest.mark.parametrize("state", all_states(JobState))
def test_batch_in_every_state(console: Console, deployment: Deployment, state: JobState) -> None:
    job_id = create_batch(deployment)
    set_state(deployment, job_id, state)

    tab = console.open(f"/jobs/{job_id}")

    expect(tab.locator(".page-title .state")).to_have_text(state)
    expect(tab.get_by_role("list", name="States of the job")).to_contain_text(state)
    console.check_reload()


@pytest.mark.parametrize("reason", ["job", "model"])
def test_batch_that_waits(console: Console, deployment: Deployment, reason: str) -> None:
    job_id = create_batch(deployment, after=[create_batch(deployment)] if reason == "job" else [])
    with deployment.inline.db.write() as session:
        job = session.get_one(Job, job_id)
        if reason == "model":
            job.state, job.waiting_for, job.in_progress_at = JobState.RUNNING, reason, now()

    tab = console.open(f"/jobs/{job_id}")

    expect(tab.get_by_role("tabpanel").get_by_role("status").first).to_be_visible()
    console.check_reload()


@pytest.mark.parametrize("state", all_states(TUNING_WORDS))
def test_fine_tuning_job_in_every_status(console: Console, deployment: Deployment, state: JobState) -> None:
    job_id = create_tuning(deployment)
    set_state(deployment, job_id, state)

    tab = console.open(f"/fine-tuning/{job_id}")

    expect(tab.locator(".page-title .state")).to_have_text(TUNING_WORDS[state])
    console.check_reload()


def test_paused_fine_tuning_job(console: Console, deployment: Deployment) -> None:
    job_id = create_tuning(deployment)
    with deployment.inline.db.write() as session:
        pauses.pause(session, Scope.JOB, job_id, actor="test")

    tab = console.open(f"/fine-tuning/{job_id}")

    expect(tab.locator(".page-title .state")).to_have_text("paused")
    console.check_reload()


@pytest.mark.parametrize("state", all_states(RUN_WORDS))
def test_evaluation_run_in_every_status(console: Console, deployment: Deployment, state: JobState) -> None:
    eval_id, run_id = create_run(deployment)
    set_state(deployment, run_id, state)

    tab = console.open(f"/evals/{eval_id}/runs/{run_id}")

    expect(tab.locator(".page-title .state")).to_have_text(RUN_WORDS[state])
    console.check_reload()


def choose_requests(tab: Page) -> None:
    tab.get_by_role("tab", name="Requests").click()
    lines = jsonl([chat_line("a", "Hello")])
    tab.locator("input[type=file]").set_input_files(
        {"name": "requests.jsonl", "mimeType": "text/plain", "buffer": lines}
    )
    expect(tab.get_by_role("button", name="Upload and check")).to_be_visible()


def choose_table(tab: Page) -> None:
    tab.get_by_role("tab", name="Table").click()
    tab.locator("input[type=file]").set_input_files(
        {"name": "a.csv", "mimeType": "text/csv", "buffer": b"town\nBern\n"}
    )
    tab.get_by_label("Model", exact=True).select_option(BASE)  # waits for the list of models
    tab.get_by_label("Prompt").fill("Where is {{town}}?")


def fill_tuning(tab: Page) -> None:
    tab.get_by_label("Suffix").click()
    tab.get_by_label("Suffix").fill("support")


def fill_evaluation(tab: Page) -> None:
    tab.get_by_label("Name of the evaluation").click()
    tab.get_by_label("Name of the evaluation").fill("capitals")


def fill_pipeline(tab: Page) -> None:
    tab.get_by_label("Steps", exact=True).click()
    tab.get_by_label("Steps", exact=True).fill("steps: [{name: sort, kind: batch, request: {}}]")


def ask_model(tab: Page) -> None:
    tab.get_by_label("Question").click()
    tab.get_by_label("Question").fill("Where is Bern?")
    tab.keyboard.press("Enter")
    expect(tab.locator(".turn-facts")).to_be_visible()


def begin_upload(tab: Page) -> None:
    tab.route("**/v1/files", lambda route: None if route.request.method == "POST" else route.continue_())
    tab.get_by_label("Purpose of new files").click()
    tab.locator("input[type=file]").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"a"})
    expect(tab.get_by_role("progressbar", name="Upload of a.txt")).to_be_visible()


INPUTS: dict[str, tuple[str, Callable[[Page], None]]] = {
    "new-batch": ("/batches/new", choose_requests),
    "new-batch-table": ("/batches/new", choose_table),
    "new-tuning": ("/fine-tuning/new", fill_tuning),
    "new-eval": ("/evals/new", fill_evaluation),
    "new-pipeline": ("/pipelines/new", fill_pipeline),
    "playground": (f"/playground?model={BASE}", ask_model),
    "upload": ("/files", begin_upload),
}


@pytest.mark.parametrize("name", INPUTS)
def test_browser_asks_before_input_is_lost(console: Console, name: str) -> None:
    console.expect_errors("status of 503")  # nobody serves the model of the playground
    path, fill = INPUTS[name]
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    tab = console.open(path)
    tab.on("dialog", stay)
    console.heading.click()  # browsers ask only on a page that was used
    tab.reload()
    console.wait_until_loaded()
    fill(tab)
    before = console.shown()
    assert asked == []
    tab.evaluate("setTimeout(() => location.reload())")

    eventually(lambda: tab.evaluate("1") and asked == ["beforeunload"], 30, "the browser asks")
    assert console.shown() == before


def test_open_dialog_is_closed_and_has_done_nothing(console: Console, deployment: Deployment) -> None:
    job_id = create_batch(deployment)
    tab = console.open(f"/jobs/{job_id}")
    tab.get_by_role("button", name="Cancel").click()
    expect(tab.get_by_role("dialog", name="Cancel this job?")).to_be_visible()
    tab.reload()

    expect(tab.get_by_role("button", name="Cancel")).to_be_visible()
    expect(tab.get_by_role("dialog")).to_have_count(0)
    assert deployment.inline.job(job_id).state == JobState.QUEUED

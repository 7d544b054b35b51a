"""The pages of jobs in the console: the list with its filters, and a job with its results, which may be hostile."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from playwright.sync_api import Page, expect

from jobs.ledger import ledger
from jobs.ledger.tables import Shard
from jobs.webhooks.tables import Delivery
from tests.support import worker_steps
from tests.support.console import HOSTILE, Console, Deployment
from tests.support.inline_deployment import chat_line, jsonl
from tests.support.web import make_key

pytestmark = pytest.mark.verify

RIGHT_TO_LEFT = "\u202e\u05e9\u05dc\u05d5\u05dd\u202c ![x](http://127.0.0.1:9/x.png)"
HUGE = 10_000_000  # characters on one line


def create(client: OpenAI, *prompts: str, **options: Any) -> str:
    """Create a batch of requests `q0`, `q1` …, and return its id."""
    lines = jsonl([chat_line(f"q{n}", prompt) for n, prompt in enumerate(prompts or ("Hello",))])
    file = client.files.create(file=("a.jsonl", lines), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", extra_body=options
    )
    return made.id


def answered(n: int, text: str, reason: str = "stop") -> bytes:
    """Return the output line of request `n`."""
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    response = {"status_code": 200, "request_id": "r", "body": {"choices": [choice], "usage": usage}}
    return json.dumps({"id": f"b{n}", "custom_id": f"q{n}", "response": response, "error": None}).encode()


def failed(n: int, code: str, message: str) -> bytes:
    """Return the error line of request `n`."""
    error = {"code": code, "message": message}
    return json.dumps({"id": f"b{n}", "custom_id": f"q{n}", "response": None, "error": error}).encode()


def end(deployment: Deployment, job_id: str, answers: list[bytes], errors: list[bytes] | None = None) -> None:
    outcomes = {"stop": len(answers)} | ({"error:engine_error": len(errors)} if errors else {})
    worker_steps.end(deployment.inline.db, deployment.inline.storage, job_id, answers, errors or (), outcomes)


def rows(tab: Page) -> list[str]:
    return tab.get_by_role("table", name="Jobs").locator(".row-link code").all_inner_texts()


def test_empty_job_list_explains_how_to_submit(console: Console) -> None:
    tab = console.open("/jobs")

    expect(tab.get_by_role("heading", name="No jobs yet")).to_be_visible()
    expect(tab.get_by_text("nightmill submit requests.jsonl")).to_be_visible()
    console.inspect("jobs-empty")


def test_list_is_filtered_by_its_address_and_follows_progress(console: Console, deployment: Deployment) -> None:
    first = create(deployment.client, metadata={"team": "search"})
    second = create(deployment.client, *"abcd")
    ended = create(deployment.client)
    worker_steps.plan(deployment.inline.db, second, 4, "m1")
    end(deployment, ended, [answered(0, "x")])

    tab = console.open("/jobs")
    expect(tab.locator(".row-link")).to_have_count(3)
    console.inspect("jobs")
    tab.get_by_label("State").select_option("succeeded")
    expect(tab.locator(".row-link")).to_have_count(1)
    assert rows(tab) == [ended]
    tab.reload()
    expect(tab.locator(".row-link")).to_have_count(1)
    assert tab.url.endswith("/jobs?state=succeeded")

    console.open("/jobs?metadata=team%3Dsearch")
    expect(tab.locator(".row-link")).to_have_count(1)
    assert rows(tab) == [first]
    tab.get_by_label("Metadata").fill("team=other")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("heading", name="No job matches")).to_be_visible()
    tab.get_by_role("button", name="Clear the filters").click()
    expect(tab.get_by_label("Metadata")).to_have_value("")

    tab.get_by_label("Model").fill("m1")
    tab.keyboard.press("Enter")
    expect(tab.locator(".row-link")).to_have_count(1)
    claim = worker_steps.take(deployment.inline.db, second)
    worker_steps.answer(deployment.inline.db, deployment.inline.storage, claim, range(3))
    expect(tab.get_by_role("progressbar")).to_have_attribute("aria-valuetext", "3 of 4")

    tab.locator(".row-link").focus()
    tab.keyboard.press("Enter")
    expect(tab).to_have_url(f"{deployment.url}/console/jobs/{second}")


def test_selected_jobs_are_cancelled_and_retried_together(console: Console, deployment: Deployment) -> None:
    live = [create(deployment.client) for _ in range(2)]
    broken = create(deployment.client, "a", "b")
    end(deployment, broken, [answered(0, "x")], [failed(1, "engine_error", "It broke.")])
    tab = console.open("/jobs")
    expect(tab.locator(".row-link")).to_have_count(3)

    tab.get_by_label("Select all").check()
    expect(tab.get_by_text("3 jobs selected")).to_be_visible()
    console.inspect("jobs-selected")
    tab.get_by_role("button", name="Cancel 2 jobs").click()
    tab.get_by_role("button", name="Cancel them").click()
    expect(tab.get_by_text("jobs selected")).to_have_count(0)
    tab.get_by_label(f"Select {broken}").check()
    tab.get_by_role("button", name="Retry 1 job").click()
    tab.get_by_role("button", name="Retry them").click()

    expect(tab.locator(".row-link")).to_have_count(4)
    assert {deployment.inline.job(job_id).state for job_id in live} <= {"cancelling", "cancelled"}
    jobs = deployment.client.get("/jobs", cast_to=object)["data"]  # type: ignore[index]
    assert [job["retry_of"] for job in jobs if job["id"] not in [*live, broken]] == [broken]


def test_metadata_with_a_comma_is_selected(console: Console, deployment: Deployment) -> None:
    job_id = create(deployment.client, metadata={"team": "search, Zurich"})
    create(deployment.client, metadata={"team": "search"})
    tab = console.open("/jobs")

    tab.get_by_label("Metadata").fill('team="search, Zurich"')
    tab.get_by_label("Metadata").press("Enter")

    expect(tab.get_by_role("table", name="Jobs").locator("tbody tr")).to_have_count(1)
    tab.reload()
    expect(tab.get_by_role("table", name="Jobs").locator("tbody tr")).to_have_count(1)
    expect(tab.get_by_role("link", name=job_id)).to_be_visible()


def test_ids_in_the_details_of_a_job_are_links(console: Console, deployment: Deployment) -> None:
    job_id = create(deployment.client)
    file_id = deployment.client.batches.retrieve(job_id).input_file_id
    tab = console.open(f"/jobs/{job_id}")

    tab.get_by_role("link", name=file_id).click()
    tab.get_by_role("link", name=job_id).click()

    expect(tab).to_have_url(f"{deployment.url}/console/jobs/{job_id}")


def test_live_job_shows_where_it_is_and_can_be_cancelled(console: Console, deployment: Deployment) -> None:
    db, storage = deployment.inline.db, deployment.inline.storage
    job_id = create(deployment.client, *"abcdef", metadata={"team": HOSTILE})
    tab = console.open(f"/jobs/{job_id}")
    expect(tab.get_by_role("list", name="States of the job")).to_contain_text("queued")
    worker_steps.plan(db, job_id, 6, "m1")
    worker_steps.answer(db, storage, worker_steps.take(db, job_id), range(4))
    with db.write() as session:
        session.add(Shard(job_id=job_id, n=1, first_line=6, lines=6, offset=6, length=6))
        ledger.wait_for(session, job_id, "model")

    overview = tab.get_by_role("tabpanel", name="Overview")
    expect(overview.get_by_role("status")).to_contain_text("Waiting: no live worker serves m1.")
    expect(tab.get_by_role("img", name="2 shards: 0 done, 1 running")).to_be_visible()
    expect(tab.get_by_role("progressbar", name="Progress of the job")).to_have_attribute("aria-valuetext", "4 of 6")
    expect(tab.get_by_text("lines/s")).to_be_visible()
    expect(tab.get_by_text(HOSTILE)).to_be_visible()
    console.inspect("job-running")
    tab.get_by_role("tab", name="Results").click()
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download finished lines").click()
    assert len(Path(download.value.path()).read_bytes().splitlines()) == 4
    tab.get_by_role("tab", name="Events").click()
    expect(tab.get_by_role("table", name="Events")).to_contain_text("job.running")
    tab.get_by_role("tab", name="Dependencies").click()
    expect(tab.get_by_text("This job waits for no other")).to_be_visible()
    tab.reload()
    expect(tab.get_by_text("This job waits for no other")).to_be_visible()

    tab.get_by_role("button", name="Cancel").click()
    tab.get_by_role("button", name="Keep it").click()
    assert deployment.inline.job(job_id).state == "running"
    tab.get_by_role("button", name="Cancel").click()
    tab.get_by_role("button", name="Cancel the job").click()
    expect(tab.get_by_text("cancelling").first).to_be_visible()
    assert deployment.inline.job(job_id).state == "cancelling"


def test_hostile_results_are_shown_as_text_with_their_requests(console: Console, deployment: Deployment) -> None:
    job_id = create(deployment.client, HOSTILE, "right", "huge", *(f"n{n}" for n in range(25)))
    answers = [answered(0, HOSTILE), answered(1, RIGHT_TO_LEFT), answered(2, "x" * HUGE)]
    answers += [answered(n, f"answer {n}") for n in range(3, 27)]
    end(deployment, job_id, answers, [failed(27, "engine_error", HOSTILE)])

    tab = console.open(f"/jobs/{job_id}")
    expect(tab.get_by_text("1 line", exact=True)).to_be_visible()
    expect(tab.get_by_text(HOSTILE).first).to_be_visible()
    console.inspect("job-ended")
    tab.get_by_role("link", name="Show these lines").click()
    expect(tab.get_by_role("region", name="Error engine_error")).to_contain_text(HOSTILE)
    expect(tab.get_by_role("region", name="Request")).to_have_count(1)

    tab.get_by_label("Error code").select_option("")
    expect(tab.get_by_role("region", name="Answer").nth(1)).to_contain_text(RIGHT_TO_LEFT)
    expect(tab.get_by_role("region", name="Answer").first).to_contain_text(HOSTILE)
    expect(tab.get_by_role("region", name="Answer").nth(2)).to_contain_text("9,998,800 more characters")
    tab.get_by_role("button", name="Show more").click()
    expect(tab.get_by_role("region", name="Answer").nth(2)).to_contain_text("9,950,000 more characters")
    assert len(tab.inner_text("main")) < 100_000, "a page of megabytes stands still"
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Save this line").nth(2).click()
    assert len(json.loads(Path(download.value.path()).read_text())["answer"]) == HUGE

    tab.get_by_role("button", name="Next page").click()
    expect(tab.get_by_text("answer 3", exact=True)).to_be_visible()
    tab.get_by_role("button", name="Next page").click()
    expect(tab.get_by_text("answer 26")).to_be_visible()
    tab.reload()
    expect(tab.get_by_text("answer 26")).to_be_visible()
    tab.get_by_role("button", name="Back", exact=True).click()
    expect(tab.get_by_text("answer 3", exact=True)).to_be_visible()
    tab.get_by_role("button", name="First page").click()
    expect(tab.get_by_text(RIGHT_TO_LEFT)).to_be_visible()
    tab.get_by_label("custom_id").fill("q9")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("region", name="Answer")).to_have_count(1)
    console.inspect("job-results")
    for name, ending in (("CSV", "csv"), ("Parquet", "parquet"), ("JSON Lines", "jsonl")):
        with tab.expect_download() as download:
            tab.get_by_role("button", name=name).click()
        assert download.value.suggested_filename == f"{job_id}.{ending}"
        assert Path(download.value.path()).stat().st_size > 0
    tab.get_by_role("combobox", name="Result").select_option("failed")
    expect(tab.get_by_text("No result matches.")).to_be_visible()


def test_ended_job_is_retried_once_by_a_double_click(console: Console, deployment: Deployment) -> None:
    job_id = create(deployment.client, "a", "b")
    end(deployment, job_id, [answered(0, "x")], [failed(1, "engine_error", "It broke.")])

    tab = console.open(f"/jobs/{job_id}")
    tab.get_by_role("button", name="Retry").click()
    dialog = tab.get_by_role("dialog")
    dialog.get_by_label("Fields to replace").fill("[1]")
    expect(dialog.get_by_text("This is no JSON object.")).to_be_visible()
    dialog.get_by_label("Fields to replace").fill('{"temperature": 0}')
    console.inspect("job-retry")
    dialog.get_by_role("button", name="Retry").dblclick()

    expect(tab).not_to_have_url(f"{deployment.url}/console/jobs/{job_id}")
    expect(tab.get_by_role("link", name=job_id)).to_be_visible()
    jobs = deployment.client.get("/jobs", cast_to=object)["data"]  # type: ignore[index]
    assert [(job["retry_of"], job["overrides"]) for job in jobs if job["id"] != job_id] == [(job_id, None)]


def test_retry_lists_permanent_errors(console: Console, deployment: Deployment) -> None:
    job_id = create(deployment.client, "a", "b")
    body = {"error": {"code": "context_length_exceeded", "message": "Too long."}}
    refused = {"id": "b1", "custom_id": "q1", "response": {"status_code": 400, "body": body}, "error": None}
    outcomes = {"stop": 1, "error:context_length_exceeded": 1}
    lines = [answered(0, "x")], [json.dumps(refused).encode()]
    worker_steps.end(deployment.inline.db, deployment.inline.storage, job_id, *lines, outcomes)

    tab = console.open(f"/jobs/{job_id}")
    tab.get_by_role("button", name="Retry").click()

    expect(tab.get_by_role("list", name="Permanent errors")).to_have_text("context_length_exceeded (1 line)")


def test_deliveries_of_job_webhook_can_be_resent(console: Console, deployment: Deployment) -> None:
    job_id = create(deployment.client, "a", webhook={"url": "https://192.0.43.8/once"})
    end(deployment, job_id, [answered(0, "x")])
    with deployment.inline.db.write() as session:
        for delivery in session.query(Delivery):
            delivery.state, delivery.error = "failed", "status 500"

    tab = console.open(f"/jobs/{job_id}?tab=webhook")
    expect(tab.get_by_text("https://192.0.43.8/once")).to_be_visible()
    expect(tab.locator("main").get_by_text("failed")).to_be_visible()
    tab.get_by_role("button", name="Send again").click()

    expect(tab.locator("main").get_by_text("pending")).to_be_visible()


def test_fifty_thousand_errors_are_shown_a_hundred_at_a_time(console: Console, deployment: Deployment) -> None:
    job_id = create(deployment.client)
    errors = [{"code": "invalid_json", "line": n, "message": HOSTILE, "param": None} for n in range(1, 50_001)]
    worker_steps.fail(deployment.inline.db, job_id, errors)

    tab = console.open(f"/jobs/{job_id}")
    expect(tab.get_by_role("heading", name="Errors of the input (50,000)")).to_be_visible()
    lines = tab.get_by_role("table", name="Errors of the input").locator("tbody tr")
    expect(lines).to_have_count(100)
    tab.get_by_role("button", name="Show more").click()
    expect(lines).to_have_count(200)
    console.inspect("job-errors")


def test_job_graph_links_dependencies(console: Console, deployment: Deployment) -> None:
    first = create(deployment.client)
    second = create(deployment.client, after=[first])

    tab = console.open(f"/jobs/{second}?tab=graph")
    expect(tab.get_by_role("list", name="Step 2")).to_contain_text(second)
    console.inspect("job-graph")
    tab.get_by_role("link", name=first).click()
    expect(tab.get_by_role("list", name="Step 1").locator("[aria-current]")).to_contain_text(first)


def test_link_of_another_project_is_refused_in_words(console: Console, deployment: Deployment) -> None:
    console.expect_errors("status of 404")
    with OpenAI(base_url=f"{deployment.url}/v1", api_key=make_key(deployment.app, "another")) as stranger:
        job_id = create(stranger)

    tab = console.open(f"/jobs/{job_id}")

    expect(tab.get_by_role("alert")).to_contain_text(f"No job found with id '{job_id}'.")
    expect(tab.get_by_role("alert")).to_contain_text("belong to another project")
    console.inspect("job-foreign")

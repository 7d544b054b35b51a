"""The overview, and what every page shares: one feed for all tabs, a server that goes and comes back, the palette."""

import pytest
from playwright.sync_api import Page, Request, Route, expect

from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from tests.support.console import Console, Deployment, store_keys
from tests.support.inline_deployment import MODEL, chat_line, jsonl

pytestmark = pytest.mark.verify


def run_batch(deployment: Deployment, lines: int = 5) -> str:
    """Run a batch to its end, so that its last event is in the feed; return its id."""
    job_id = deployment.inline.submit(
        jsonl([chat_line(f"line-{n}", f"Question {n}") for n in range(lines)]), model=MODEL
    )
    deployment.inline.drain(job_id)
    deployment.inline.dispatcher.tick()
    return job_id


def test_empty_overview_explains_first_step(console: Console) -> None:
    tab = console.open()

    expect(tab.get_by_role("heading", name="No jobs yet")).to_be_visible()
    expect(tab.get_by_text("nightmill submit questions.jsonl")).to_be_visible()
    expect(tab.get_by_role("table", name="Models").get_by_text("smollm2-135m-instruct")).to_be_visible()


def test_overview_shows_throughput_waiting_and_latest_jobs(console: Console, deployment: Deployment) -> None:
    done = run_batch(deployment)
    waiting = deployment.inline.submit(jsonl([chat_line("only", "Later")]), model="nobody-serves-this")
    tab = console.open()

    expect(tab.get_by_text("Lines in 24 hours").locator("..")).to_contain_text("5")
    expect(tab.get_by_role("img", name="Lines, 30 minutes each: answered")).to_be_visible()
    tab.get_by_label("Span").select_option("7 days")
    expect(tab.get_by_text("Lines in 7 days").locator("..")).to_contain_text("5")
    expect(tab.get_by_role("img", name="Lines, 3 hours each: answered")).to_be_visible()
    tab.get_by_label("Span").select_option("1 hour")
    expect(tab.get_by_text("Lines in 1 hour").locator("..")).to_contain_text("5")
    expect(tab.get_by_role("img", name="Lines, 1 minute each: answered")).to_be_visible()
    tab.get_by_label("Lines of").select_option("all-minilm-l6-v2")
    expect(tab.get_by_text("Lines in 1 hour").locator("..")).to_contain_text("0")
    expect(tab).to_have_url(f"{deployment.url}/console/?span=hour&model=all-minilm-l6-v2")
    tab = console.open()
    expect(tab.get_by_role("table", name="Waiting")).to_contain_text(waiting)
    expect(tab.get_by_role("table", name="Latest jobs").get_by_role("link", name=done)).to_be_visible()
    expect(tab.get_by_text("Nothing runs.")).to_be_visible()
    console.inspect("overview")


def test_job_that_has_begun_and_cannot_go_on_waits(console: Console, deployment: Deployment) -> None:
    job_id = deployment.inline.submit(jsonl([chat_line("only", "Later")]), model=MODEL)
    with deployment.inline.db.write() as session:
        job = session.get_one(Job, job_id)
        job.state, job.waiting_for, job.in_progress_at = JobState.RUNNING, "pause", job.created_at
    tab = console.open()

    expect(tab.get_by_role("table", name="Waiting")).to_contain_text("Waiting: its queue, model or project is paused.")
    expect(tab.get_by_text("Nothing runs.")).to_be_visible()
    tab.get_by_role("link", name="Show the pauses").click()
    expect(console.heading).to_have_text("Workers")


def test_operator_sees_the_workers_too(operator: Console, deployment: Deployment) -> None:
    tab = operator.open()

    expect(tab.get_by_role("table", name="Workers").get_by_role("row")).not_to_have_count(1)


def test_two_tabs_share_single_stream_and_show_new_job(console: Console, deployment: Deployment) -> None:
    streams: list[Request] = []

    def note(request: Request) -> None:
        if "text/event-stream" in request.headers.get("accept", ""):
            streams.append(request)

    console.tab.context.on("request", note)
    first = console.open()
    second: Page = console.tab.context.new_page()
    store_keys(second, deployment.url, {"nightmill.key": deployment.key})
    second.goto(f"{deployment.url}/console/")
    expect(second.get_by_role("heading", name="No jobs yet")).to_be_visible()

    job_id = run_batch(deployment)

    for tab in (first, second):
        expect(tab.get_by_role("link", name=job_id).first).to_be_visible()
    assert len(streams) == 1
    second.close()


def test_outage_is_announced_and_page_refreshes_after_recovery(console: Console, deployment: Deployment) -> None:
    console.expect_errors("net::ERR_FAILED", "net::ERR_ABORTED")
    tab = console.open()
    expect(tab.get_by_role("heading", name="No jobs yet")).to_be_visible()

    def abort(route: Route) -> None:
        route.abort()

    tab.route("**/v1/**", abort)
    tab.reload()
    expect(tab.get_by_text("The server cannot be reached. What you see may be old.")).to_be_visible()
    console.screenshot("away")
    job_id = run_batch(deployment)
    tab.unroute("**/v1/**")

    expect(tab.get_by_text("The server cannot be reached. What you see may be old.")).to_have_count(0)
    expect(tab.get_by_role("link", name=job_id).first).to_be_visible()


def test_palette_opens_a_page_by_keyboard(console: Console) -> None:
    tab = console.open("/no/such/page")
    search = tab.get_by_role("combobox", name="Page, or id of a job")
    tab.keyboard.press("Control+k")
    expect(search).to_be_focused()
    console.inspect("palette")
    tab.keyboard.type("overv")
    tab.keyboard.press("Enter")

    expect(console.heading).to_have_text("Overview")
    expect(search).to_have_count(0)

"""The console while the server is away, while answers are lost, in two tabs, and with a key that is revoked."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, Route, expect

from jobs.security.keys import create_key, revoke_key
from tests.support import worker_steps
from tests.support.browsers import PATIENCE
from tests.support.console import Console, Deployment, console_of, store_keys
from tests.support.console_data import create_batch
from tests.support.inline_deployment import chat_line, jsonl
from tests.support.proxy import Proxy
from tests.support.system import eventually

pytestmark = pytest.mark.verify

AWAY = "The server cannot be reached. What you see may be old."
LARGE = 33_000_000  # bytes: three parts


@pytest.fixture
def proxy(deployment: Deployment) -> Iterator[Proxy]:
    """Yield the way to the server, which can lose every connection."""
    with Proxy(urlsplit(deployment.url).port or 0) as proxy:
        yield proxy


@pytest.fixture
def console(browser: Browser, deployment: Deployment, proxy: Proxy) -> Iterator[Console]:
    with console_of(browser, replace(deployment, url=f"http://127.0.0.1:{proxy.port}")) as console:
        console.expect_errors("net::ERR_")
        yield console


def test_running_job_page_survives_outage_and_resumes(console: Console, deployment: Deployment, proxy: Proxy) -> None:
    job_id = create_batch(deployment)
    worker_steps.plan(deployment.inline.db, job_id, 2)
    tab = console.open(f"/jobs/{job_id}")
    expect(tab.locator(".page-title .state")).to_have_text("running")

    proxy.worsen(0.0, 1.0)
    expect(tab.get_by_text(AWAY)).to_be_visible(timeout=4 * PATIENCE)
    expect(tab.locator(".page-title .state")).to_have_text("running")
    console.inspect("job-away")
    claim = worker_steps.take(deployment.inline.db, job_id)
    worker_steps.answer(deployment.inline.db, deployment.inline.storage, claim, range(1))
    proxy.mend()

    expect(tab.get_by_text(AWAY)).to_have_count(0, timeout=4 * PATIENCE)
    expect(tab.get_by_role("progressbar", name="Progress of the job")).to_have_attribute("aria-valuetext", "1 of 2")


def test_upload_resumes_after_outage(console: Console, deployment: Deployment, proxy: Proxy, tmp_path: Path) -> None:
    large = tmp_path / "large.jsonl"
    large.write_bytes(b'{"a": 1}\n' * (LARGE // 9))
    tab = console.open("/files")
    sent: list[str] = []

    def lose(route: Route) -> None:
        sent.append(route.request.url)
        if len(sent) == 2:
            proxy.worsen(0.0, 1.0)
        route.continue_()

    tab.route("**/parts", lose)
    tab.locator("input[type=file]").set_input_files(large)
    eventually(lambda: tab.evaluate("1") and len(sent) > 3, 60, "parts are sent again")
    expect(tab.get_by_role("progressbar", name="Upload of large.jsonl")).to_be_visible()
    proxy.mend()

    expect(tab.get_by_role("row", name="large.jsonl")).to_be_visible(timeout=4 * PATIENCE)
    [file] = deployment.client.files.list().data
    assert deployment.client.files.content(file.id).read() == large.read_bytes()


def new_schedule(tab: Page, file_id: str) -> None:
    tab.get_by_role("button", name="New schedule").click()
    tab.get_by_label("Input file").fill(file_id)


def new_store(tab: Page, _file_id: str) -> None:
    tab.get_by_role("button", name="New vector store").click()
    tab.get_by_label("Name").fill("handbook")


def new_endpoint(tab: Page, _file_id: str) -> None:
    tab.get_by_role("button", name="New endpoint").click()
    tab.get_by_label("URL").fill("https://192.0.43.8/hook")
    tab.get_by_label("Name").fill("orders")


def new_batch(tab: Page, file_id: str) -> None:
    tab.get_by_label("File", exact=True).select_option(file_id)
    tab.get_by_role("button", name="Check", exact=True).click()
    tab.get_by_label("Metadata").fill("team=search")


FORMS: dict[str, tuple[str, Callable[[Page, str], None], str]] = {
    "schedules": ("/schedules", new_schedule, "Create"),
    "vector_stores": ("/vector-stores", new_store, "Create the vector store"),
    "webhook_endpoints": ("/webhooks", new_endpoint, "Create"),
    "batches": ("/batches/new?source=file", new_batch, "Create the batch"),
}


@pytest.mark.parametrize("resource", FORMS)
def test_form_resubmitted_after_lost_answer_creates_single_object(
    console: Console, deployment: Deployment, resource: str
) -> None:
    path, fill, button = FORMS[resource]
    lines = jsonl([chat_line("a", "Hello")])
    file = deployment.client.files.create(file=("a.jsonl", lines), purpose="batch")
    tab = console.open(path)
    fill(tab, file.id)

    def lose(route: Route) -> None:
        """Have the server do it, and lose its answer."""
        route.fetch()
        route.abort("connectionreset")

    address = re.compile(rf"/v1/{resource}$")
    tab.route(address, lambda route: lose(route) if route.request.method == "POST" else route.continue_())
    create = tab.get_by_role("button", name=button, exact=True)
    create.click()
    expect(tab.get_by_role("alert")).to_contain_text("The server cannot be reached")
    tab.unroute(address)
    create.click()

    expect(create).to_have_count(0)
    rows: Any = deployment.client.get(f"/{resource}", cast_to=object)
    assert len(rows["data"]) == 1


def open_tab(console: Console, key: str, path: str = "/") -> Page:
    """Open another tab of the same browser, signed in with a key."""
    tab = console.tab.context.new_page()
    store_keys(tab, console.deployment.url, {"nightmill.key": key})
    tab.goto(f"{console.deployment.url}/console{path}")
    expect(tab.locator("h1").first).to_be_visible()
    return tab


@pytest.fixture
def streams(console: Console) -> list[str]:
    """Return the keys of the streams that the browser opens."""
    keys: list[str] = []

    def note(request: Request) -> None:
        if "text/event-stream" in request.headers.get("accept", ""):
            keys.append(request.headers["authorization"].removeprefix("Bearer "))

    console.tab.context.on("request", note)
    return keys


def run_batch(deployment: Deployment, project: str = "default") -> str:
    job_id = deployment.inline.submit(jsonl([chat_line("a", "Hello")]), project=project)
    deployment.inline.drain(job_id)
    deployment.inline.dispatcher.tick()
    return job_id


@pytest.mark.parametrize("end", ["close", "sign out"])
def test_other_tab_takes_the_stream_over(
    console: Console, deployment: Deployment, streams: list[str], end: str
) -> None:
    leader = open_tab(console, deployment.key)
    eventually(lambda: leader.evaluate("1") and len(streams) == 1, 30, "the first tab leads")
    tab = console.open()
    if end == "close":
        leader.close()
    else:
        leader.get_by_role("button", name="Sign out").click()
        expect(leader.get_by_label("API key")).to_be_visible()
    eventually(lambda: tab.evaluate("1") and len(streams) == 2, 30, "the second tab leads")

    job_id = run_batch(deployment)

    expect(tab.get_by_role("link", name=job_id).first).to_be_visible()
    expect(tab.get_by_role("button", name="Sign out")).to_be_visible()
    if end == "sign out":
        assert job_id not in leader.content()


def test_tabs_of_two_projects_never_mix(console: Console, deployment: Deployment, streams: list[str]) -> None:
    with deployment.inline.db.write() as session:
        other_key = create_key(session, "another")
    tab, other = console.open(), open_tab(console, other_key)
    eventually(lambda: tab.evaluate("1") and sorted(streams) == sorted([deployment.key, other_key]), 30, "both lead")

    own_job, other_job = run_batch(deployment), run_batch(deployment, "another")

    expect(tab.get_by_role("link", name=own_job).first).to_be_visible()
    expect(other.get_by_role("link", name=other_job).first).to_be_visible()
    assert other_job not in tab.content()
    assert own_job not in other.content()


@pytest.mark.parametrize("watch", ["polls", "streams", "submits"])
def test_key_that_is_revoked_while_a_page_is_open_leads_to_the_gate(
    console: Console, deployment: Deployment, watch: str
) -> None:
    console.expect_errors("status of 401")
    path = {"polls": f"/jobs/{create_batch(deployment)}", "streams": "/files", "submits": "/schedules"}[watch]
    tab = console.open(path)
    if watch == "submits":
        tab.route("**/v1/events*", lambda route: route.abort())  # the form must notice it by itself
        new_schedule(tab, "file-1")
    with deployment.inline.db.write() as session:
        revoke_key(session, deployment.key.split("_")[1])
        successor = create_key(session, "default")
    if watch == "submits":
        tab.wait_for_timeout(2_500)  # a good answer about a key holds for two seconds
        tab.get_by_role("button", name="Create", exact=True).click()

    expect(tab.get_by_role("alert")).to_contain_text("The API key was revoked.", timeout=4 * PATIENCE)
    tab.get_by_label("API key").fill(successor)
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("navigation")).to_be_visible()
    assert urlsplit(tab.url).path == f"/console{path}"


def test_revoked_operator_key_shows_key_form(browser: Browser, deployment: Deployment) -> None:
    with console_of(browser, deployment, operator=True) as console:
        console.expect_errors("status of 401")
        tab = console.open("/workers")
        expect(tab.get_by_role("table", name="Workers")).to_be_visible()
        with deployment.inline.db.write() as session:
            revoke_key(session, deployment.operator_key.split("_")[1])

        expect(tab.get_by_label("Admin key")).to_be_visible(timeout=4 * PATIENCE)
        expect(tab.get_by_role("alert")).to_contain_text("The API key was revoked.")
        expect(tab.get_by_role("link", name="Jobs", exact=True)).to_be_visible()

"""The pages of webhooks: create with a secret that is shown once, rotate, test, deliveries, send again, delete."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from jobs.clock import now
from jobs.db.engine import Database
from jobs.webhooks import webhook_endpoints
from jobs.webhooks.tables import Attempt, Delivery, Event, WebhookEndpoint
from tests.support.console import HOSTILE, Console, Deployment, console_of, deployed
from tests.support.receiver import Receiver

pytestmark = pytest.mark.verify

TYPES = ["batch.completed", "batch.failed"]


@pytest.fixture
def deployment(sqlite: Database, tmp_path: Path) -> Iterator[Deployment]:
    """Run a deployment whose webhooks may lead to this machine."""
    with deployed(sqlite, tmp_path, webhook_allow_private=True) as deployment:
        yield deployment


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def create_endpoint(deployment: Deployment, url: str, name: str = "orders") -> str:
    body = {"name": name, "url": url, "event_types": TYPES}
    made: dict[str, str] = deployment.client.post("/webhook_endpoints", cast_to=object, body=body)  # type: ignore[assignment]
    return made["id"]


def add_deliveries(deployment: Deployment, endpoint_id: str) -> None:
    """Store a failed delivery with two attempts, and one that arrived."""
    at, states = now(), [("failed", 500, f"status 500 {HOSTILE}"), ("delivered", 200, None)]
    with deployment.inline.db.write() as session:
        project_id = session.get_one(WebhookEndpoint, endpoint_id).project_id
        for n, (state, status, error) in enumerate(states):
            subject = f"batch_{n}"
            event = Event(
                subject_id=subject, seq=1, id=f"evt_{n}", project_id=project_id, type="batch.completed",
                data={"id": subject}, created_at=at - 60,
            )  # fmt: skip
            delivery = Delivery(
                id=f"whd_{n}", project_id=project_id, event_id=event.id, endpoint_id=endpoint_id, state=state,
                attempts=2 - n, due_at=at, created_at=at - 60 + n, status_code=status, error=error,
                delivered_at=at if status == 200 else None,
            )  # fmt: skip
            session.add_all([event, delivery])
            answer = {"at": at, "seconds": 0.25, "status_code": status, "error": error}
            session.add_all([Attempt(delivery_id=delivery.id, n=k + 1, **answer) for k in range(2 - n)])


def row_of(tab: Page, table: str, text: str) -> Locator:
    return tab.get_by_role("table", name=table).get_by_role("row").filter(has_text=text)


def test_empty_page_says_how_to_make_an_endpoint(console: Console) -> None:
    tab = console.open("/webhooks")

    expect(tab.get_by_role("heading", name="No webhook endpoints yet")).to_be_visible()
    expect(tab.get_by_text("nightmill webhooks create")).to_be_visible()
    expect(tab.get_by_text("client.webhooks.create(")).to_be_visible()
    console.inspect("webhooks-empty")


def test_endpoint_is_created_by_keyboard_and_its_secret_is_shown_once(console: Console, receiver: Receiver) -> None:
    tab = console.open("/webhooks")
    tab.get_by_role("button", name="New endpoint").press("Enter")
    form = tab.get_by_role("dialog")
    expect(form.get_by_label("batch.completed", exact=True)).to_be_checked()
    form.get_by_label("URL").fill("ftp://example.com/")
    form.get_by_label("Name").fill(HOSTILE)
    console.expect_errors("status of 400")
    tab.keyboard.press("Enter")
    expect(form.get_by_label("URL")).to_have_attribute("aria-invalid", "true")
    console.inspect("webhooks-new")

    form.get_by_label("URL").fill(receiver.url("ok"))
    tab.keyboard.press("Enter")

    secret = tab.get_by_role("dialog", name="The endpoint was created")
    expect(secret.get_by_role("region", name="Signing secret")).to_contain_text("whsec_")
    console.inspect("webhooks-secret")
    secret.get_by_role("button", name="I have copied it").click()
    expect(row_of(tab, "Webhook endpoints", HOSTILE)).to_contain_text("enabled")
    assert "whsec_" not in tab.content()
    console.inspect("webhooks")


def test_test_event_shows_the_answer_of_the_receiver(
    console: Console, deployment: Deployment, receiver: Receiver
) -> None:
    endpoint_id = create_endpoint(deployment, receiver.url("ok"))
    tab = console.open(f"/webhooks/{endpoint_id}")
    tab.get_by_role("button", name="Send a test").click()
    dialog = tab.get_by_role("dialog")
    dialog.get_by_role("button", name="Send", exact=True).click()
    expect(dialog.get_by_role("status")).to_have_text("The receiver accepted it with status 200.")
    tab.keyboard.press("Escape")
    expect(dialog).to_have_count(0)

    refusing = create_endpoint(deployment, receiver.url("500"))
    console.open(f"/webhooks/{refusing}")
    tab.get_by_role("button", name="Send a test").click()
    tab.get_by_role("dialog").get_by_role("button", name="Send", exact=True).click()

    expect(tab.get_by_role("dialog").get_by_role("status")).to_have_text("The receiver refused it with status 500.")
    assert [request.path for request in receiver.requests] == ["/ok", "/500"]


def test_deliveries_show_attempts_and_can_be_resent(console: Console, deployment: Deployment) -> None:
    endpoint_id = create_endpoint(deployment, "http://127.0.0.1:9/hook")
    add_deliveries(deployment, endpoint_id)
    tab = console.open(f"/webhooks/{endpoint_id}")
    failed = row_of(tab, "Deliveries", "failed")
    expect(failed).to_contain_text(HOSTILE)
    expect(row_of(tab, "Deliveries", "delivered")).to_contain_text("status 200")
    console.inspect("webhook")

    failed.get_by_role("button", name="2 attempts").click()
    expect(row_of(tab, "Attempts", "250 ms")).to_have_count(2)
    console.inspect("webhook-attempts")
    tab.keyboard.press("Escape")
    tab.get_by_label("State of the deliveries").select_option("failed")
    expect(tab).to_have_url(f"{deployment.url}/console/webhooks/{endpoint_id}?state=failed")
    expect(tab.get_by_role("table", name="Deliveries").get_by_role("row")).to_have_count(2)
    tab.reload()
    failed.get_by_role("button", name="Send again: whd_0").click()

    expect(tab.get_by_role("heading", name="No failed deliveries")).to_be_visible()
    tab.get_by_label("State of the deliveries").select_option("pending")
    expect(row_of(tab, "Deliveries", "pending")).to_be_visible()


def test_secret_is_rotated_and_the_endpoint_deleted(console: Console, deployment: Deployment) -> None:
    endpoint_id = create_endpoint(deployment, "http://127.0.0.1:9/hook")
    tab = console.open(f"/webhooks/{endpoint_id}")
    hint = tab.locator("dd").filter(has_text="…").inner_text()
    tab.get_by_role("button", name="Rotate the secret").click()
    tab.get_by_role("button", name="Replace the secret").click()
    secret = tab.get_by_role("dialog", name="The secret was replaced").get_by_role("region").inner_text()
    tab.get_by_role("button", name="I have copied it").click()
    expect(tab.locator("dd").filter(has_text="…")).to_have_text(f"…{secret[-4:]}")
    assert hint != f"…{secret[-4:]}"

    tab.get_by_role("button", name="Delete").click()
    tab.get_by_role("button", name="Keep it").click()
    tab.get_by_role("button", name="Delete").click()
    tab.get_by_role("button", name="Delete the endpoint").click()

    expect(tab.get_by_role("heading", name="No webhook endpoints yet")).to_be_visible()


def test_disabled_endpoint_shows_reason_and_can_be_enabled(console: Console, deployment: Deployment) -> None:
    endpoint_id = create_endpoint(deployment, "http://127.0.0.1:9/hook")
    with deployment.inline.db.write() as session:
        webhook_endpoints.disable(session, session.get_one(WebhookEndpoint, endpoint_id), "gone")
    tab = console.open(f"/webhooks/{endpoint_id}")
    expect(tab.get_by_role("status").filter(has_text="Disabled")).to_contain_text("(gone)")
    tab.get_by_role("button", name="Enable").click()

    expect(tab.locator(".page-title .state")).to_have_text("enabled")


def test_endpoint_of_another_project_is_not_found(browser: Browser, deployment: Deployment) -> None:
    with console_of(browser, deployment) as console:
        console.expect_errors("status of 404")
        tab = console.open("/webhooks/we_another")

        expect(tab.get_by_role("alert")).to_contain_text("belong to another project")

"""The pages of operation: schedules, workers for an admin key, keys of the project, and the audit log."""

import json
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect
from sqlalchemy import update

from jobs.ledger.tables import Audit
from jobs.security.keys import create_key, ensure_project, id_of, revoke_key
from tests.support.console import HOSTILE, Console, Deployment
from tests.support.inline_deployment import chat_line, jsonl
from tests.support.pipeline_requests import batch_step
from tests.support.web import make_key

pytestmark = pytest.mark.verify


def row_of(tab: Page, table: str, text: str) -> Locator:
    return tab.get_by_role("table", name=table).get_by_role("row").filter(has_text=text)


def test_schedule_is_created_paused_resumed_and_deleted(console: Console, deployment: Deployment) -> None:
    file = deployment.client.files.create(file=("a.jsonl", jsonl([chat_line("a", "Hello")])), purpose="batch")
    tab = console.open("/schedules")
    expect(tab.get_by_role("heading", name="No schedules yet")).to_be_visible()
    console.inspect("schedules-empty")

    console.expect_errors("status of 400")
    tab.get_by_role("button", name="New schedule").click()
    form = tab.get_by_role("dialog")
    form.get_by_label("Times").fill("every day")
    form.get_by_label("Input file").fill(file.id)
    form.get_by_role("button", name="Create").click()
    expect(form.get_by_label("Times")).to_have_attribute("aria-invalid", "true")
    console.inspect("schedules-new")
    form.get_by_label("Times").fill("0 3 * * mon-fri")
    form.get_by_label("Time zone").fill("Europe/Zurich")
    tab.keyboard.press("Enter")

    row = row_of(tab, "Schedules", "0 3 * * mon-fri")
    expect(row).to_contain_text("Europe/Zurich")
    expect(row).to_contain_text(file.id)
    console.inspect("schedules")
    row.get_by_role("button", name="Pause").click()
    expect(row).to_contain_text("paused")
    row.get_by_role("button", name="Resume").click()
    expect(row).to_contain_text("active")
    row.get_by_role("button", name="Delete").click()
    tab.get_by_role("button", name="Delete the schedule").click()

    expect(tab.get_by_role("heading", name="No schedules yet")).to_be_visible()


def test_schedule_of_a_pipeline_shows_its_request_on_demand(console: Console, deployment: Deployment) -> None:
    file = deployment.client.files.create(file=("a.jsonl", jsonl([chat_line("a", "Hello")])), purpose="batch")
    job = {"type": "pipeline", "name": "weekly", "steps": [batch_step("answer", file.id)]}
    body = {"cron": "0 4 * * mon", "job": job}
    schedule: Any = deployment.client.post("/schedules", body=body, cast_to=object)

    tab = console.open("/schedules")
    row = row_of(tab, "Schedules", "0 4 * * mon")
    expect(row).to_contain_text("Pipeline")
    expect(row).not_to_contain_text("weekly")
    row.get_by_role("button", name=f"Show the request of {schedule['id']}").click()
    expect(row).to_contain_text("weekly")
    expect(row).to_contain_text(file.id)
    console.inspect("schedules-request")

    deployment.client.delete(f"/schedules/{schedule['id']}", cast_to=object)


def test_schedule_of_any_kind_is_made_from_its_request(console: Console, deployment: Deployment) -> None:
    console.expect_errors("status of 400", "status of 404")
    file = deployment.client.files.create(file=("a.jsonl", jsonl([chat_line("a", "Hello")])), purpose="batch")
    tab = console.open("/schedules")
    tab.get_by_role("button", name="New schedule").click()
    form = tab.get_by_role("dialog")
    form.get_by_label("Times").fill("0 5 * * mon")
    form.get_by_label("Time zone").fill("UTC")
    form.get_by_label("Kind").select_option("Pipeline")
    expect(form.get_by_label("Input file")).to_have_count(0)
    request, create = form.get_by_label("Request"), form.get_by_role("button", name="Create")
    expect(create).to_be_disabled()
    request.fill("steps: [")
    expect(form.get_by_text("neither YAML nor JSON")).to_be_visible()
    request.fill(json.dumps({"steps": [batch_step("answer", "file-gone")]}))
    create.click()
    expect(form.get_by_role("alert")).to_contain_text("file-gone")
    console.inspect("schedules-pipeline")
    request.fill(f"""
name: weekly
steps:
  - name: answer
    kind: batch
    request: {{input_file_id: {file.id}, endpoint: /v1/chat/completions, completion_window: 24h}}
""")
    create.click()

    row = row_of(tab, "Schedules", "0 5 * * mon")
    expect(row).to_contain_text("Pipeline")
    [listed] = deployment.client.get("/schedules", cast_to=object)["data"]  # type: ignore[index]
    made: Any = deployment.client.get(f"/schedules/{listed['id']}", cast_to=object)
    assert (made["kind"], made["job"]["name"]) == ("pipeline", "weekly")
    assert made["job"]["steps"][0]["request"]["input_file_id"] == file.id


def test_workers_ask_for_an_admin_key_and_refuse_that_of_a_project(console: Console) -> None:
    console.expect_errors("status of 403")
    tab = console.open("/workers")
    expect(tab.get_by_text("nightmill keys create --admin")).to_be_visible()
    console.inspect("workers-gate")
    own = ("/v1/events?", "/v1/project")  # each page follows the feed, and names the project
    assert not [url for url in console.urls if "/v1/" in url and not any(path in url for path in own)]

    tab.get_by_label("Admin key").fill(console.deployment.key)
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("alert")).to_contain_text("takes an admin key")
    tab.get_by_label("Admin key").fill(console.deployment.operator_key)
    tab.keyboard.press("Enter")

    expect(tab.get_by_role("table", name="Workers")).to_be_visible()


def test_workers_page_opens_after_the_workers_of_the_overview(operator: Console) -> None:
    tab = operator.open("/")
    expect(tab.get_by_role("table", name="Workers")).to_be_visible()

    tab.get_by_role("navigation").get_by_role("link", name="Workers").click()

    expect(tab.get_by_role("table", name="Queues")).to_be_visible()


def test_workers_are_paused_drained_and_resumed(operator: Console) -> None:
    tab = operator.open("/workers")
    worker = row_of(tab, "Workers", "gpu")
    expect(worker).to_contain_text("0 of 2")
    queue = row_of(tab, "Queues", "gpu.generate")
    queue.get_by_role("button", name="Pause").click()
    tab.get_by_role("button", name="Pause it").click()
    expect(queue).to_contain_text("paused")
    expect(row_of(tab, "Pauses", "gpu.generate")).to_be_visible()
    operator.inspect("workers")

    worker.get_by_role("button", name="Drain").click()
    dialog = tab.get_by_role("dialog")
    dialog.get_by_role("button", name="Drain it").click()
    expect(dialog.get_by_role("status")).to_contain_text("Nothing runs there any more")
    operator.inspect("workers-drained")
    dialog.get_by_role("button", name="Close", exact=True).last.click()
    expect(worker).to_contain_text("paused")
    worker.get_by_role("button", name="Resume").click()
    tab.get_by_role("button", name="Resume it").click()
    expect(row_of(tab, "Pauses", "worker")).to_have_count(0)
    row_of(tab, "Pauses", "gpu.generate").get_by_role("button").click()
    tab.get_by_role("button", name="Resume it").click()

    expect(tab.get_by_text("Nothing is paused.")).to_be_visible()


def test_pause_of_something_unknown_is_refused_in_words(operator: Console) -> None:
    operator.expect_errors("status of 404")
    tab = operator.open("/workers")
    tab.get_by_role("button", name="Pause…").click()
    dialog = tab.get_by_role("dialog")
    dialog.get_by_label("What").select_option("project")
    dialog.get_by_label("Name").fill(HOSTILE)
    tab.keyboard.press("Enter")

    expect(dialog.get_by_role("alert")).to_contain_text(f"There is no project '{HOSTILE}'")
    operator.inspect("workers-pause")
    dialog.get_by_label("Name").fill("default")
    tab.keyboard.press("Enter")
    expect(row_of(tab, "Pauses", "default")).to_contain_text("project")


def test_key_is_created_shown_once_and_revoked(console: Console, deployment: Deployment) -> None:
    tab = console.open("/keys")
    own = row_of(tab, "Keys", "used here")
    expect(own).to_contain_text(deployment.key.split("_")[1])
    tab.get_by_role("button", name="New key").click()
    dialog = tab.get_by_role("dialog", name="The key was created")
    key = dialog.get_by_role("region", name="API key").inner_text()
    assert deployment.client.with_options(api_key=key).files.list().data == []
    dialog.get_by_role("button", name="I have copied it").click()
    row = row_of(tab, "Keys", key.split("_")[1])
    expect(row).to_contain_text("live")
    assert key not in tab.content()
    console.inspect("keys")

    row.get_by_role("button", name="Revoke").click()
    dialog = tab.get_by_role("dialog")
    expect(dialog).to_contain_text("This cannot be undone")
    expect(dialog).not_to_contain_text("signed out")
    console.inspect("keys-revoke")
    dialog.get_by_role("button", name="Keep it").click()
    expect(row).to_contain_text("live")
    row.get_by_role("button", name="Revoke").click()
    dialog.get_by_role("button", name="Revoke the key").click()

    expect(row).to_contain_text("revoked")
    own.get_by_role("button", name="Revoke").click()
    expect(tab.get_by_role("dialog")).to_contain_text("you will be signed out")


def test_key_that_manages_no_keys_says_so_and_may_revoke_itself_alone(console: Console, deployment: Deployment) -> None:
    key = make_key(deployment.app)
    tab = console.open("/keys")
    tab.evaluate("(key) => sessionStorage.setItem('nightmill.key', key)", key)
    tab.reload()

    expect(tab.get_by_text("Your key does not manage keys")).to_be_visible()
    expect(tab.get_by_role("button", name="New key")).to_have_count(0)
    expect(tab.get_by_role("button", name="Revoke nm_")).to_have_count(1)
    expect(row_of(tab, "Keys", "used here").get_by_role("button", name="Revoke")).to_be_visible()
    expect(row_of(tab, "Keys", "manages keys")).to_contain_text(id_of(deployment.key))
    console.inspect("keys-ordinary")


def test_key_revocation_offers_revocation_of_created_keys(console: Console, deployment: Deployment) -> None:
    with deployment.inline.db.write() as session:
        leaked = id_of(create_key(session, "default", manages=True))
        created = id_of(create_key(session, "default", created_by=leaked))
    tab = console.open("/keys")
    row = row_of(tab, "Keys", f"nm_{leaked}...")
    row.get_by_role("button", name="Revoke").click()
    tab.get_by_role("dialog").get_by_role("button", name="Revoke the key").click()

    offer = tab.get_by_role("alert")
    expect(offer).to_contain_text("keys that it created stay live")
    expect(offer).to_contain_text(created)
    expect(row_of(tab, "Keys", f"nm_{created}...")).to_contain_text("live")
    console.inspect("keys-created")
    offer.get_by_role("button", name="Revoke them too").click()
    tab.get_by_role("dialog").get_by_role("button", name="Revoke the keys").click()
    expect(row_of(tab, "Keys", f"nm_{created}...")).to_contain_text("revoked")
    expect(offer).to_have_count(0)


def test_keys_are_listed_page_by_page(console: Console, deployment: Deployment) -> None:
    with deployment.inline.db.write() as session:
        for _ in range(24):
            create_key(session, "default")
    tab = console.open("/keys")
    rows = tab.get_by_role("table", name="Keys").get_by_role("row")
    expect(rows).to_have_count(21)
    tab.get_by_role("button", name="Load more").click()

    expect(rows).to_have_count(26)


def test_audit_log_is_filtered_by_object_and_shows_details(console: Console, deployment: Deployment) -> None:
    inline = deployment.inline
    batch = inline.submit(jsonl([chat_line("a", "Hello")]))
    other = inline.submit(jsonl([chat_line("a", "Again")]))
    inline.drain(batch, other)
    tab = console.open("/audit")
    table = tab.get_by_role("table", name="Audit log")
    expect(row_of(tab, "Audit log", batch).first).to_contain_text("succeeded")
    expect(row_of(tab, "Audit log", other).first).to_be_visible()
    console.inspect("audit")

    tab.get_by_label("Object").fill(batch)
    tab.keyboard.press("Enter")
    expect(tab).to_have_url(f"{deployment.url}/console/audit?target={batch}")
    expect(table.get_by_role("row").filter(has_text=other)).to_have_count(0)
    tab.reload()
    expect(tab.get_by_label("Object")).to_have_value(batch)
    row_of(tab, "Audit log", batch).first.get_by_role("button", name="Details").click()
    expect(tab.get_by_role("dialog")).to_contain_text("Sealed")
    console.inspect("audit-details")
    tab.keyboard.press("Escape")
    tab.get_by_role("button", name="Show everything").click()
    expect(row_of(tab, "Audit log", other).first).to_be_visible()

    tab.get_by_label("Object").fill(HOSTILE)
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("heading", name="No row matches")).to_be_visible()


def test_audit_log_is_filtered_by_actor_type_and_time(console: Console, deployment: Deployment) -> None:
    with deployment.inline.db.write() as session:
        project = ensure_project(session, "default").id
        own, other = (id_of(create_key(session, "default", created_by=creator)) for creator in ("own", None))
        revoke_key(session, own, actor="key:own", project_id=project)
        session.execute(update(Audit).where(Audit.target == other).values(at=365 * 86_400 * 1_000_000))
    tab = console.open("/audit?type=key.create")
    rows = tab.get_by_role("table", name="Audit log").get_by_role("row")
    expect(tab.get_by_label("Type")).to_have_value("key.create")
    expect(row_of(tab, "Audit log", other)).to_contain_text("operator")
    expect(row_of(tab, "Audit log", own)).to_have_count(1)

    row_of(tab, "Audit log", own).get_by_role("button", name="key:own").click()
    expect(rows).to_have_count(2)
    expect(tab.get_by_label("By")).to_have_value("key:own")
    tab.get_by_label("Type").fill("key.revoke")
    tab.keyboard.press("Enter")
    expect(row_of(tab, "Audit log", own)).to_contain_text("key.revoke")
    expect(rows).to_have_count(2)
    console.inspect("audit-filters")

    tab.get_by_role("button", name="Show everything").click()
    tab.get_by_label("Before").fill("1980-01-01T00:00")
    expect(rows).to_have_count(2)
    expect(row_of(tab, "Audit log", other)).to_contain_text("key.create")
    tab.reload()
    expect(rows).to_have_count(2)

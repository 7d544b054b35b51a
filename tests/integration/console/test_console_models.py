"""The console's page of models: where each is served, and why not; logs of engines are shown as text."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import quarantine, workers
from jobs.fleet.tables import EngineDeath
from jobs.queues import Queue
from jobs.registry import models
from jobs.security.keys import ensure_project
from tests.support.console import HOSTILE, Console, Deployment, deployed
from tests.support.worker_rows import worker_row

pytestmark = pytest.mark.verify

EMBEDDER, CHAT = "all-minilm-l6-v2", "smollm2-135m-instruct"
TUNED = f"ft:{CHAT}:default:support:1"


@pytest.fixture
def deployment(sqlite: Database, tmp_path: Path) -> Iterator[Deployment]:
    """Yield a deployment whose embedder is served, whose chat model is quarantined, and that has tuned a model."""
    with deployed(sqlite, tmp_path, openai_aliases=True) as deployment:
        with sqlite.write() as session:
            at = {"created_at": now(), "seen_at": now()}
            row = worker_row("embedder", Queue.EMBED, EMBEDDER, pool="embed", host="host-1", pid=7, slots=1, **at)
            workers.register(session, row)
            for number in range(2):
                death = EngineDeath(
                    id=f"death-{number}",
                    host_devices="host-2 cuda:0",
                    model=CHAT,
                    entry="e",
                    worker_id="w",
                    starting=True,
                    error=f"It did not start: {HOSTILE}",
                    suspects=["batch_1 shard 0"],
                    lines=["CUDA error: out of memory", HOSTILE],
                    created_at=now(),
                )
                quarantine.note(session, death, quarantine.QuarantineLimits(2, 60.0, 900.0))
            models.register(
                session,
                name=TUNED,
                project_id=ensure_project(session, "default").id,
                base=CHAT,
                job_id="ftjob-1",
                method="lora",
                location="training/1",
                sha256="0" * 64,
                manifest={},
            )
        yield deployment


def test_models_show_workers_and_reason_for_quarantine(operator: Console) -> None:
    tab = operator.open("/models")
    table = tab.get_by_role("table", name="Models of this deployment")
    embedder, chat = (table.get_by_role("row").filter(has_text=name) for name in (EMBEDDER, CHAT))

    expect(embedder).to_contain_text("ready")
    expect(embedder).to_contain_text("text-embedding-")
    expect(chat).to_contain_text("quarantined")
    expect(tab.get_by_role("region", name="The end of its log")).to_contain_text(HOSTILE)
    expect(tab.get_by_text(f"nightmill resume model {CHAT}")).to_be_visible()
    expect(tab.get_by_role("table", name="Tuned models")).to_contain_text(TUNED)
    operator.inspect("models")

    embedder.get_by_role("link", name=EMBEDDER).press("Enter")
    dialog = tab.get_by_role("dialog")
    expect(dialog).to_contain_text("host-1, process 7")
    assert tab.url.endswith(f"/console/models?model={EMBEDDER}")
    operator.inspect("model")
    tab.reload()
    expect(dialog).to_contain_text("text-embedding-3-small")
    tab.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_logs_of_engines_are_for_the_operator(console: Console) -> None:
    tab = console.open("/models")

    section = tab.get_by_role("region", name="Quarantined engines")
    expect(section).to_contain_text("an admin key")
    expect(section).not_to_contain_text("out of memory")
    assert not [url for url in console.urls if "/v1/quarantines" in url or "/v1/workers" in url]


def test_tuned_model_is_deleted_after_a_question(console: Console) -> None:
    tab = console.open(f"/models?model={TUNED}")

    tab.get_by_role("button", name="Delete").click()
    dialog = tab.get_by_role("dialog", name="Delete this model?")
    expect(dialog).to_contain_text(TUNED)
    tab.get_by_role("button", name="Keep it").click()
    tab.get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name="Delete the model").click()

    expect(tab.get_by_role("region", name="Tuned models")).to_contain_text("None yet.")
    expect(dialog).to_have_count(0)


def test_stage_of_version_is_changed_with_reason(console: Console) -> None:
    tab = console.open(f"/models?model={TUNED}")
    dialog = tab.get_by_role("dialog", name="Model")
    expect(dialog).to_contain_text(f"{CHAT}:support")

    dialog.get_by_label("New stage").select_option("production")
    dialog.get_by_label("Reason").fill("Fewer refusals.")
    console.inspect("version")
    dialog.get_by_role("button", name="Change the stage").click()

    moves = dialog.get_by_role("table", name="Moves")
    expect(moves).to_contain_text("none → production")
    expect(moves).to_contain_text("Fewer refusals.")
    expect(dialog.get_by_role("button", name="Change the stage")).to_be_disabled()


def test_lineage_leads_from_base_and_job_to_alias(console: Console, deployment: Deployment) -> None:
    body = {"id": "support-bot", "targets": [{"model": TUNED, "weight": 100}]}
    deployment.client.post("/aliases", body=body, cast_to=object)
    tab = console.open(f"/models?model={TUNED}")

    section = tab.get_by_role("dialog").get_by_role("region", name="Lineage")
    layers = section.get_by_role("list")
    expect(layers).to_have_count(4)
    for layer, (kind, name) in enumerate(
        (("Base", CHAT), ("Fine-tuning job", "ftjob-1"), ("Version", TUNED), ("Alias", "support-bot"))
    ):
        expect(layers.nth(layer)).to_contain_text(kind)
        expect(layers.nth(layer).get_by_role("link", name=name, exact=True)).to_be_visible()
    expect(section.locator("[aria-current=true]")).to_contain_text(TUNED)
    expect(section.locator("svg path")).to_have_count(3)
    console.inspect("lineage")
    section.get_by_role("link", name="support-bot").click()

    expect(tab.get_by_role("heading", name="Moves of support-bot")).to_be_visible()


def test_empty_page_explains_adding_model_and_error_offers_retry(console: Console) -> None:
    console.expect_errors("status of 400")
    models_url = re.compile(r"/v1/models\?")
    console.tab.route(models_url, lambda route: route.fulfill(json={"object": "list", "data": []}))
    tab = console.open("/models")
    expect(tab.get_by_text("nightmill models add my-model")).to_be_visible()
    console.inspect("models-empty")

    error = {"message": HOSTILE, "type": "invalid_request_error", "param": None, "code": "broken"}
    console.tab.unroute(models_url)
    console.tab.route(models_url, lambda route: route.fulfill(status=400, json={"error": error}))
    tab.reload()

    expect(tab.get_by_role("alert")).to_contain_text(HOSTILE)
    console.inspect("models-failure")
    console.tab.unroute(models_url)
    tab.get_by_role("button", name="Try again").click()
    expect(tab.get_by_role("table", name="Tuned models")).to_contain_text(TUNED)

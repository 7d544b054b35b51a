"""The pages of promotions: made by a form with a gate or by force, judged with both sides, refused and cancelled."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet.tables import Model
from jobs.queues import Queue
from jobs.registry import models
from jobs.security.keys import ensure_project
from tests.support.console import HOSTILE, Console, Deployment, deployed
from tests.support.eval_client import JUDGE, SAME, SCHEMA, items, judge
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL, jsonl
from tests.support.promotion_requests import ALIAS, gate, minimum, to_model

pytestmark = pytest.mark.verify

#: The judge never answers what the items expect.
WORSE = JUDGE
TUNED = f"ft:{MODEL}:default:support:1"


@pytest.fixture
def deployment(sqlite: Database, tmp_path: Path) -> Iterator[Deployment]:
    """Yield a deployment that serves a good and a bad model, and has a tuned one."""
    engine = FakeEngine((MODEL, WORSE), fault=partial(judge, [], [0.0]))
    with deployed(sqlite, tmp_path, engine) as deployment:
        with sqlite.write() as session:
            for name in (MODEL, WORSE):
                session.add(Model(id=name, queue=Queue.GENERATE, created_at=now(), seen_at=now()))
            tuned = {"job_id": "ftjob-1", "method": "lora", "location": "training/1", "sha256": "0" * 64}
            project_id = ensure_project(session, "default").id
            models.register(session, name=TUNED, project_id=project_id, base=MODEL, manifest={}, **tuned)
        yield deployment


def post(deployment: Deployment, path: str, **body: Any) -> Any:
    return deployment.client.post(path, body=body, cast_to=object)


def get(deployment: Deployment, path: str) -> Any:
    return deployment.client.get(path, cast_to=object)


def questions(count: int = 20) -> bytes:
    return jsonl(items(*(f"How do I reset router {n}?" for n in range(count))))


def create_eval(deployment: Deployment) -> str:
    config: Any = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
    criteria: Any = [SAME]
    made = deployment.client.evals.create(name="Answers", data_source_config=config, testing_criteria=criteria)
    return made.id


def create_promotion(deployment: Deployment, model: str, *, incumbent: str, **fields: Any) -> str:
    """Create a promotion of an alias by a gate of 20 items; return its id."""
    post(deployment, "/aliases", id=ALIAS, model=incumbent)
    file = deployment.client.files.create(file=("items.jsonl", questions()), purpose="evals")
    gates = [gate(create_eval(deployment), file.id, **fields)]
    return str(post(deployment, "/promotions", target=to_model(model), gates=gates)["id"])


def model_of_alias(deployment: Deployment) -> str:
    return str(get(deployment, f"/aliases/{ALIAS}")["model"])


def end(deployment: Deployment, promotion_id: str) -> Any:
    deployment.inline.drain(promotion_id, timeout=60)
    return get(deployment, f"/promotions/{promotion_id}")


def state(tab: Page) -> Any:
    return tab.locator(".page-title .state")


def test_alias_is_promoted_by_gate_of_form(console: Console, deployment: Deployment) -> None:
    post(deployment, "/aliases", id=ALIAS, model=WORSE)
    create_eval(deployment)
    tab = console.open("/promotions")
    expect(tab.get_by_role("heading", name="No promotions yet")).to_be_visible()
    console.inspect("promotions-empty")
    tab.get_by_role("link", name="New promotion").first.click()
    start = tab.get_by_role("button", name="Start the promotion")
    tab.get_by_label("Alias", exact=True).select_option(ALIAS)
    tab.get_by_label("Candidate").select_option(MODEL)
    tab.get_by_label("Evaluation", exact=True).select_option(label="Answers")
    expect(tab.get_by_label("Criterion").locator("option")).to_have_text(["All of them", "same"])
    expect(start).to_be_disabled()
    content: Any = {"name": "items.jsonl", "mimeType": "text/plain", "buffer": questions()}
    tab.locator("input[type=file]").set_input_files(content)
    expect(tab.get_by_label("Items", exact=True)).to_contain_text("items.jsonl")
    tab.get_by_label("Reason").fill("fewer wrong answers")
    console.inspect("promotion-new")
    start.click()

    expect(console.heading).to_have_text(f"{ALIAS} → {MODEL}")
    expect(state(tab)).to_have_text("in progress")
    [listed] = get(deployment, "/promotions")["data"]
    done = end(deployment, listed["id"])
    assert (done["status"], model_of_alias(deployment)) == ("promoted", MODEL)
    expect(state(tab)).to_have_text("promoted")
    section = tab.get_by_role("region", name="Gate 1")
    expect(section).to_contain_text("loses less than 5 points to the incumbent")
    expect(section.get_by_role("link", name="20 of 20 passed")).to_be_visible()
    expect(section.get_by_role("link", name="0 of 20 passed", exact=True)).to_be_visible()
    row = section.get_by_role("row").filter(has_text="same")
    report = done["gates"][0]["report"]["criteria"][1]
    expect(row).to_contain_text(f"+{report['low']:.3f} to +{report['high']:.3f}")
    expect(row).to_contain_text("1.000")
    expect(row).to_contain_text("passed")
    console.inspect("promotion")
    console.check_reload()

    tab.get_by_role("link", name=ALIAS, exact=True).click()
    moves = tab.get_by_role("table", name="Moves").get_by_role("row").filter(has_text="fewer wrong answers")
    expect(moves.get_by_role("link", name=done["id"])).to_be_visible()
    console.inspect("aliases")


def test_refused_promotion_shows_both_sides_and_leads_to_comparison(console: Console, deployment: Deployment) -> None:
    done = end(deployment, create_promotion(deployment, WORSE, incumbent=MODEL))
    assert (done["status"], model_of_alias(deployment)) == ("refused", MODEL)
    first = done["gates"][0]["report"]["criteria"][0]
    tab = console.open("/promotions")
    row = tab.get_by_role("table", name="Promotions").get_by_role("row").filter(has_text=ALIAS)
    expect(row).to_contain_text("0.000 against 1.000")
    expect(row).to_contain_text(f"{first['low']:.3f} to {first['high']:.3f}")
    expect(row).to_contain_text("failed")
    console.inspect("promotions")

    row.get_by_role("link", name=ALIAS).click()
    expect(state(tab)).to_have_text("refused")
    expect(tab.locator("main")).to_contain_text("gate_failed all criteria: worse; same: worse")
    tab.get_by_role("link", name="Items and regressions").click()
    expect(tab.get_by_role("table", name="Comparison by criterion")).to_contain_text("worse")


def test_minimum_asks_candidate_alone(console: Console, deployment: Deployment) -> None:
    done = end(deployment, create_promotion(deployment, WORSE, incumbent=MODEL, rule=minimum(0.9)))
    tab = console.open(f"/promotions/{done['id']}")

    section = tab.get_by_role("region", name="Gate 1")
    expect(section).to_contain_text("mean score of at least 0.9")
    expect(section).not_to_contain_text("Run of the incumbent")
    expect(section.get_by_role("columnheader")).to_have_text(["Criterion", "Candidate", "Items", "Outcome"])
    console.inspect("promotion-minimum")


def test_forced_promotion_takes_reason_in_place_of_gates(console: Console, deployment: Deployment) -> None:
    tab = console.open(f"/models?model={TUNED}")
    tab.get_by_role("dialog").get_by_role("link", name=f"Promote {TUNED}").click()
    expect(tab.get_by_label("Candidate")).to_have_value(TUNED)
    tab.get_by_label("Move it without a gate").check()
    move = tab.get_by_role("button", name="Move it now")
    expect(move).to_be_disabled()
    expect(tab.get_by_label("Evaluation", exact=True)).to_have_count(0)
    tab.get_by_label("Reason").fill(HOSTILE)
    console.inspect("promotion-forced")
    move.click()

    expect(console.heading).to_have_text(f"{TUNED} → production")
    expect(tab.locator("main")).to_contain_text("none in production")
    expect(tab.locator("main")).to_contain_text(HOSTILE)
    [listed] = get(deployment, "/promotions")["data"]
    assert (listed["force"], listed["reason"]) == (True, HOSTILE)
    end(deployment, listed["id"])
    expect(state(tab)).to_have_text("promoted")
    version = get(deployment, f"/model_versions/{TUNED}")
    assert version["stage"] == "production"

    tab.get_by_role("link", name=TUNED).first.click()
    moves = tab.get_by_role("dialog").get_by_role("table", name="Moves")
    expect(moves).to_contain_text("none → production")
    expect(moves.get_by_role("link", name=listed["id"])).to_be_visible()


def test_promotion_is_cancelled_after_question(console: Console, deployment: Deployment) -> None:
    promotion_id = create_promotion(deployment, MODEL, incumbent=WORSE)
    tab = console.open(f"/promotions/{promotion_id}")
    expect(tab.get_by_role("region", name="Gate 1")).to_contain_text("when its runs have ended")
    console.inspect("promotion-live")
    tab.get_by_role("button", name="Cancel").click()
    tab.get_by_role("button", name="Cancel the promotion").click()
    expect(state(tab)).to_contain_text("cancel")

    assert end(deployment, promotion_id)["status"] == "cancelled"
    expect(state(tab)).to_have_text("cancelled")
    expect(tab.get_by_role("button", name="Cancel")).to_have_count(0)
    assert model_of_alias(deployment) == WORSE


def test_refused_form_keeps_its_fields(console: Console, deployment: Deployment) -> None:
    console.expect_errors("status of 400")
    post(deployment, "/aliases", id=ALIAS, model=MODEL)
    tab = console.open(f"/promotions/new?alias={ALIAS}")
    tab.get_by_label("Candidate").select_option(MODEL)
    tab.get_by_label("Move it without a gate").check()
    tab.get_by_label("Reason").fill("again")
    move = tab.get_by_role("button", name="Move it now")
    move.click()
    expect(tab.get_by_role("alert")).to_contain_text("is the incumbent")
    expect(tab.get_by_label("Reason")).to_have_value("again")

    tab.get_by_label("Candidate").select_option(WORSE)
    move.click()
    expect(console.heading).to_have_text(f"{ALIAS} → {WORSE}")
    assert [row["target"]["model"] for row in get(deployment, "/promotions")["data"]] == [WORSE]

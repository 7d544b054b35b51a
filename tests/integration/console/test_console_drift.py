"""The pages of drift monitors: created from a file, checked, with distances against limits, a trend, and no texts."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from examples.corpus import docstrings
from jobs.db.engine import Database
from tests.support.console import HOSTILE, Console, Deployment, deployed
from tests.support.inline_deployment import MODEL, jsonl

pytestmark = pytest.mark.verify

TEXTS = [docstring.text for docstring in docstrings(240)]
#: The beginning of a text that nothing in the library is about, in another language.
GERMAN = "Wie kann ich meine Rechnung vom letzten Monat noch einmal herunterladen, ohne mich neu anzumelden?"
DRIFTED = [f"{GERMAN} {number}" if number % 3 == 0 else text for number, text in enumerate(TEXTS[1::2])]


@pytest.fixture
def deployment(sqlite: Database, tmp_path: Path) -> Iterator[Deployment]:
    """Yield a deployment whose fake model also embeds."""
    with deployed(sqlite, tmp_path, embedding_model=MODEL) as deployment:
        yield deployment


def post(deployment: Deployment, path: str, **body: Any) -> Any:
    return deployment.client.post(path, body=body, cast_to=object)


def text_lines(texts: Sequence[str]) -> bytes:
    return jsonl([{"input": text} for text in texts])


def upload(deployment: Deployment, texts: Sequence[str]) -> dict[str, str]:
    file = deployment.client.files.create(file=("texts.jsonl", text_lines(texts)), purpose="user_data")
    return {"type": "file", "file_id": file.id}


def create_monitor(deployment: Deployment, texts: Sequence[str], **fields: Any) -> Any:
    body = {"name": "Questions", "source": upload(deployment, texts)} | fields
    return post(deployment, "/drift_monitors", **body)


def written(value: float) -> str:
    """Return a distance with three digits."""
    return f"{value:#.3g}"


def check(deployment: Deployment, monitor: Any, texts: Sequence[str]) -> Any:
    """Return the check of texts at its end."""
    path = f"/drift_monitors/{monitor['id']}/checks"
    made = post(deployment, path, source=upload(deployment, texts))
    deployment.inline.drain(made["id"], timeout=120)
    return deployment.client.get(f"{path}/{made['id']}", cast_to=object)


def test_monitor_is_created_from_file_and_checked(console: Console, deployment: Deployment) -> None:
    tab = console.open("/drift")
    expect(tab.get_by_role("heading", name="No monitors yet")).to_be_visible()
    console.inspect("drift-empty")
    tab.get_by_role("button", name="New monitor").click()
    form = tab.get_by_role("dialog")
    form.get_by_label("Name").fill("Questions")
    expect(form.get_by_label("Baseline from")).to_be_visible()
    console.inspect("drift-new")
    form.get_by_label("Texts", exact=True).select_option("file")
    create = form.get_by_role("button", name="Create the monitor")
    expect(create).to_be_disabled()
    content: Any = {"name": "texts.jsonl", "mimeType": "text/plain", "buffer": text_lines(TEXTS[::2])}
    form.locator("input[type=file]").set_input_files(content)
    expect(form.get_by_label("File", exact=True)).to_contain_text("texts.jsonl")
    form.get_by_label("Texts of a check").fill("100")
    create.click()

    expect(console.heading).to_have_text("Questions")
    [monitor] = deployment.client.get("/drift_monitors", cast_to=object)["data"]  # type: ignore[index]
    assert (monitor["sample"], monitor["source"]["type"]) == (100, "file")
    tab.get_by_role("button", name="Check now").click()
    section = tab.get_by_role("region", name="Check", exact=True)
    expect(section).to_contain_text("queued")
    path = f"/drift_monitors/{monitor['id']}/checks"
    [listed] = deployment.client.get(path, cast_to=object)["data"]  # type: ignore[index]
    deployment.inline.drain(listed["id"], timeout=120)
    expect(section).to_contain_text("no drift")
    expect(section.get_by_role("row").filter(has_text="Lengths")).to_contain_text("100 / 100")
    console.inspect("drift-monitor")


def test_drift_is_shown_against_limits_with_trend_and_without_texts(console: Console, deployment: Deployment) -> None:
    monitor = create_monitor(deployment, TEXTS[::2])
    calm, drifted = check(deployment, monitor, TEXTS[1::2]), check(deployment, monitor, DRIFTED)
    assert (calm["is_drift"], drifted["is_drift"]) == (False, True)
    tab = console.open("/drift")
    row = tab.get_by_role("table", name="Monitors").get_by_role("row").filter(has_text="Questions")
    features = {feature["name"]: feature for feature in drifted["features"]}
    language = features["language"]
    shown = f"{written(language['value'])}, above {written(language['limit'])}"
    expect(row).to_contain_text(f"Languages {shown}")
    console.inspect("drift")

    row.get_by_role("link", name="Questions").click()
    section = tab.get_by_role("region", name="Check", exact=True)
    cells = section.get_by_role("row").filter(has_text="Languages").get_by_role("cell")
    expect(cells.nth(2)).to_have_text(written(language["value"]))
    expect(cells.nth(3)).to_have_text(written(language["limit"]))
    expect(cells.last).to_have_text("drift")
    trend = tab.get_by_role("region", name="Trend").get_by_role("img")
    multiple = f"Languages {language['value'] / language['limit']:.2f} "
    expect(trend).to_have_accessible_name(re.compile(re.escape(multiple)))
    checks = tab.get_by_role("table", name="Checks of Questions")
    expect(checks.locator("tbody tr")).to_have_count(2)
    console.inspect("drift-found")
    checks.get_by_role("link").last.click()
    expect(tab).to_have_url(f"{deployment.url}/console/drift/{monitor['id']}?check={calm['id']}")
    expect(section).to_contain_text("no drift")
    console.check_reload()
    assert GERMAN[:40] not in tab.content()
    assert not [text for text in TEXTS if len(text) > 40 and text[:40] in tab.content()]


def test_failed_baseline_is_named_and_replaced(console: Console, deployment: Deployment) -> None:
    monitor = create_monitor(deployment, TEXTS[:10])
    deployment.inline.drain(monitor["baseline"]["id"], timeout=60)
    tab = console.open(f"/drift/{monitor['id']}")
    expect(tab.locator("main")).to_contain_text("too_few_texts")
    expect(tab.get_by_role("button", name="Check now")).to_be_disabled()
    console.inspect("drift-failed")
    tab.get_by_role("button", name="New baseline").click()
    tab.get_by_role("button", name="Make the baseline").click()

    expect(tab.get_by_role("link", name=monitor["baseline"]["id"])).to_have_count(0)
    expect(tab.get_by_role("button", name="Check now")).to_be_enabled()


def test_monitor_is_deleted_after_question(console: Console, deployment: Deployment) -> None:
    monitor = create_monitor(deployment, TEXTS[::2], name=HOSTILE[:255])
    tab = console.open(f"/drift/{monitor['id']}")
    expect(console.heading).to_have_text(HOSTILE[:255])
    tab.get_by_role("button", name="Delete").click()
    tab.get_by_role("button", name="Keep it").click()
    tab.get_by_role("button", name="Delete").click()
    tab.get_by_role("button", name="Delete the monitor").click()

    expect(tab.get_by_role("heading", name="No monitors yet")).to_be_visible()
    assert deployment.client.get("/drift_monitors", cast_to=object)["data"] == []  # type: ignore[index]

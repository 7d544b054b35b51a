"""The pages of datasets: made, filled from files in versions, shown with their splits, and deleted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from jobs.db.engine import Database
from tests.support.console import HOSTILE, Console, Deployment, deployed
from tests.support.system import eventually

pytestmark = pytest.mark.verify

TOPICS = ("a refund", "a late parcel", "a broken lamp", "a new password")
TICKETS = [
    {"id": n, "customer": f"c{n % 9}", "text": f"Ticket {n} about {TOPICS[n % 4]}.", "topic": TOPICS[n % 4]}
    for n in range(60)
]


@pytest.fixture
def deployment(db: Database, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(db, tmp_path) as deployment:
        yield deployment


def jsonl_file(name: str, rows: list[Any]) -> Any:
    """Return a file to drop."""
    return {
        "name": name,
        "mimeType": "text/plain",
        "buffer": b"".join(json.dumps(row).encode() + b"\n" for row in rows),
    }


def datasets(deployment: Deployment, path: str = "") -> Any:
    return deployment.client.get(f"/datasets{path}", cast_to=object)


def create_dataset(deployment: Deployment, name: str = "tickets", **fields: Any) -> str:
    made: Any = deployment.client.post("/datasets", body={"name": name, **fields}, cast_to=object)
    return str(made["id"])


def add_version(deployment: Deployment, dataset_id: str, rows: list[Any]) -> Any:
    """Add a version and return it when its job has ended."""
    content = jsonl_file("tickets.jsonl", rows)["buffer"]
    file = deployment.client.files.create(file=("tickets.jsonl", content), purpose="user_data")
    body = {"sources": [{"type": "file_id", "id": file.id}]}
    made: Any = deployment.client.post(f"/datasets/{dataset_id}/versions", body=body, cast_to=object)
    deployment.inline.drain(made["id"])
    return datasets(deployment, f"/{dataset_id}/versions/{made['version']}")


def finish_version(deployment: Deployment) -> None:
    """Work until the newest version, which the console has made, is complete."""
    newest: list[Any] = []

    def is_made() -> bool:
        newest[:] = datasets(deployment, "/tickets/versions")["data"][:1]
        return bool(newest) and newest[0]["status"] in ("queued", "in_progress")

    eventually(is_made, 30, "the console has made the version")
    deployment.inline.drain(newest[0]["id"])


def test_dataset_is_made_and_filled_from_files(console: Console, deployment: Deployment) -> None:
    tab = console.open("/datasets")
    expect(tab.get_by_role("heading", name="No datasets yet")).to_be_visible()
    console.inspect("datasets-empty")
    tab.get_by_role("button", name="New dataset").click()
    dialog = tab.get_by_role("dialog", name="New dataset")
    dialog.get_by_label("Name", exact=True).fill("tickets")
    dialog.get_by_label("Description").fill("Tickets of the support team, without names.")
    dialog.get_by_label("Split", exact=True).select_option("group")
    dialog.get_by_label("Parts").fill("train=0.8, test")
    expect(dialog.get_by_role("button", name="Create the dataset")).to_be_disabled()
    dialog.get_by_label("Parts").fill("train=0.75, test=0.25")
    dialog.get_by_label("Value to split by").fill("/customer")
    console.inspect("dataset-new")
    dialog.get_by_role("button", name="Create the dataset").click()

    expect(console.heading).to_have_text("tickets")
    expect(tab.get_by_role("heading", name="No versions yet")).to_be_visible()
    tab.get_by_role("link", name="New version").first.click()
    files = [jsonl_file("may.jsonl", TICKETS[:40]), jsonl_file("june.jsonl", TICKETS[30:])]
    tab.locator("input[type=file]").set_input_files(files)
    sources = tab.get_by_role("list", name="Sources").get_by_role("listitem")
    expect(sources).to_have_count(2)
    tab.get_by_label("Keep only the first of equal rows").check()
    tab.get_by_text("Where the rows come from").click()
    tab.get_by_label("Git commit").fill("0a1b2c3")
    console.inspect("dataset-version-new")
    tab.get_by_role("button", name="Create the version").click()

    finish_version(deployment)
    splits = tab.get_by_role("table", name="Splits")
    expect(splits).to_contain_text("dataset:tickets@1/train")
    [version] = datasets(deployment, "/tickets/versions")["data"]
    assert (version["rows"], version["duplicates"], version["git_commit"]) == (60, 10, "0a1b2c3")
    facts = tab.get_by_role("region", name="Version 1")
    expect(facts).to_contain_text(version["sha256"])
    expect(facts.get_by_role("table", name="Sources").locator("tbody tr")).to_have_count(2)
    expect(splits.get_by_role("link", name=version["splits"][0]["file_id"])).to_be_visible()
    console.inspect("dataset")
    console.check_reload()
    splits.get_by_role("link", name="Train on train").click()
    expect(tab.get_by_label("Training file")).to_have_value("dataset:tickets@1/train")


def test_file_of_the_project_and_a_split_become_a_version(console: Console, deployment: Deployment) -> None:
    dataset_id = create_dataset(deployment)
    add_version(deployment, dataset_id, TICKETS[:30])
    tab = console.open(f"/datasets/{dataset_id}/versions/new")
    [file] = deployment.client.files.list(purpose="user_data").data
    tab.get_by_label("Add a file of the project").select_option(file.id)
    tab.get_by_label("Add by id").fill("dataset:tickets/all")
    tab.get_by_label("Add by id").press("Enter")
    tab.get_by_label("Add by id").fill("file-gone")
    tab.get_by_role("button", name="Add", exact=True).click()
    create = tab.get_by_role("button", name="Create the version")
    console.expect_errors("status of 400")
    create.click()
    expect(tab.get_by_role("alert")).to_contain_text("file-gone")
    tab.get_by_role("button", name="Remove file-gone").click()
    create.click()

    expect(tab.get_by_role("table", name="Sources")).to_contain_text("dataset:tickets@1/all")
    finish_version(deployment)
    expect(tab.get_by_role("table", name="Splits")).to_contain_text("dataset:tickets@2/all")
    assert datasets(deployment, "/tickets/versions/2")["rows"] == 60


def test_failed_version_names_the_line(console: Console, deployment: Deployment) -> None:
    dataset_id = create_dataset(deployment)
    add_version(deployment, dataset_id, [*TICKETS[:2], [HOSTILE]])

    tab = console.open(f"/datasets/{dataset_id}")

    errors = tab.get_by_role("table", name="Errors by line")
    expect(errors.locator("tbody tr")).to_contain_text("3")
    expect(tab.get_by_role("table", name="Versions")).to_contain_text("failed")
    console.inspect("dataset-failed")


def test_version_and_dataset_are_deleted(console: Console, deployment: Deployment) -> None:
    dataset_id = create_dataset(deployment, description=HOSTILE)
    for rows in (TICKETS[:10], TICKETS[:20]):
        add_version(deployment, dataset_id, rows)
    tab = console.open(f"/datasets/{dataset_id}?version=1")
    expect(tab.get_by_role("table", name="Splits")).to_contain_text("dataset:tickets@1/all")
    tab.get_by_role("button", name="Delete version 1").click()
    tab.get_by_role("button", name="Delete the version").click()

    expect(tab.get_by_role("table", name="Versions").locator("tbody tr")).to_have_count(1)
    expect(tab.get_by_role("table", name="Splits")).to_contain_text("dataset:tickets@2/all")
    assert [version["version"] for version in datasets(deployment, "/tickets/versions")["data"]] == [2]
    tab.get_by_role("button", name="Delete", exact=True).click()
    tab.get_by_role("button", name="Delete the dataset").click()
    expect(tab.get_by_role("heading", name="No datasets yet")).to_be_visible()
    assert datasets(deployment)["data"] == []

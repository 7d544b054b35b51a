"""The pages of files: dropped, sent in parts, looked into, downloaded, deleted; thousands of them page by page."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect
from sqlalchemy import select

from jobs.clock import now
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.security.tables import Project
from tests.support.console import HOSTILE, Console, Deployment, console_of, deployed
from tests.support.inline_deployment import chat_line, jsonl

pytestmark = pytest.mark.verify

NAME = "<img src=x onerror=alert(1)>.txt"
LARGE = 33_000_000  # bytes: three parts


def test_file_is_dropped_looked_into_and_deleted(console: Console) -> None:
    tab = console.open("/files")
    expect(tab.get_by_role("heading", name="No files yet")).to_be_visible()
    console.inspect("files-empty")

    tab.get_by_label("Purpose of new files").select_option("assistants")
    content = f"{HOSTILE}\n\u202eright to left\n{'x' * 100_000}\n".encode()
    tab.locator("input[type=file]").set_input_files({"name": NAME, "mimeType": "text/plain", "buffer": content})
    expect(tab.get_by_role("row", name=NAME)).to_contain_text("Documents")
    console.inspect("files")
    tab.get_by_role("link", name=NAME).click()

    expect(console.heading).to_have_text(NAME)
    lines = tab.get_by_label("First lines of the file").locator("li")
    expect(lines.first).to_have_text(HOSTILE)
    expect(tab.get_by_text("The file goes on, or has longer lines")).to_be_visible()
    expect(tab.get_by_text("No job has this file")).to_be_visible()
    console.inspect("file")
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download").click()
    assert Path(download.value.path()).read_bytes() == content

    tab.get_by_role("button", name="Delete").click()
    console.inspect("file-delete")
    tab.get_by_role("button", name="Keep it").click()
    tab.get_by_role("button", name="Delete").click()
    tab.get_by_role("button", name="Delete the file").click()
    expect(tab.get_by_role("heading", name="No files yet")).to_be_visible()


def test_report_of_a_migration_is_a_table(console: Console, deployment: Deployment) -> None:
    prompt = {"kind": "prompt", "id": "pmpt_ticket", "outcome": "same", "reason": ""}
    rows: list[dict[str, object]] = [prompt | {"origin_id": f"pmpt_{n}"} for n in range(203)]
    lost = "The weights of a tuned model cannot be exported."
    rows.append({"kind": "fine_tuning_job", "origin_id": "ftjob-1", "id": None, "outcome": "lost", "reason": lost})
    report = {"object": "migration.report", "created_at": 1_764_600_000, "source": "https://api.openai.com/v1"}
    counts = {"same": 203, "different": 0, "lost": 1, "failed": 0}
    content = json.dumps({**report, "applied": True, "counts": counts, "rows": rows}).encode()
    files = {name: deployment.client.files.create(file=(name, data), purpose="user_data").id for name, data in (
        ("migration-openai.json", content), ("migration-notes.json", b'{"object": "notes"}'),
    )}  # fmt: skip
    tab = console.open("/files")
    tab.get_by_role("link", name="migration-openai.json").click()
    table = tab.get_by_role("table", name="Objects")
    expect(table.locator("tbody tr")).to_have_count(200)
    tab.get_by_role("button", name="Show more").click()
    expect(table.locator("tbody tr")).to_have_count(204)
    expect(table.get_by_role("link", name="pmpt_ticket").first).to_be_visible()
    tab.get_by_label("Outcome").select_option("lost")
    expect(table.locator("tbody tr")).to_have_count(1)
    expect(table).to_contain_text(lost)
    console.inspect("file-report")

    tab = console.open(f"/files/{files['migration-notes.json']}")
    expect(tab.get_by_label("First lines of the file")).to_contain_text("notes")


def test_large_file_is_sent_in_parts(console: Console, deployment: Deployment, tmp_path: Path) -> None:
    large = tmp_path / "large.jsonl"
    large.write_bytes(b'{"a": 1}\n' * (LARGE // 9))
    tab = console.open("/files")

    tab.locator("input[type=file]").set_input_files(large)

    expect(tab.get_by_role("row", name="large.jsonl")).to_be_visible(timeout=60_000)
    expect(tab.get_by_label("Uploads")).to_have_count(0)
    [file] = deployment.client.files.list().data
    assert deployment.client.files.content(file.id).read() == large.read_bytes()
    assert len([url for url in console.urls if url.endswith("/parts")]) == 3


def test_upload_is_cancelled_here_and_on_the_server(console: Console, tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(LARGE))
    tab = console.open("/files")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    tab.route("**/parts", hold)

    tab.locator("input[type=file]").set_input_files(large)
    expect(tab.get_by_role("progressbar", name="Upload of large.bin")).to_be_visible()
    console.inspect("files-uploading")
    with tab.expect_response("**/cancel") as answer:
        tab.get_by_role("button", name="Cancel large.bin").click()

    assert answer.value.json()["status"] == "cancelled"
    expect(tab.get_by_label("Uploads")).to_contain_text("cancelled")
    tab.get_by_role("button", name="Dismiss large.bin").click()
    expect(tab.get_by_label("Uploads")).to_have_count(0)


def test_refused_file_says_why(browser: Browser, sqlite: Database, tmp_path: Path) -> None:
    with deployed(sqlite, tmp_path, file_max_bytes=10) as deployment, console_of(browser, deployment) as console:
        console.expect_errors("status of 4")
        tab = console.open("/files")

        tab.locator("input[type=file]").set_input_files({"name": "a", "mimeType": "text/plain", "buffer": b"x" * 100})

        expect(tab.get_by_label("Uploads").get_by_role("alert")).to_be_visible()
        console.inspect("files-refused")


def test_jobs_of_a_file_are_listed(console: Console, deployment: Deployment) -> None:
    client = deployment.client
    file = client.files.create(file=("in.jsonl", jsonl([chat_line("1", "Hi")])), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")

    tab = console.open(f"/files/{file.id}")

    expect(tab.get_by_role("table", name="Jobs")).to_contain_text(batch.id)
    console.inspect("file-jobs")


def test_thousands_of_files_come_page_by_page_and_by_purpose(console: Console, deployment: Deployment) -> None:
    with deployment.inline.db.write() as session:
        project = session.scalar(select(Project.id).where(Project.name == "default"))
        session.add_all(
            File(
                id=f"file-{n:05}", project_id=project, purpose="evals" if n == 0 else "batch", filename=f"{n}.jsonl",
                bytes=n, path=f"files/{n}", created_at=now() + n / 1e4,
            )
            for n in range(10_000)
        )  # fmt: skip
    tab = console.open("/files")

    rows = tab.get_by_role("table", name="Files").locator("tbody tr")
    expect(rows).to_have_count(100)
    tab.get_by_role("button", name="Load more").click()
    expect(rows).to_have_count(200)
    tab.get_by_label("Purpose", exact=True).select_option("evals")
    expect(rows).to_have_count(1)
    assert tab.url.endswith("/files?purpose=evals")
    tab.reload()
    expect(rows).to_have_count(1)


def test_file_of_another_project_is_not_there(console: Console) -> None:
    console.expect_errors("status of 404")
    tab = console.open("/files/file-of-nobody")

    expect(tab.get_by_role("alert")).to_contain_text("No such File object")
    console.inspect("file-missing")

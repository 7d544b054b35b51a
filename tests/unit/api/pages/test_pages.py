"""The pages of the server: open to all, whole without the internet, and telling nothing of a project."""

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.pages import console_files
from api.pages.routes import PATHS
from jobs.settings import Settings

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture
def client(shared_app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """Return a browser without a key, of a server without a console."""
    monkeypatch.setattr(console_files, "BUILD", tmp_path)
    return TestClient(shared_app, raise_server_exceptions=False, base_url="http://mill.test:8000")


def test_the_entrance_leads_to_the_pages_and_says_where_the_key_is(client: TestClient, shared_app: FastAPI) -> None:
    answer = client.get("/", headers=BROWSER)

    config: Settings = shared_app.state.services.config
    assert answer.headers["content-type"].startswith("text/html")
    links = set(re.findall(r'href="([^"]+)"', answer.text))
    assert {"/docs", "/openapi.json", f"http://127.0.0.1:{config.flower}"} <= links
    assert "OPENAI_BASE_URL=http://mill.test:8000/v1" in answer.text
    assert "operator.key" in answer.text
    assert "$" not in answer.text


@pytest.mark.parametrize("accept", ["*/*", "application/json", None])
def test_a_program_gets_the_links_as_json(client: TestClient, accept: str | None) -> None:
    answer = client.get("/", headers={} if accept is None else {"Accept": accept})

    assert answer.headers["vary"] == "Accept"
    found: dict[str, Any] = answer.json()
    assert (found["name"], found["api"], found["docs"]) == ("Nightmill", "/v1", "/docs")


def test_a_host_that_is_no_name_is_shown_as_text(client: TestClient) -> None:
    answer = client.get("/", headers={**BROWSER, "Host": 'x"><script>alert(1)</script>'})

    assert "<script" not in answer.text


@pytest.mark.parametrize("path", sorted(PATHS - {"/chat"}))
def test_a_page_needs_no_key_and_loads_from_its_server_alone(client: TestClient, path: str) -> None:
    answer = client.get(path, headers=BROWSER)

    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy.partition("style-src")[0]
    if answer.headers["content-type"].startswith("text/html"):
        sources = re.findall(r'(?:src|link[^>]*href)="([^"]+)"', answer.text)
        assert {source for source in sources if source != "data:,"} <= PATHS
        assert not re.search(r"<script(?![^>]*\bsrc=)", answer.text)
        assert not re.search(r"<style|\bstyle=|\bon[a-z]+=", answer.text)


def test_chat_leads_to_the_playground_of_the_console(client: TestClient) -> None:
    answer = client.get("/chat", headers=BROWSER, follow_redirects=False)

    assert (answer.status_code, answer.headers["location"]) == (307, "/console/playground")


def test_non_page_path_requires_key(client: TestClient) -> None:
    answers = [client.get(path, headers=BROWSER) for path in ("/docs/other.js", "/chat/../v1/files", "/v1/files")]

    assert [answer.status_code for answer in answers] == [401] * 3

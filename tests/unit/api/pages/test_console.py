"""The console's files and its sign-in: nothing of other folders, no key without a token, nothing cached too long."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.pages import console_files
from cli.up import readiness
from jobs.security.sign_in import create_token
from tests.support.web import running_app, serve

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
PAGE = '<!doctype html><script type="module" src="/console/assets/main-1a2b.js"></script>'


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a small build, beside a file that nobody may read."""
    folder = tmp_path / "console"
    (folder / "assets" / "inner").mkdir(parents=True)
    (folder / "index.html").write_text(PAGE)
    (folder / "assets" / "main-1a2b.js").write_text("plain")
    (folder / "assets" / "main-1a2b.js.br").write_text("brotli")
    (folder / "assets" / "main-1a2b.js.gz").write_text("gzip")
    (folder / "assets" / "style-3c4d.css").write_text("css")
    (folder / "assets" / ".hidden").write_text("secret")
    (folder / "assets" / "inner" / "file.js").write_text("secret")
    (tmp_path / "secret.js").write_text("secret")
    monkeypatch.setattr(console_files, "BUILD", folder)
    return folder


@pytest.fixture
def missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_files, "BUILD", tmp_path / "nothing")


@pytest.fixture
def browser(shared_app: FastAPI) -> TestClient:
    return TestClient(shared_app, raise_server_exceptions=False, follow_redirects=False, base_url="http://mill.test")


@pytest.mark.parametrize("path", ["", "jobs", "jobs/batch_1", "jobs/a/../b", "index.html", "%2e%2e/secret.js", "x.js"])
@pytest.mark.usefixtures("built")
def test_every_path_of_the_console_answers_its_page(browser: TestClient, path: str) -> None:
    answer = browser.get(f"/console/{path}", headers=BROWSER)

    assert (answer.status_code, answer.text) == (200, PAGE)
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["jobs", "assets/main-1a2b.js", "assets/none.js", "session"])
@pytest.mark.usefixtures("built")
def test_policy_of_every_answer_is_strict(browser: TestClient, path: str) -> None:
    headers = browser.get(f"/console/{path}", headers={"Accept-Encoding": "identity"}).headers

    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


@pytest.mark.parametrize(
    ("accepted", "encoding", "text"),
    [
        ("gzip, deflate, br, zstd", "br", "brotli"),
        ("gzip", "gzip", "gzip"),
        ("br;q=0, gzip;q=0.5", "gzip", "gzip"),
        ("GZIP", "gzip", "gzip"),
        ("identity", None, "plain"),
        ("br;q=0.000,gzip;q=0", None, "plain"),
        ("", None, "plain"),
    ],
)
@pytest.mark.usefixtures("built")
def test_assets_are_sent_in_encoding_accepted_by_client(
    browser: TestClient, accepted: str, encoding: str | None, text: str
) -> None:
    with browser.stream("GET", "/console/assets/main-1a2b.js", headers={"Accept-Encoding": accepted}) as answer:
        content = b"".join(answer.iter_raw()).decode()

    assert (content, answer.headers.get("content-encoding")) == (text, encoding)
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["vary"] == "Accept-Encoding"


@pytest.mark.usefixtures("built")
def test_asset_that_was_not_compressed_is_sent_as_it_is(browser: TestClient) -> None:
    answer = browser.get("/console/assets/style-3c4d.css", headers={"Accept-Encoding": "br, gzip"})

    assert (answer.text, answer.headers.get("content-encoding")) == ("css", None)


@pytest.mark.parametrize(
    "name",
    [
        "none-5e6f.js", "", "%2e", "%2e%2e", "%2e%2e/index.html", "%2e%2e/%2e%2e/secret.js",
        "..%2f..%2fsecret.js", "....//secret.js", "inner/file.js", "inner%2ffile.js", ".hidden", "inner",
        "//etc/passwd", "%2fetc%2fpasswd", "main-1a2b.js/", "..\\..\\secret.js",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("built")
def test_name_that_is_no_asset_is_answered_404_or_with_the_page(browser: TestClient, name: str) -> None:
    answer = browser.get(f"/console/assets/{name}", headers={"Accept-Encoding": "identity"})

    assert (answer.status_code, answer.text) == (200, PAGE) or answer.json()["error"]["code"] == "unknown_url"
    assert answer.status_code in (200, 404)


def test_without_a_build_the_page_says_how_to_make_it(browser: TestClient, missing: None) -> None:
    answer = browser.get("/console/jobs", headers=BROWSER)

    assert answer.status_code == 503
    assert "make console" in answer.text
    assert "console" not in browser.get("/").json()
    assert browser.get("/", headers=BROWSER).status_code == 200
    assert browser.get("/v1/files").status_code == 401


@pytest.mark.usefixtures("built")
def test_root_redirects_browser_and_shows_console_path_to_program(browser: TestClient) -> None:
    answers = [browser.get(path, headers=BROWSER) for path in ("/", "/console")]
    links = browser.get("/")

    assert [(answer.status_code, answer.headers["location"]) for answer in answers] == [(307, "/console/")] * 2
    assert answers[0].headers["vary"] == links.headers["vary"] == "Accept"
    assert (links.json()["console"], links.json()["api"]) == ("/console/", "/v1")


def test_command_finds_the_console_of_a_server(shared_app: FastAPI, built: Path) -> None:
    with serve(shared_app) as url:
        path = readiness.console_path(url)
        (built / "index.html").unlink()
        unbuilt = readiness.console_path(url)
    gone = readiness.console_path(url)

    assert (path, unbuilt, gone) == ("/console/", "", "")


@pytest.mark.parametrize("path", ["/consoles", "/console.js", "/Console/", "/files"])
@pytest.mark.usefixtures("built")
def test_other_paths_still_take_a_key(browser: TestClient, path: str) -> None:
    answer = browser.get(path, headers=BROWSER)

    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "missing_api_key")


@pytest.fixture
def token(shared_app: FastAPI) -> str:
    folder = shared_app.state.services.config.data_dir
    (folder / "operator.key").write_text("nm_operator\n")
    return create_token(folder, 900)


def test_token_is_exchanged_for_the_operators_key_once(
    browser: TestClient, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        answer, again = (browser.post("/console/session", json={"token": token}) for _ in range(2))

    assert answer.json() == {"api_key": "nm_operator"}
    assert answer.headers["cache-control"] == "no-store"
    error = again.json()["error"]
    assert (again.status_code, error["code"], error["type"]) == (401, "invalid_sign_in_token", "invalid_request_error")
    assert "`nightmill console`" in error["message"]
    assert token not in caplog.text


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"token": "x"}, 401, "invalid_sign_in_token"),
        ({"token": ""}, 401, "invalid_sign_in_token"),
        ({"token": "../../operator.key"}, 401, "invalid_sign_in_token"),
        ({"token": "x" * 201}, 400, "string_above_max_length"),
        ({"token": 7}, 400, "invalid_type"),
        ({"token": None}, 400, "invalid_type"),
        ({}, 400, "missing_required_parameter"),
        ({"token": "x", "key": "y"}, 400, "unknown_parameter"),
        ([], 400, "invalid_type"),
        ({"token": "x", "more": "y" * 5000}, 413, "request_too_large"),
    ],
)
def test_bad_sign_in_is_refused_and_uses_up_no_token(
    browser: TestClient, token: str, body: Any, status: int, code: str | None
) -> None:
    answer = browser.post("/console/session", json=body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert browser.post("/console/session", json={"token": token}).status_code == 200


@pytest.mark.parametrize("content", ["", "{", '{"token": "x", "token": "y"}', '{"token": "\\u0000"}', "token=x"])
def test_body_that_is_no_object_of_json_is_refused(browser: TestClient, content: str) -> None:
    answer = browser.post("/console/session", content=content, headers={"Content-Type": "application/json"})

    assert answer.status_code == 400
    assert set(json.loads(answer.text)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_form_of_another_site_is_refused(browser: TestClient, kind: str) -> None:
    answer = browser.post("/console/session", content="token=x", headers={"Content-Type": kind})

    assert answer.status_code == 415


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_other_methods_are_not_allowed(browser: TestClient, method: str) -> None:
    answers = [browser.request(method, path) for path in ("/console/session", "/console/jobs")]

    assert [answer.status_code for answer in answers] == [405] * 2


def test_wrong_tokens_are_rate_limited_and_valid_token_still_works(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "operator.key").write_text("nm_operator\n")
    with running_app(tmp_path, sqlite_url, wrong_keys_per_minute=3) as app:
        browser = TestClient(app, raise_server_exceptions=False)
        refused = [browser.post("/console/session", json={"token": f"{n}"}).status_code for n in range(4)]
        key = browser.get("/v1/files").status_code
        right = browser.post("/console/session", json={"token": create_token(tmp_path, 900)})

    assert refused == [401, 401, 401, 429]
    assert key == 401  # without a key nothing is guessed
    assert right.json() == {"api_key": "nm_operator"}

"""The login to Flower at a real OpenID Connect server: whom it lets in, and for how long."""

import base64
import http.cookiejar
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

import pytest
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.security import accounts
from jobs.security.tables import Account
from tests.support.identity_provider import IdentityProvider, identity_provider
from tests.support.system import ROOT, eventually, free_port

pytestmark = pytest.mark.timeout(180)


class Browser:
    """A browser without redirects, but with cookies. `url` is where Flower is."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPCookieProcessor(self._jar))

    def cookies(self) -> dict[str, tuple[bool, str | None]]:
        """Return the cookies by name: whether they are hidden from scripts, and to which sites they are sent."""
        return {
            cookie.name: (cookie.has_nonstandard_attr("HttpOnly"), cookie.get_nonstandard_attr("SameSite"))
            for cookie in self._jar
        }

    def get(self, path: str, password: str = "") -> tuple[int, str]:
        """Return the status of an answer, and where it leads."""
        request = urllib.request.Request(urllib.parse.urljoin(self.url, path))
        if password:
            request.add_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
        try:
            with self._opener.open(request, timeout=30) as answer:
                return answer.status, ""
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Location"] or ""

    def log_in(self, provider: IdentityProvider, subject: str) -> int:
        """Log in at the provider, and return the status of Flower's answer."""
        return self.get(provider.approve(self.get("/login")[1], subject))[0]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        return None


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdentityProvider]:
    with identity_provider(tmp_path_factory.mktemp("provider")) as running:
        for name in ("ada", "eva", "eve"):
            running.set_person(name, email=f"{name}@example.com", email_verified=True)
        yield running


@pytest.fixture(scope="module")
def flower(
    tmp_path_factory: pytest.TempPathFactory, provider: IdentityProvider, shared_sqlite: Database
) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "FLOWER_BASIC_AUTH": "nightmill:sesame",
        "NIGHTMILL_FLOWER_PORT": str(port),
        "NIGHTMILL_BROKER_URL": "memory://",
        "NIGHTMILL_DATA_DIR": str(tmp_path_factory.mktemp("flower")),
        "NIGHTMILL_DATABASE_URL": shared_sqlite.url,
        "NIGHTMILL_OIDC_ISSUER": provider.issuer,
        "NIGHTMILL_OIDC_CLIENT_ID": "nightmill",
        "NIGHTMILL_OIDC_CLIENT_SECRET": "a secret of the client",
        "NIGHTMILL_OIDC_ALLOW_PRIVATE": "true",
    }

    def answers() -> bool:
        try:
            return Browser(url).get("/healthcheck")[0] == 200
        except OSError:
            return False

    command = [sys.executable, "-m", "workers.flower"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(answers, 60, "Flower answers")
            yield url
        finally:
            process.terminate()


@pytest.fixture
def people(sqlite: Database) -> Database:
    """Invite an owner and a reader; the database is empty after each test."""
    with sqlite.write() as session:
        for name, role in (("ada", "owner"), ("eva", "reader")):
            accounts.invite(session, f"{name}@example.com", role, [], actor="operator", request_id=None)
    return sqlite


@pytest.mark.parametrize("path", ["/", "/workers", "/api/workers"])
def test_page_leads_to_the_login(flower: str, path: str) -> None:
    status, location = Browser(flower).get(path)

    assert (status, urllib.parse.urlsplit(location).path) == (302, "/login")


def test_metrics_are_refused_without_a_login(flower: str) -> None:
    assert Browser(flower).get("/metrics")[0] == 401


def test_owner_sees_flower_until_removed(flower: str, provider: IdentityProvider, people: Database) -> None:
    browser = Browser(flower)
    browser.get("/login")
    of_attempt = browser.cookies()

    assert browser.log_in(provider, "ada") == 302
    assert (of_attempt, browser.cookies()) == ({"login": (True, "lax")}, {"user": (True, "lax")})
    assert [browser.get(path)[0] for path in ("/", "/workers", "/metrics")] == [200, 200, 200]

    with people.write() as session:
        accounts.remove(session, session.scalars(select(Account)).one(), actor="operator", request_id=None)

    assert browser.get("/workers")[0] == 302


def test_reader_of_the_organization_sees_nothing(flower: str, provider: IdentityProvider, people: Database) -> None:
    browser = Browser(flower)
    browser.log_in(provider, "eva")

    assert browser.get("/workers")[0] == 302


def test_person_without_an_invite_is_refused(flower: str, provider: IdentityProvider, people: Database) -> None:
    browser = Browser(flower)

    assert browser.log_in(provider, "eve") == 403
    assert browser.get("/workers")[0] == 302


def test_login_of_another_browser_is_refused(flower: str, provider: IdentityProvider, people: Database) -> None:
    answer = provider.approve(Browser(flower).get("/login")[1], "ada")
    browser = Browser(flower)
    browser.get("/login")

    assert [browser.get(answer)[0], Browser(flower).get(answer)[0]] == [403, 403]
    assert browser.get("/workers")[0] == 302


def test_made_up_cookie_opens_nothing(flower: str) -> None:
    request = urllib.request.Request(f"{flower}/metrics", headers={"Cookie": "user=user_1"})

    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=30)


def test_password_opens_flower_besides_the_login(flower: str) -> None:
    browser = Browser(flower)

    assert [browser.get("/workers", f"nightmill:{word}")[0] for word in ("sesame", "wrong")] == [200, 401]

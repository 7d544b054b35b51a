"""The login of people at a real OpenID Connect server: what it gives, what is refused, and how it ends."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from jobs.security import accounts, keys, roles
from jobs.security.tables import Account, AccountGroup, ApiKey
from jobs.timings import Timings
from tests.support.identity_provider import IdentityProvider, identity_provider
from tests.support.organization import admin_key, project_id

URL = "http://mill.test"
ADA = {"email": "Ada@Example.com", "email_verified": True, "name": "Ada"}


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdentityProvider]:
    with identity_provider(tmp_path_factory.mktemp("provider")) as running:
        yield running


@pytest.fixture
def app(make_app: Callable[..., FastAPI], provider: IdentityProvider) -> FastAPI:
    provider.set_person("ada", **ADA)
    return make_app(
        timings=Timings(trusted=0.0, provider_keys=0.0),
        oidc_issuer=provider.issuer,
        oidc_client_id="nightmill",
        oidc_client_secret="a secret of the client",
        oidc_allow_private=True,
        public_url=URL,
    )


@pytest.fixture
def browser(app: FastAPI) -> TestClient:
    return browser_of(app)


def browser_of(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False, follow_redirects=False, base_url=URL)


def invite(app: FastAPI, email: str = "ada@example.com", role: str = "owner", **projects: str) -> None:
    memberships = [{"id": project_id(app, name), "role": role} for name, role in projects.items()]
    with app.state.services.db.write() as session:
        accounts.invite(session, email, role, memberships, actor="operator", request_id=None)


def come_back(browser: TestClient, provider: IdentityProvider, subject: str = "ada") -> Any:
    """Log in at the provider, and return the answer to the browser that comes back."""
    return browser.get(provider.approve(browser.get("/login").headers["location"], subject))


def log_in(browser: TestClient, provider: IdentityProvider, subject: str = "ada") -> dict[str, Any]:
    """Log in, and return the keys of the session."""
    token = come_back(browser, provider, subject).headers["location"].removeprefix("/console/#token=")
    answer = browser.post("/console/session", json={"token": token})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def get(app: FastAPI, path: str, key: str) -> int:
    return browser_of(app).get(f"/v1{path}", headers={"Authorization": f"Bearer {key}"}).status_code


def error_code(answer: Any) -> str:
    return str(answer.json()["error"]["code"])


def count_accounts(app: FastAPI) -> int:
    with app.state.services.db.read() as session:
        return session.scalar(select(func.count()).select_from(Account)) or 0


def test_invited_person_gets_keys_of_the_session(
    app: FastAPI, browser: TestClient, provider: IdentityProvider, caplog: pytest.LogCaptureFixture
) -> None:
    invite(app, Search="member")

    with caplog.at_level(logging.DEBUG):
        session = log_in(browser, provider)

    assert [get(app, "/organization/users", session["admin_key"]), get(app, "/files", session["api_key"])] == [200, 200]
    assert session["api_keys"] == [session["api_key"]]
    with app.state.services.db.read() as database:
        account = database.scalars(select(Account)).one()
        key = database.get_one(ApiKey, keys.id_of(session["api_key"]))
    assert (account.email, account.name, account.subject) == ("ada@example.com", "Ada", "ada")
    assert account.issuer == provider.issuer
    assert (key.owner_id, key.project_id) == (account.id, project_id(app, "Search"))
    assert key.expires_at is not None
    assert 0 < key.expires_at - key.created_at <= 12 * 3600
    for secret in (session["api_key"], session["admin_key"], "a secret of the client"):
        assert secret not in caplog.text


def test_person_without_a_role_of_the_organization_gets_no_admin_key(
    app: FastAPI, browser: TestClient, provider: IdentityProvider
) -> None:
    invite(app, role="reader", Search="member")
    user_id = account_id(app, browser, provider)
    with app.state.services.db.write() as session:
        roles.unassign(session, user_id, "", ["role-org-reader"])

    session = log_in(browser, provider)

    assert session["admin_key"] is None
    assert len(session["api_keys"]) == 1


def account_id(app: FastAPI, browser: TestClient, provider: IdentityProvider) -> str:
    """Log in for the first time; return the id of the user."""
    log_in(browser, provider)
    with app.state.services.db.read() as session:
        return session.scalars(select(Account.id)).one()


def test_token_opens_a_single_session(app: FastAPI, browser: TestClient, provider: IdentityProvider) -> None:
    invite(app)
    token = come_back(browser, provider).headers["location"].partition("=")[2]

    answers = [browser.post("/console/session", json={"token": token}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 401]
    assert error_code(answers[1]) == "invalid_sign_in_token"


def test_token_opens_a_session_only_in_the_browser_that_logged_in(
    app: FastAPI, browser: TestClient, provider: IdentityProvider
) -> None:
    invite(app)
    token = come_back(browser, provider).headers["location"].partition("=")[2]
    other = browser_of(app)

    without_cookie = other.post("/console/session", json={"token": token})
    other.get("/login")
    with_another = other.post("/console/session", json={"token": token})

    assert [error_code(without_cookie), error_code(with_another)] == ["invalid_sign_in_token"] * 2
    assert browser.post("/console/session", json={"token": token}).json()["admin_key"]


def test_person_without_an_invite_is_refused(app: FastAPI, browser: TestClient, provider: IdentityProvider) -> None:
    answer = come_back(browser, provider)

    assert (answer.status_code, error_code(answer)) == (403, "not_invited")
    assert count_accounts(app) == 0


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"nonce": "another"}, "login_failed"),
        ({"nonce": None}, "login_failed"),
        ({"aud": "another client"}, "login_failed"),
        ({"azp": "another client"}, "login_failed"),
        ({"iss": "https://evil.example.com"}, "login_failed"),
        ({"exp": 1}, "login_failed"),
        ({"exp": "tomorrow"}, "login_failed"),
        ({"iat": 1 << 40}, "login_failed"),
        ({"email_verified": False}, "email_not_verified"),
        ({"email_verified": "true"}, "email_not_verified"),
        ({"email": None}, "email_not_verified"),
        ({"email": ["ada@example.com"]}, "email_not_verified"),
    ],
)
def test_wrong_id_token_is_refused(
    app: FastAPI, browser: TestClient, provider: IdentityProvider, claims: dict[str, Any], code: str
) -> None:
    invite(app)
    provider.set_person("ada", **ADA | claims)

    answer = come_back(browser, provider)

    assert (answer.status_code, error_code(answer)) == (401, code)
    assert count_accounts(app) == 0


def test_id_token_without_the_claim_of_a_verified_address_is_refused(
    app: FastAPI, browser: TestClient, provider: IdentityProvider
) -> None:
    invite(app)
    provider.set_person("ada", email="ada@example.com")

    assert error_code(come_back(browser, provider)) == "email_not_verified"


def test_login_ends_only_in_the_browser_in_which_it_began(
    app: FastAPI, browser: TestClient, provider: IdentityProvider
) -> None:
    invite(app)
    back = provider.approve(browser.get("/login").headers["location"], "ada")
    other = browser_of(app)
    without = other.get(back)
    other.get("/login")
    with_another = other.get(back)

    assert [error_code(without), error_code(with_another)] == ["login_failed"] * 2
    assert count_accounts(app) == 0
    assert browser.get(back).status_code == 303


def test_replayed_state_is_refused(app: FastAPI, browser: TestClient, provider: IdentityProvider) -> None:
    invite(app)
    begun = browser.get("/login")
    back = provider.approve(begun.headers["location"], "ada")
    cookies = dict(browser.cookies)
    first, second = browser.get(back), browser.get(back)
    browser.cookies.update(cookies)
    third = browser.get(back)

    assert [first.status_code, second.status_code, third.status_code] == [303, 401, 401]
    assert begun.headers["set-cookie"].lower().count("httponly") == 1
    assert "samesite=lax" in begun.headers["set-cookie"].lower()


@pytest.mark.parametrize("verifier", ["", "v" * 43])
def test_code_without_its_verifier_is_refused(
    app: FastAPI, browser: TestClient, provider: IdentityProvider, verifier: str
) -> None:
    invite(app)
    back = provider.approve(browser.get("/login").headers["location"], "ada")
    [(name, secrets)] = browser.cookies.items()
    state_and_nonce, _, _ = secrets.rpartition(".")

    answers = []
    for value in (f"{state_and_nonce}.{verifier}", secrets):
        browser.cookies.clear()
        browser.cookies.set(name, value)
        answers.append(browser.get(back))

    assert (answers[0].status_code, error_code(answers[0])) == (401, "login_failed")
    assert answers[1].status_code == 303


@pytest.mark.parametrize("query", ["", "?error=access_denied&state=x", "?code=x", "?state=x", "?code=x&state=y"])
def test_callback_without_a_login_is_refused(browser: TestClient, query: str) -> None:
    browser.get("/login")

    answer = browser.get(f"/login/callback{query}")

    assert (answer.status_code, error_code(answer)) == (401, "login_failed")


def test_new_key_of_the_provider_is_fetched(app: FastAPI, browser: TestClient, provider: IdentityProvider) -> None:
    invite(app)
    log_in(browser, provider)
    provider.restart()
    provider.set_person("ada", **ADA)

    assert log_in(browser, provider)["admin_key"]


def test_account_is_bound_to_the_subject_and_not_to_the_address(
    app: FastAPI, browser: TestClient, provider: IdentityProvider
) -> None:
    invite(app)
    user_id = account_id(app, browser, provider)
    provider.set_person("eva", **ADA)
    provider.set_person("ada", **ADA | {"email": "ada@new.example.com"})

    impostor = come_back(browser, provider, "eva")
    log_in(browser, provider)

    assert error_code(impostor) == "not_invited"
    with app.state.services.db.read() as session:
        assert session.get_one(Account, user_id).email == "ada@new.example.com"


def test_removed_user_is_refused_at_once_and_needs_a_new_invite(
    app: FastAPI, browser: TestClient, provider: IdentityProvider
) -> None:
    invite(app, role="reader", Search="member")
    user_id = account_id(app, browser, provider)
    session = log_in(browser, provider)
    token = come_back(browser, provider).headers["location"].partition("=")[2]
    headers = {"Authorization": f"Bearer {admin_key(app)}"}

    assert browser_of(app).delete(f"/v1/organization/users/{user_id}", headers=headers).status_code == 200

    assert [get(app, "/organization/users", session["admin_key"]), get(app, "/files", session["api_key"])] == [401, 401]
    assert browser.post("/console/session", json={"token": token}).status_code == 401
    assert error_code(come_back(browser, provider)) == "not_invited"
    invite(app)
    assert account_id_of_new(app, browser, provider) != user_id


def account_id_of_new(app: FastAPI, browser: TestClient, provider: IdentityProvider) -> str:
    log_in(browser, provider)
    with app.state.services.db.read() as session:
        return session.scalars(select(Account.id).where(Account.deleted_at.is_(None))).one()


def test_group_of_the_claim_gives_and_takes_roles(
    app: FastAPI, browser: TestClient, provider: IdentityProvider
) -> None:
    invite(app, role="reader", Search="viewer")
    search = project_id(app, "Search")
    with app.state.services.db.write() as session:
        session.add(AccountGroup(id="group_x", name="Search", claim="search-team", created_at=1.0))
        roles.assign(session, "role-project-member", "group_x", search, "operator")
    user_id = account_id(app, browser, provider)
    with app.state.services.db.write() as session:
        roles.unassign(session, user_id, "", ["role-org-reader"])
    provider.set_person("ada", **ADA, groups=["search-team", 7, "other"])
    inside = log_in(browser, provider)["api_key"]
    before = get(app, "/vector_stores", inside)
    provider.set_person("ada", **ADA, groups=["other"])
    come_back(browser, provider)

    assert (before, get(app, "/vector_stores", inside)) == (200, 403)


def test_logout_ends_all_keys_of_the_session_alone(
    app: FastAPI, browser: TestClient, provider: IdentityProvider
) -> None:
    invite(app, Search="member", Other="member")
    first, second = log_in(browser, provider), log_in(browser, provider)

    answer = browser.post("/logout", headers={"Authorization": f"Bearer {first['api_keys'][1]}"})
    foreign = browser.post("/logout", headers={"Authorization": f"Bearer {admin_key(app)}"})

    assert answer.json() == {"object": "session.deleted", "deleted": True}
    assert [get(app, "/files", key) for key in first["api_keys"]] == [401, 401]
    assert get(app, "/organization/users", first["admin_key"]) == 401
    assert [get(app, "/files", key) for key in second["api_keys"]] == [200, 200]
    assert error_code(foreign) == "no_session"


def test_logout_ends_admin_keys_and_leaves_keys_of_service_accounts(
    app: FastAPI, browser: TestClient, provider: IdentityProvider
) -> None:
    invite(app, Search="member")
    headers = {"Authorization": f"Bearer {log_in(browser, provider)['admin_key']}"}
    accounts_url = f"/v1/organization/projects/{project_id(app, 'Search')}/service_accounts"
    nightly = browser.post(accounts_url, json={"name": "nightly"}, headers=headers).json()["api_key"]["value"]
    child = browser.post("/v1/organization/admin_api_keys", json={"name": "child"}, headers=headers).json()["value"]
    before = [get(app, "/files", nightly), get(app, "/organization/users", child)]

    browser.post("/logout", headers=headers)

    assert (before, get(app, "/files", nightly), get(app, "/organization/users", child)) == ([200, 200], 200, 401)


def test_deployment_without_a_provider_has_no_login(make_app: Callable[..., FastAPI]) -> None:
    browser = browser_of(make_app())

    assert [error_code(browser.get("/login")), error_code(browser.get("/login/callback?code=x&state=y"))] == [
        "login_not_configured",
        "login_failed",
    ]


def test_provider_at_a_private_address_is_not_asked(
    make_app: Callable[..., FastAPI], provider: IdentityProvider
) -> None:
    app = make_app(oidc_issuer=provider.issuer, oidc_client_id="nightmill", public_url=URL)

    answer = browser_of(app).get("/login")

    assert (answer.status_code, "not allowed" in answer.json()["error"]["message"]) == (503, True)


def test_silent_provider_is_answered_503(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(
        oidc_issuer="http://127.0.0.1:9", oidc_client_id="nightmill", oidc_allow_private=True, public_url=URL
    )

    answers = [browser_of(app).get("/login") for _ in range(2)]

    assert [answer.status_code for answer in answers] == [503, 503]

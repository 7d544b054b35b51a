"""The way into the console: no key, a wrong key, a link of `up`, sign out, and what the browser may not do."""

import pytest
from playwright.sync_api import Browser, expect

from jobs.security.keys import revoke_key
from jobs.security.sign_in import create_token
from tests.support.console import Console, Deployment, console_of
from tests.support.web import make_key

pytestmark = pytest.mark.verify


def stored(console: Console) -> dict[str, str]:
    entries: dict[str, str] = console.tab.evaluate("({ ...sessionStorage })")
    return entries


def test_console_without_key_shows_key_form(visitor: Console) -> None:
    tab = visitor.open("/jobs")

    expect(tab.get_by_label("API key")).to_be_visible()
    expect(tab.get_by_role("navigation")).to_have_count(0)
    tab.get_by_text("Where is my key?").click()
    expect(tab.get_by_text("nightmill keys create")).to_be_visible()
    visitor.inspect("gate")
    assert not [url for url in visitor.urls if "/v1/" in url]


def test_wrong_key_is_refused_and_right_key_opens_console(visitor: Console, deployment: Deployment) -> None:
    visitor.expect_errors("status of 401")
    tab = visitor.open()
    tab.get_by_label("API key").fill("nm-of-nobody")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("alert")).to_contain_text("Incorrect API key")
    assert stored(visitor) == {}
    visitor.inspect("gate-refused")

    tab.get_by_label("API key").fill(f" {deployment.key} ")
    tab.get_by_role("button", name="Sign in").click()

    expect(tab.get_by_role("heading", name="Overview")).to_be_visible()
    tab.reload()
    expect(tab.get_by_role("heading", name="Overview")).to_be_visible()


def test_link_of_up_signs_in_once(visitor: Console, browser: Browser, deployment: Deployment) -> None:
    token = create_token(deployment.inline.config.data_dir, 900)
    tab = visitor.open(f"/#token={token}")

    expect(tab.get_by_role("heading", name="Overview")).to_be_visible()
    assert stored(visitor)["nightmill.key"] == deployment.key
    assert tab.url == f"{deployment.url}/console/"
    assert not [url for url in visitor.urls if token in url]

    with console_of(browser, deployment, signed_in=False) as other:
        other.expect_errors("status of 401")
        other.open(f"/#token={token}")
        expect(other.tab.get_by_role("alert")).to_contain_text("This sign-in link was used before")
        expect(other.tab.get_by_label("API key")).to_be_visible()
        assert stored(other) == {}


def test_link_signs_in_a_tab_that_shows_the_console_already(visitor: Console, deployment: Deployment) -> None:
    tab = visitor.open()
    expect(tab.get_by_label("API key")).to_be_visible()

    tab.goto(f"{deployment.url}/console/#token={create_token(deployment.inline.config.data_dir, 900)}")

    expect(tab.get_by_role("heading", name="Overview")).to_be_visible()
    expect(tab).to_have_url(f"{deployment.url}/console/")


def test_project_stands_at_the_top_and_can_be_switched(console: Console, deployment: Deployment) -> None:
    tab = console.open("/jobs")
    projects = tab.get_by_label("Project")
    expect(projects.locator("option:checked")).to_have_text("default")

    projects.select_option("Another project …")
    tab.get_by_role("dialog").get_by_label("API key").fill(make_key(deployment.app, "another"))
    tab.keyboard.press("Enter")
    expect(projects.locator("option:checked")).to_have_text("another")
    console.inspect("project-switched")
    tab.reload()
    expect(projects.locator("option:checked")).to_have_text("another")
    projects.select_option("default")

    expect(projects.locator("option:checked")).to_have_text("default")
    expect(console.heading).to_have_text("Overview")
    assert stored(console)["nightmill.key"] == deployment.key


def test_browser_is_led_from_the_address_of_the_server(console: Console) -> None:
    console.tab.goto(f"{console.deployment.url}/")

    expect(console.tab).to_have_url(f"{console.deployment.url}/console/")
    expect(console.heading).to_have_text("Overview")


def test_sign_out_forgets_both_keys(operator: Console) -> None:
    operator.expect_errors("status of 400")  # the keys are of no login that could be ended
    tab = operator.open()
    tab.get_by_role("button", name="Sign out").click()

    expect(tab.get_by_label("API key")).to_be_visible()
    assert stored(operator) == {}
    tab.reload()
    expect(tab.get_by_label("API key")).to_be_visible()


def test_key_that_was_revoked_leads_to_the_gate(console: Console, deployment: Deployment) -> None:
    console.expect_errors("status of 401")
    console.open()
    with deployment.inline.db.write() as session:
        revoke_key(session, deployment.key.split("_")[1])

    console.tab.wait_for_timeout(2_500)  # a good answer about a key holds for two seconds
    console.tab.reload()

    expect(console.tab.get_by_label("API key")).to_be_visible()
    expect(console.tab.get_by_role("alert")).to_contain_text("The API key was revoked.")


def test_unknown_page_says_so(console: Console) -> None:
    tab = console.open("/no/such/page")

    expect(console.heading).to_have_text("Not found")
    tab.get_by_role("link", name="Go to the overview").click()
    expect(console.heading).to_have_text("Overview")


def test_whole_frame_is_reached_by_keyboard(console: Console) -> None:
    tab = console.open()
    tab.keyboard.press("Tab")
    expect(tab.get_by_role("link", name="Skip to the content")).to_be_focused()
    tab.keyboard.press("Enter")
    expect(tab.locator("main")).to_be_focused()

    console.inspect("overview-empty")


def test_theme_that_was_chosen_stays_after_a_reload(console: Console) -> None:
    tab = console.open()
    tab.get_by_label("Theme").select_option("dark")
    dark = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    tab.reload()
    expect(console.heading).to_be_visible()

    assert tab.evaluate("getComputedStyle(document.documentElement).backgroundColor") == dark
    tab.get_by_label("Theme").select_option("light")
    assert tab.evaluate("getComputedStyle(document.documentElement).backgroundColor") != dark


@pytest.mark.parametrize(
    "wrong",
    [
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.bad = 1' }))",
        "fetch('http://127.0.0.1:9/').catch(() => null)",
        "localStorage.setItem('key', sessionStorage.getItem('nightmill.key'))",
        "document.title = 'broken'",
    ],
)
def test_harness_check_fails_on_forbidden_tab_behaviour(console: Console, wrong: str) -> None:
    console.open()
    console.check()
    console.tab.evaluate(wrong)
    console.tab.wait_for_timeout(200)  # until the browser has reported it

    with pytest.raises(AssertionError):
        console.check()

    assert console.tab.evaluate("window.bad ?? null") is None
    console.errors.clear()
    console.tab.evaluate("localStorage.clear(); document.title = ''")


def test_harness_reports_axe_findings(console: Console) -> None:
    console.open()
    console.tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<button></button><img src=\"data:,\">')")

    assert [finding.partition(":")[0] for finding in console.findings()] == ["button-name", "image-alt"]

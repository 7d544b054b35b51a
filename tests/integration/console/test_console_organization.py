"""The pages of the organization for an admin key: usage, budgets, projects, people, keys and limits."""

import csv
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

import pytest
from openai import OpenAI
from openai.resources.admin.organization import Organization
from playwright.sync_api import Locator, Page, expect
from sqlalchemy import select

from jobs.clock import now
from jobs.security import keys
from jobs.security.keys import ensure_project
from jobs.security.tables import ServiceAccount
from jobs.usage.budgets import MICROS_PER_CENT, change_limit
from jobs.usage.minutes import month_of
from jobs.usage.tables import Reservation, Spend, UsageMinute
from tests.support.console import Console, Deployment
from tests.support.organization import add_user

pytestmark = pytest.mark.verify

DAY: Final = 86_400
DAYS: Final = 30
MICROS: Final = 1_000_000
#: Dollars for a million tokens of input and output by model; None: the model has no price.
MODELS: Final = {"qwen2.5-7b-instruct": (0.4, 1.2), "smollm2-135m-instruct": (0.05, 0.1), "all-minilm-l6-v2": None}
#: Requests of a project on a day, about.
PROJECTS: Final = {"support": 900, "search": 2400, "reports": 600}


@pytest.fixture
def organization(deployment: Deployment) -> Iterator[Organization]:
    with OpenAI(admin_api_key=deployment.operator_key, base_url=f"{deployment.url}/v1", max_retries=0) as client:
        yield client.admin.organization


@pytest.fixture
def projects(deployment: Deployment) -> dict[str, str]:
    """Return the ids of projects by name, which have used all models for thirty days by two keys each."""
    draw = random.Random(7)
    today = int(now()) // DAY * DAY
    month = month_of(now())
    ids: dict[str, str] = {}
    with deployment.inline.db.write() as session:
        for name, requests in PROJECTS.items():
            ids[name] = project = ensure_project(session, name).id
            own = [keys.id_of(keys.add_key(session, project, name=f"{name} {what}")) for what in ("nightly", "web")]
            spent = 0
            for day in range(DAYS):
                for model in MODELS:
                    row = usage_of(model, round(requests * draw.uniform(0.5, 1.5)), draw)
                    row.minute, row.project_id, row.key_id = today - day * DAY + 600, project, own[day % 2]
                    session.add(row)
                    spent += (row.cost or 0) if row.minute >= month else 0
            session.add(Spend(project_id=project, month=month, amount=spent))
            if name == "search":
                reserved = Reservation(id="r", project_id=project, amount=2 * MICROS, expires_at=now() + 3600)
                session.add(reserved)
                change_limit(session, project, spent // MICROS_PER_CENT + 400, actor="operator")
    return ids


def usage_of(model: str, requests: int, draw: random.Random) -> UsageMinute:
    """Return the work of some requests of a model."""
    tokens, price = requests * draw.randint(300, 500), MODELS[model]
    made = 0 if price is None else requests * draw.randint(50, 90)
    cost = None if price is None else round(tokens * price[0] + made * price[1])
    endpoint = "/v1/embeddings" if price is None else "/v1/chat/completions"
    return UsageMinute(
        model=model, endpoint=endpoint, requests=requests, input_tokens=tokens, cached_tokens=tokens // 4,
        output_tokens=made, cost=cost,
    )  # fmt: skip


def row_of(tab: Page, table: str, text: str) -> Locator:
    return tab.get_by_role("table", name=table).get_by_role("row").filter(has_text=text)


def figure(tab: Page, name: str) -> Locator:
    return tab.locator(".figure").filter(has=tab.get_by_text(name, exact=True))


def cells(tab: Page, table: str) -> list[list[str]]:
    """Return the texts of the body of a table."""
    rows = tab.get_by_role("table", name=table).locator("tbody tr")
    expect(rows.first).to_be_visible()
    return [row.get_by_role("cell").all_inner_texts() for row in rows.all()]


def sums_of(organization: Organization, by: str) -> dict[str, list[float]]:
    """Return what thirty days took by group: requests, input, cached and output tokens, and dollars."""
    end = (int(now()) // DAY + 1) * DAY
    days: Any = {"start_time": end - DAYS * DAY, "end_time": end, "bucket_width": "1d", "limit": 31}
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    usage: Any = organization.usage
    for kind in (usage.completions, usage.embeddings):
        for bucket in kind(**days, group_by=[by]).data:
            for result in bucket.results:
                counts = result.num_model_requests, result.input_tokens
                more = (result.input_cached_tokens, result.output_tokens) if kind == usage.completions else (0, 0)
                group = sums[getattr(result, by)]
                group[:4] = [before + count for before, count in zip(group, (*counts, *more), strict=False)]
    cost_by = "line_item" if by == "model" else by
    for bucket in usage.costs(**days, group_by=[cost_by]).data:
        for result in bucket.results:
            sums[getattr(result, cost_by)][4] += result.amount.value if result.amount else 0
    return dict(sums)


def texts_of(sums: list[float]) -> list[str]:
    """Return sums as the console writes them."""
    return [*(f"{count:,}" for count in sums[:4]), dollars(sums[4]) if sums[4] else "no price"]


def dollars(amount: float) -> str:
    """Return an amount of a cent and more as the console writes it."""
    return f"${amount:,.2f}"


@pytest.mark.parametrize("by", ["project", "model", "key"])
def test_usage_shows_the_sums_of_the_api(
    operator: Console, organization: Organization, projects: dict[str, str], by: str
) -> None:
    dimension = {"project": "project_id", "model": "model", "key": "api_key_id"}[by]
    sums = sums_of(organization, dimension)
    names = {project_id: name for name, project_id in projects.items()}
    for name, project_id in projects.items():
        names |= {key.id: f"{name}: {key.name}" for key in organization.projects.api_keys.list(project_id)}
    tab = operator.open(f"/usage?by={by}")

    expect(tab.get_by_role("table", name="Usage").get_by_role("row")).to_have_count(len(sums) + 1)
    shown = {name: rest for name, *rest in cells(tab, "Usage")}
    assert shown == {names.get(group, group): texts_of(values) for group, values in sums.items()}
    total = [sum(values) for values in zip(*sums.values(), strict=True)]
    for name, text in zip(("Requests", "Input tokens"), texts_of(total), strict=False):
        expect(figure(tab, name)).to_contain_text(text)
    expect(figure(tab, "Output tokens")).to_contain_text(texts_of(total)[3])
    expect(figure(tab, "Cost of 30 days")).to_contain_text(texts_of(total)[4])
    expect(tab.get_by_role("img", name="Tokens, a day each")).to_be_visible()
    operator.inspect(f"usage-{by}")

    with tab.expect_download() as download:
        tab.get_by_role("button", name="Save as CSV").click()
    with download.value.path().open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == DAYS * len(PROJECTS)  # the models are as many, and a key of each project worked on each day
    assert sum(int(line["input_tokens"]) for line in lines) == total[1]
    assert sum(float(line["cost_usd"] or 0) for line in lines) == pytest.approx(total[4], abs=1e-6)


def test_usage_keeps_span_and_project_in_the_address(operator: Console, projects: dict[str, str]) -> None:
    tab = operator.open("/usage")
    tab.get_by_label("Span").select_option("7 days")
    tab.get_by_label("Usage of").select_option("reports")

    expect(tab).to_have_url(f"{operator.deployment.url}/console/usage?span=week&project={projects['reports']}")
    expect(tab.get_by_role("table", name="Usage").get_by_role("row")).to_have_count(2)
    expect(row_of(tab, "Usage", "reports")).to_be_visible()
    operator.check_reload()


def test_usage_without_work_says_so(operator: Console) -> None:
    tab = operator.open("/usage")

    expect(tab.get_by_role("heading", name="Nothing was used in 30 days")).to_be_visible()
    operator.inspect("usage-empty")


@pytest.mark.parametrize("path", ["/usage", "/budgets", "/organization", "/organization/proj_1"])
def test_page_of_the_organization_asks_for_an_admin_key(console: Console, path: str) -> None:
    tab = console.open(path)

    expect(tab.get_by_label("Admin key")).to_be_visible()
    assert not [url for url in console.urls if "/v1/organization" in url]


def test_budgets_show_spend_and_are_changed_by_forms(
    operator: Console, organization: Organization, projects: dict[str, str]
) -> None:
    spent = {name: sum_of_month(operator.deployment, project_id) for name, project_id in projects.items()}
    tab = operator.open("/budgets")

    expect(figure(tab, "Spent this month")).to_contain_text(dollars(sum(spent.values()) / MICROS))
    expect(figure(tab, "Reserved")).to_contain_text("$2.00")
    for name, micros in spent.items():
        expect(row_of(tab, "Budgets of projects", name)).to_contain_text(dollars(micros / MICROS))
    bar = row_of(tab, "Budgets of projects", "search").get_by_role("progressbar")
    limit = dollars((spent["search"] // MICROS_PER_CENT + 400) / 100)
    spent_text = f"{dollars(spent['search'] / MICROS)} spent and $2.00 reserved of {limit}"
    expect(bar).to_have_attribute("aria-valuetext", spent_text)
    tab.get_by_role("button", name="Set the spend limit").click()
    tab.get_by_label("US dollars a month").fill("2500.50")
    operator.inspect("budgets-limit")
    tab.get_by_role("button", name="Set it").click()
    expect(figure(tab, "Spend limit")).to_contain_text("$2,500.50")
    assert organization.spend_limit.retrieve().threshold_amount == 250_050

    for amount in ("0.05", "2000"):
        tab.get_by_role("button", name="New alert").click()
        tab.get_by_label("US dollars a month").fill(amount)
        tab.get_by_label("Recipients").fill("ops@example.com, eva@example.com")
        tab.get_by_role("button", name="Create the alert").click()
        expect(tab.get_by_role("dialog")).to_have_count(0)
    expect(row_of(tab, "Spend alerts", "$2,000.00")).to_contain_text("not reached")
    expect(row_of(tab, "Spend alerts", "$0.05")).to_contain_text("reached")
    operator.inspect("budgets")
    row_of(tab, "Spend alerts", "$0.05").get_by_role("button", name="Delete").click()
    tab.get_by_role("button", name="Delete the alert", exact=True).click()
    expect(row_of(tab, "Spend alerts", "$0.05")).to_have_count(0)
    [alert] = organization.spend_alerts.list()
    assert alert.notification_channel.recipients == ["ops@example.com", "eva@example.com"]

    row_of(tab, "Budgets of projects", "search").get_by_role("link").click()
    expect(operator.heading).to_have_text("search")
    expect(figure(tab, "Reserved")).to_contain_text("$2.00")
    operator.inspect("project-budget")
    tab.get_by_role("button", name="Remove the limit").click()
    tab.get_by_role("button", name="Remove it").click()
    expect(figure(tab, "Spend limit")).to_contain_text("none")


def sum_of_month(deployment: Deployment, project_id: str) -> int:
    with deployment.inline.db.read() as session:
        return session.scalars(select(Spend.amount).where(Spend.project_id == project_id)).one()


def test_project_is_created_and_archived(operator: Console, organization: Organization) -> None:
    tab = operator.open("/organization")
    tab.get_by_role("button", name="New project").click()
    tab.get_by_label("Name").fill("archive of 2025")
    tab.get_by_role("button", name="Create the project").click()
    expect(row_of(tab, "Projects", "archive of 2025")).to_contain_text("active")
    operator.inspect("organization")

    row_of(tab, "Projects", "archive of 2025").get_by_role("link").click()
    expect(operator.heading).to_have_text("archive of 2025")
    tab.get_by_role("button", name="Archive").click()
    tab.get_by_role("button", name="Archive the project").click()
    expect(tab.locator(".page-title")).to_contain_text("archived")
    tab = operator.open("/organization")
    expect(row_of(tab, "Projects", "archive of 2025")).to_have_count(0)
    tab.get_by_label("Archived projects, too").check()
    expect(row_of(tab, "Projects", "archive of 2025")).to_contain_text("archived")
    assert [project.name for project in organization.projects.list()] == ["default"]


def test_service_account_gets_keys_with_scopes_which_are_revoked(
    operator: Console, organization: Organization, projects: dict[str, str]
) -> None:
    project = projects["reports"]
    tab = operator.open(f"/organization/{project}")
    tab.get_by_role("button", name="New service account").click()
    tab.get_by_label("Name").fill("warehouse")
    tab.get_by_role("button", name="Create the account").click()
    dialog = tab.get_by_role("dialog", name="The key was created")
    first = dialog.get_by_role("region", name="API key").inner_text()
    dialog.get_by_role("button", name="I have copied it").click()
    account = row_of(tab, "Service accounts", "warehouse")
    expect(account).to_contain_text("member")

    account.get_by_role("button", name="New key").click()
    tab.get_by_label("Name").fill("loader")
    tab.get_by_label("The key expires").select_option("in 30 days")
    for scope in ("api.files.read", "api.batch.read"):
        tab.get_by_label(scope).check()
    operator.inspect("project-new-key")
    tab.get_by_role("button", name="Create the key").click()
    second = dialog.get_by_role("region", name="API key").inner_text()
    dialog.get_by_role("button", name="I have copied it").click()
    row = row_of(tab, "Keys", "loader")
    for scope in ("api.files.read", "api.batch.read"):
        expect(row).to_contain_text(scope)
    expect(row).to_contain_text("never")
    assert first not in tab.content()
    assert second not in tab.content()
    operator.inspect("project-keys")
    client = operator.deployment.client
    assert client.with_options(api_key=second).files.list().data == []

    row.get_by_role("button", name="Revoke").click()
    tab.get_by_role("button", name="Revoke the key").click()
    expect(row).to_have_count(0)
    assert "loader" not in [key.name for key in organization.projects.api_keys.list(project)]
    account.get_by_role("button", name="Delete").click()
    tab.get_by_role("button", name="Delete the service account").click()
    expect(account).to_have_count(0)
    with operator.deployment.inline.db.read() as session:
        named = select(ServiceAccount.deleted_at).where(ServiceAccount.name == "warehouse")
        assert session.scalars(named).one() is not None


def test_limits_and_models_of_a_project_are_changed(
    operator: Console, organization: Organization, projects: dict[str, str]
) -> None:
    project = projects["support"]
    tab = operator.open(f"/organization/{project}?tab=limits")
    row_of(tab, "Rate limits", "smollm2-135m-instruct").get_by_role("button", name="Change").click()
    tab.get_by_label("Requests a minute").fill("60")
    tab.get_by_label("Enqueued batch tokens").fill("2000000")
    operator.inspect("project-limit")
    tab.get_by_role("button", name="Change the limits", exact=True).click()
    expect(row_of(tab, "Rate limits", "smollm2-135m-instruct")).to_contain_text("2,000,000")
    limits = {limit.model: limit for limit in organization.projects.rate_limits.list_rate_limits(project)}
    assert limits["smollm2-135m-instruct"].max_requests_per_1_minute == 60
    assert limits["smollm2-135m-instruct"].max_tokens_per_1_minute == 1_000_000_000

    tab.get_by_role("button", name="Change the models").click()
    tab.get_by_label("The project may use").select_option("All models but these")
    tab.get_by_role("textbox", name="Models").fill("all-minilm-l6-v2")
    tab.get_by_role("dialog").get_by_role("button", name="Change the models").click()
    expect(tab.get_by_text("All but these:")).to_contain_text("all-minilm-l6-v2")
    expect(row_of(tab, "Rate limits", "all-minilm-l6-v2")).to_have_count(0)
    operator.inspect("project-limits")
    tab.get_by_role("button", name="Allow all models").click()
    tab.get_by_role("dialog").get_by_role("button", name="Allow all models").click()
    expect(tab.get_by_text("The project may use all models.")).to_be_visible()


def test_people_roles_and_members_are_listed(
    operator: Console, deployment: Deployment, organization: Organization, projects: dict[str, str]
) -> None:
    add_user(deployment.app, "ada@example.com", "owner")
    add_user(deployment.app, "eva@example.com", "reader", [{"id": projects["search"], "role": "owner"}])
    organization.invites.create(email="kim@example.com", role="reader")
    group = organization.groups.create(name="Search team", extra_body={"claim": "search-team"})
    organization.projects.groups.create(projects["search"], group_id=group.id, role="role-project-member")
    role = organization.projects.roles.create(
        projects["search"], role_name="Labeller", permissions=["api.files.read", "api.evals.write"]
    )
    tab = operator.open("/organization?tab=people")

    expect(row_of(tab, "Users", "ada@example.com")).to_contain_text("owner")
    expect(row_of(tab, "Users", "eva@example.com")).to_contain_text("search (owner)")
    expect(row_of(tab, "Invites", "kim@example.com")).to_contain_text("pending")
    expect(row_of(tab, "Groups", "Search team")).to_contain_text("search-team")
    operator.inspect("people")
    tab.get_by_role("tab", name="Roles").click()
    row_of(tab, "Roles", "Organization reader").locator("summary").click()
    expect(row_of(tab, "Roles", "Organization reader")).to_contain_text("api.groups.read")
    operator.inspect("roles")

    tab = operator.open(f"/organization/{projects['search']}?tab=members")
    expect(row_of(tab, "Members", "eva@example.com")).to_contain_text("owner")
    expect(row_of(tab, "Groups", "Search team")).to_be_visible()
    expect(row_of(tab, "Roles", role.name)).to_contain_text("api.evals.write")
    operator.inspect("project-members")


def test_admin_key_is_created_shown_once_and_deleted(operator: Console, organization: Organization) -> None:
    tab = operator.open("/organization?tab=keys")
    tab.get_by_role("button", name="New admin key").click()
    tab.get_by_label("Name").fill("terraform")
    tab.get_by_role("button", name="Create the key").click()
    dialog = tab.get_by_role("dialog", name="The admin key was created")
    key = dialog.get_by_role("region", name="Admin key").inner_text()
    dialog.get_by_role("button", name="I have copied it").click()
    row = row_of(tab, "Admin keys", "terraform")
    expect(row).to_contain_text("never")
    assert key not in tab.content()
    operator.inspect("admin-keys")

    row.get_by_role("button", name="Delete").click()
    tab.get_by_role("button", name="Delete the key").click()
    expect(row).to_have_count(0)
    assert "terraform" not in [admin.name for admin in organization.admin_api_keys.list()]

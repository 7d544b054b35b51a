"""The commands about usage and prices, on a database."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.errors import CliError
from cli.main import app
from jobs.db.engine import Database
from jobs.security.keys import ensure_project
from jobs.usage import minutes
from jobs.usage.minutes import Amounts, UsageKey
from tests.support import sample_jobs

Run = Callable[..., Any]
PACKAGED = "smollm2-135m-instruct"
NOVEMBER = 1_793_577_600  # 2026-11-02
CHAT = "/v1/chat/completions"


@pytest.fixture
def run(tmp_path: Path, sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the command and returns what it prints."""
    monkeypatch.setenv("NIGHTMILL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", sqlite.url)

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, [*words])
        if isinstance(done.exception, CliError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


@pytest.fixture
def used(sqlite: Database) -> str:
    """Use something, half of it of a model without a price; return the project."""
    with sqlite.write() as session:
        project = ensure_project(session, "blue").id
        minutes.record(session, UsageKey(project, "k1", PACKAGED, CHAT), Amounts(2, 1000, 0, 500), NOVEMBER)
        minutes.record(session, UsageKey(project, "k1", "nobody's", CHAT), Amounts(1, 9), NOVEMBER)
    with sqlite.write() as session:
        minutes.fold(session, lambda name: None if name == "nobody's" else _Model)
    return project


class _Model:
    name, cost_per_million_tokens = PACKAGED, None


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_price_is_set_for_usage_without_a_cost_and_reported_by_month(run: Run, used: str) -> None:
    prices = ("--input", "1.5", "--output", "3", "--since", "2026-11-01")
    answer = json.loads(run("prices", "set", PACKAGED, *prices, "--json"))
    rows = table(run("usage", "report", "--month", "2026-11", "--csv"))

    assert answer["priced_rows"] == 1
    assert [(row["project"], row["key"], row["model"], row["input_tokens"], row["cost_usd"]) for row in rows] == [
        ("blue", "k1", "other", "9", ""),
        ("blue", "k1", PACKAGED, "1000", "0.003"),
    ]
    assert table(run("usage", "report", "--month", "2026-10", "--csv")) == []
    listed = [json.loads(line) for line in run("prices", "list", "--json").splitlines()]
    assert [(row["kind"], row["usd_per_million"]) for row in listed] == [("input", 1.5), ("output", 3.0)]


def test_report_is_grouped_by_its_option(run: Run, used: str) -> None:
    [row] = [
        json.loads(line)
        for line in run("usage", "report", "--month", "2026-11", "--by", "project", "--json").splitlines()
    ]

    assert (row["project"], row["requests"], row["input_tokens"], row["cost_usd"]) == ("blue", 3, 1009, None)


def test_focus_has_its_mandatory_columns_and_no_cost_is_null(run: Run, used: str) -> None:
    run("prices", "set", PACKAGED, "--input", "1.5", "--output", "3", "--since", "2026-11-01")

    [row] = table(run("usage", "report", "--month", "2026-11", "--focus"))

    assert row.keys() >= {
        "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
        "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd",
        "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity",
        "PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName",
    }  # fmt: skip
    assert (row["BilledCost"], row["PricingQuantity"], row["SubAccountName"]) == ("0.003000", "1500.0", "blue")
    assert (row["ChargePeriodStart"], row["ChargePeriodEnd"]) == ("2026-11-02T00:00:00Z", "2026-11-03T00:00:00Z")
    assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")


def test_verify_fails_for_usage_that_the_ledger_lacks(run: Run, sqlite: Database) -> None:
    job = sample_jobs.running(sqlite, key_id="k1")
    sample_jobs.answer(sqlite, sample_jobs.claim_shard(sqlite, job.id), range(4), last=True)
    assert "to the token" in run("usage", "verify")

    with sqlite.write() as session:
        minutes.record(session, UsageKey("proj_1", "k1", "tiny", CHAT, batch=True), Amounts(1, 5))
    with pytest.raises(CliError, match="differs from the ledger in 1 places"):
        run("usage", "verify")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("usage", "report", "--month", "11/2026"), "is no month"),
        (("usage", "report", "--by", "colour"), "is none of"),
        (("usage", "verify", "--since", "now"), "is no day"),
        (("prices", "set", PACKAGED), "at least one price"),
        (("prices", "set", PACKAGED, "--input", "1", "--since", "soon"), "is no day"),
    ],
)
def test_wrong_options_are_refused(run: Run, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(CliError, match=message):
        run(*words)

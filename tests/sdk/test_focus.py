"""FOCUS reports before the validator of the FinOps Foundation, which has an environment of its own.

Its last release knows FOCUS 1.0, with three columns under earlier names, and requires columns that FOCUS 1.2 requires
only of providers who have regions, resources, list prices or discounts. Those are added empty here; so is `ChargeType`,
a column of 0.5 that one of its rules for 1.0 still reads.
"""

import csv
import io
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from jobs.db.engine import Database
from jobs.security.keys import ensure_project
from jobs.usage import minutes
from jobs.usage.minutes import Amounts, UsageKey
from tests.sdk.environments import NotMade, programs
from tests.support.services import need

#: It may install large libraries before.
pytestmark = [pytest.mark.verify, pytest.mark.timeout(600)]

MODEL = "smollm2-135m-instruct"
NOVEMBER = 1_793_577_600  # 2026-11-02
_EARLIER_NAMES = {"InvoiceIssuerName": "InvoiceIssuer", "ProviderName": "Provider", "PublisherName": "Publisher"}
_NOT_OURS = (
    "AvailabilityZone", "ChargeType", "CommitmentDiscountCategory", "CommitmentDiscountId", "CommitmentDiscountName",
    "CommitmentDiscountStatus", "CommitmentDiscountType", "ContractedUnitPrice", "ListUnitPrice", "PricingCategory",
    "RegionId", "RegionName", "ResourceID", "ResourceName", "ResourceType", "SkuPriceId", "Tags",
)  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path, sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Return the rows of a report about two days, a key and work without a key."""
    monkeypatch.setenv("NIGHTMILL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", sqlite.url)
    with sqlite.write() as session:
        project = ensure_project(session, "blue").id
        for day in range(2):
            for key in ("k1", ""):
                work = UsageKey(project, key, MODEL, "/v1/chat/completions")
                minutes.record(session, work, Amounts(2, 1000, 0, 500), NOVEMBER + day * 86_400)
    for words in (
        ("prices", "set", MODEL, "--input", "1.5", "--output", "3", "--since", "2026-11-01"),
        ("usage", "report", "--month", "2026-11", "--focus"),
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    return list(csv.DictReader(io.StringIO(result.stdout)))


def validate(folder: Path, rows: list[dict[str, str]]) -> str:
    """Return what the validator prints about a report."""
    try:
        bin_folder = programs("focus")
    except NotMade as error:
        need("the environment of focus-validator", error)
        raise
    renamed = [{_EARLIER_NAMES.get(name, name): value for name, value in row.items()} for row in rows]
    with (folder / "report.csv").open("w") as file:
        writer = csv.DictWriter(file, [*renamed[0], *_NOT_OURS])
        writer.writeheader()
        writer.writerows(renamed)
    [packages] = bin_folder.parent.glob("lib/python3*/site-packages")  # where its list of currencies is
    program = bin_folder / "focus-validator"
    words = [program, "--data-file", file.name, "--validate-version", "1.0", "--column-namespace", "x_"]
    done = subprocess.run(words, cwd=packages, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout + done.stderr


def test_report_is_valid(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    assert len(rows) == 4
    assert validate(tmp_path, rows).strip().endswith("Validation succeeded.")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("BillingCurrency", "dollars"),
        ("BilledCost", ""),
        ("ChargePeriodStart", "2026-11-02"),
        ("ServiceCategory", "Intelligence"),
    ],
)
def test_wrong_value_is_found(tmp_path: Path, rows: list[dict[str, str]], column: str, value: str) -> None:
    rows[1][column] = value

    assert column in validate(tmp_path, rows)

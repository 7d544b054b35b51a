"""The tests of the ledger are worth something: with any one guard taken out of the code, at least one of them fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.mutants import MUTANTS

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def verdicts() -> dict[str, str]:
    command = [sys.executable, "-m", "tests.architecture.mutants"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    return dict(json.loads(line) for line in run.stdout.splitlines())


@pytest.mark.timeout(600)
def test_the_code_as_it_is_passes(verdicts: dict[str, str]) -> None:
    assert verdicts["the code as it is"] == "lives"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [mutant.name for mutant in MUTANTS])
def test_the_tests_notice(verdicts: dict[str, str], name: str) -> None:
    assert verdicts[name] == "caught"


def test_every_mutant_has_a_name_of_its_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)

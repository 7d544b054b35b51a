"""Who may import whom: the contracts in pyproject.toml, and what a light process must not load."""

import subprocess
import sys
from pathlib import Path

import pytest

import jobs.known_kinds  # noqa: F401 (fills the table of kinds)
from jobs.ledger import kinds

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "sentence_transformers", "vllm")


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


#: Without the table of kinds a change of a job's state would leave out what the rooms do in its transaction.
KINDS = list(kinds.TABLE)


@pytest.mark.parametrize(
    ("module", "foreign", "registered"),
    [
        ("api.app", (*HEAVY, "celery", "kombu"), KINDS),
        ("jobs.ledger.ledger", (*HEAVY, "celery", "kombu", "fastapi"), []),
        ("cli.main", (*HEAVY, "celery", "kombu", "fastapi"), None),
        ("workers.engines.vllm.vllm_engine", HEAVY, None),
        ("workers.engines.model_folders", HEAVY, None),
        ("workers.app", HEAVY, None),
        ("workers.dispatcher.loop", HEAVY, KINDS),
        ("workers.tasks", (), KINDS),
        ("workers.retrieval.verification", (), KINDS),
    ],
)
def test_a_process_loads_the_table_of_kinds_and_nothing_heavy(
    module: str, foreign: tuple[str, ...], registered: list[str] | None
) -> None:
    """The API and the command start in under a second, and run where torch is not installed."""
    script = f"""if True:
        import sys, {module}
        print(*sorted({set(foreign)!r} & sys.modules.keys()), sep=",")
        ledger = sys.modules.get("jobs.ledger.kinds")
        print(*(ledger.TABLE if ledger else ()), sep=",")"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    loaded, table = done.stdout.split("\n")[:2]
    assert loaded == ""
    assert registered is None or table == ",".join(registered)

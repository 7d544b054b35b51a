"""Who may import whom: the contracts in pyproject.toml, and what a light process must not load."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "sentence_transformers", "vllm")


def test_the_import_contracts_are_kept() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "module", ["api.app", "workers.tasks", "workers.dispatcher.loop", "workers.retrieval.verification"]
)
def test_a_process_that_moves_jobs_knows_their_kinds(module: str) -> None:
    """Without the table a move would leave out what the rooms do in its transaction: the ledger refuses then."""
    script = f"import {module}; from jobs.ledger import kinds; print(*kinds.TABLE)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.stdout.split() == ["generation", "embedding", "reranking", "response", "ingestion"], done.stderr


@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        ("api.app", (*HEAVY, "celery", "kombu")),
        ("jobs.ledger.ledger", (*HEAVY, "celery", "kombu", "fastapi")),
        ("cli.main", (*HEAVY, "celery", "kombu", "fastapi")),
        ("workers.engines.vllm.vllm_engine", HEAVY),
        ("workers.engines.model_folders", HEAVY),
        ("workers.app", HEAVY),
        ("workers.dispatcher.loop", HEAVY),
    ],
)
def test_a_light_process_stays_light(module: str, foreign: tuple[str, ...]) -> None:
    """The API and the command start in under a second, and run where torch is not installed."""
    script = f"import sys, {module}; print(*sorted({set(foreign)!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []

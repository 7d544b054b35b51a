"""`make demo-eval` and `make demo-migrate`, small: the whole system, with a stub server as the engine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import stub_engine

ROOT = Path(__file__).resolve().parents[2]
ROWS = 12


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[str]:
    with stub_engine.running(tmp_path / "prompts.log", "--models", "chatter") as url:
        yield url


def run(
    folder: Path, engine: str, model: str, example: str = "evaluation", *options: str
) -> subprocess.CompletedProcess[str]:
    models = folder / "models.yaml"
    models.write_text("models: {}\n")
    words = ["--no-vllm", "--engine-url", f"{engine}/v1", "--model", model, *options]
    return subprocess.run(
        [sys.executable, "-m", "bench.demos", example, "--data-dir", str(folder / "data"), *words],
        check=False,
        cwd=ROOT,
        env={**os.environ, "NIGHTMILL_MODELS_FILE": str(models)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )


@pytest.mark.verify
@pytest.mark.timeout(300)
def test_demo_compares_two_prompts_and_writes_a_report(tmp_path: Path, engine: str) -> None:
    done = run(tmp_path, engine, "chatter", "evaluation", "--rows", str(ROWS))

    assert done.returncode == 0, done.stdout
    report = tmp_path / "data" / "demo" / "two-prompts.html"
    assert str(report) in done.stdout
    assert "author's words" in done.stdout
    assert f"<p>{ROWS} items in both" in report.read_text()
    prompts = stub_engine.prompts(tmp_path / "prompts.log")
    assert len(prompts) == 2 * ROWS


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_demo_reports_unknown_model_and_fails(tmp_path: Path, engine: str) -> None:
    done = run(tmp_path, engine, "nobody-has-this")

    assert done.returncode == 1, done.stdout
    assert "The model 'nobody-has-this' does not exist." in done.stdout


@pytest.mark.verify
@pytest.mark.timeout(300)
def test_demo_brings_an_export_over_and_uses_it_by_its_old_ids(tmp_path: Path, engine: str) -> None:
    done = run(tmp_path, engine, "chatter", "migration")

    assert done.returncode == 0, done.stdout
    assert "gpt-4o-mini becomes chatter" in done.stdout
    assert "eval_68b5c1d2e3f481918a7b ran on chatter" in done.stdout
    assert "pmpt_68a1c2f0e4b88190b3d5, asked 'Do you ship to Norway?', answers by chatter" in done.stdout
    assert "# Migration from OpenAI" in done.stdout
    assert len(stub_engine.prompts(tmp_path / "prompts.log")) == 7

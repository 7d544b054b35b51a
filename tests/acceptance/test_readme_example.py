"""Run the examples of README.md and of the guide of vector stores against a server that `nightmill up` starts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.demo.system import running
from tests.support import stub_engine

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guides" / "vector-stores.md").read_text()
pytestmark = [pytest.mark.verify, pytest.mark.timeout(240)]


def test_sdk_example_of_the_readme_answers_three_questions(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    example = next(block for block in blocks if "batches.create" in block)
    (tmp_path / "example.py").write_text(example)
    (tmp_path / "models.yaml").write_text("models: {}\n")
    environment = {"NIGHTMILL_MODELS_FILE": str(tmp_path / "models.yaml")}

    with (
        stub_engine.running(tmp_path / "prompts.log", "--models", "smollm2-135m-instruct") as url,
        running(tmp_path / ".nightmill", ["--no-vllm", "--engine-url", f"{url}/v1"], environment) as system,
    ):
        system.wait_until_ready()
        done = subprocess.run(
            [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
        )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("completed BatchRequestCounts(completed=3, failed=0, total=3)")
    assert [f'"custom_id":"q{n}"' in done.stdout for n in range(3)] == [True] * 3


def test_the_example_of_vector_stores_finds_and_cites(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    (tmp_path / "example.py").write_text(next(block for block in blocks if "vector_stores.create" in block))
    models = tmp_path / "models.yaml"

    with stub_engine.running(tmp_path / "prompts.log", "--models", "smollm2-135m-instruct,embedder") as url:
        source = f'source: {{urls: ["{url}/v1"]}}, engine: http'
        models.write_text(f"models:\n  embedder: {{{source}, endpoints: [/v1/embeddings], queue: gpu.embed}}\n")
        options = ["--no-vllm", "--engine-url", f"{url}/v1"]
        with running(tmp_path / ".nightmill", options, {"NIGHTMILL_MODELS_FILE": str(models)}) as system:
            system.wait_until_ready()
            done = subprocess.run(
                [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
            )

    assert done.returncode == 0, done.stderr
    assert "handbook.md" in done.stdout
    assert "25 days of leave" in done.stdout

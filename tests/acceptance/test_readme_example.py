"""The README's example of the SDK runs as it stands there, against a server started by the README's command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.demo.library import pdf
from cli.demo.system import running
from tests.support import stub_engine

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
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
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    connect = next(block for block in blocks if "batches.create" in block).partition("with open")[0]
    example = next(block for block in blocks if "vector_stores.create" in block)
    (tmp_path / "example.py").write_text(connect + example)
    (tmp_path / "handbook.pdf").write_bytes(pdf("Leave\n\nEverybody has 30 days of leave in a year.\n"))
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
    assert "handbook.pdf" in done.stdout
    assert "30 days of leave" in done.stdout

"""Run the Python examples of README.md and docs/ against one deployment whose engines are fakes.

The blocks of a page are one script, in their order, behind the first lines of the quick start. Two sentences before or
behind a block are read here and by people alike:

    Continues the example of [vector stores](vector-stores.md).    that page's first block comes first
    Not run by the tests: …                                        the block is left out, for this reason

The SDK finds the deployment and an admin key in the environment. `proj_…` stands for the id of a project.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from openai import OpenAI

from cli.demo.system import running
from tests.support import stub_engine

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(\n\*Not run by the tests: [^*]{10,}\*\n)?", re.MULTILINE | re.DOTALL)
CONTINUES = re.compile(r"^Continues the example of \[[^]]+\]\(([a-z./-]+)\)\.$", re.MULTILINE)
#: What every page may use without saying so.
PRELUDE = """import json
import time

from openai import OpenAI

run = json.load(open(".nightmill/run.json"))
client = OpenAI(base_url=run["url"] + "/v1", api_key=run["api_key"])
"""
PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if BLOCK.search(page.read_text())
]
#: What an example prints, where that says something.
PRINTED = {
    "README.md": ("completed BatchRequestCounts(completed=3, failed=0, total=3)", '"custom_id":"q2"'),
    "docs/quickstart.md": ("completed BatchRequestCounts(completed=3, failed=0, total=3)", '"custom_id":"q2"'),
    "docs/guides/vector-stores.md": ("handbook.md", "25 days of leave"),
}
CHAT, EMBEDDER = "smollm2-135m-instruct", "all-minilm-l6-v2"
MODELS = f"""
models:
  {CHAT}: {{source: {{urls: ["%(url)s"]}}, engine: http}}
  {EMBEDDER}: {{source: {{urls: ["%(url)s"]}}, engine: http, endpoints: [/v1/embeddings], queue: gpu.embed}}
"""
pytestmark = [pytest.mark.verify, pytest.mark.timeout(300)]


class Deployment(NamedTuple):
    """A deployment: its data folder, with `run.json`, and what the examples need to administer it."""

    folder: Path
    environment: dict[str, str]
    project_id: str


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("documents")
    models = folder / "models.yaml"
    with stub_engine.running(folder / "prompts.log", "--models", f"{CHAT},{EMBEDDER}") as url:
        models.write_text(MODELS % {"url": f"{url}/v1"})
        with running(folder / ".nightmill", ["--no-vllm"], {"NIGHTMILL_MODELS_FILE": str(models)}) as system:
            system.wait_until_ready()
            command = [
                sys.executable,
                "-m",
                "cli",
                "keys",
                "create",
                "--admin",
                "--data-dir",
                str(folder / ".nightmill"),
            ]
            key = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            with OpenAI(admin_api_key=key, base_url=f"{system.url}/v1") as client:
                project = client.admin.organization.projects.create(name="examples")
            environment = {"OPENAI_BASE_URL": f"{system.url}/v1", "OPENAI_ADMIN_KEY": key}
            yield Deployment(folder / ".nightmill", environment, project.id)


def script_of(page: Path) -> str:
    text = page.read_text()
    before = [(page.parent / name).resolve() for name in CONTINUES.findall(text)]
    blocks = [_blocks(other)[0] for other in before] + _blocks(page)
    return "\n".join([PRELUDE, *blocks])


def _blocks(page: Path) -> list[str]:
    return [code for code, reason in BLOCK.findall(page.read_text()) if not reason]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_of_a_page_run(deployment: Deployment, tmp_path: Path, page: Path) -> None:
    (tmp_path / ".nightmill").symlink_to(deployment.folder)
    (tmp_path / "example.py").write_text(script_of(page).replace("proj_…", deployment.project_id))

    command, environment = [sys.executable, "example.py"], {**os.environ, **deployment.environment}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )

    assert done.returncode == 0, done.stderr
    for text in PRINTED.get(str(page.relative_to(ROOT)), ()):
        assert text in done.stdout

"""OpenAI's notebooks and guides under two versions of the SDK: each notebook a test, over a worker that trains too."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sdk.deployment import Deployment, deployed
from tests.sdk.environments import HERE, ROOT
from tests.sdk.schema_answers import answer_in_form
from tests.sdk.suites import Suite, run_suite
from tests.support import tiny_llama
from tests.support.databases import fresh
from tests.support.services import MEMORY

SDKS = {"python-2.8": "2.8.1", "python-3.57": "3.57.0"}
CHECKS = [
    name
    for suite in ("notebooks.py", "eval_guides.py", "tuning_guides.py")
    for name in re.findall(r'^@check\("(.+)"\)$', (HERE / suite).read_text(), re.MULTILINE)
]
#: A chat template that writes tools and their calls.
TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: The files of a job are examined in processes that load large libraries; the first test may install an SDK before.
pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]


def base(folder: Path, template: str) -> Path:
    given = json.dumps({"template": template, "max_position_embeddings": 4096})
    words = [sys.executable, "-m", "tests.support.tiny_llama", str(folder), given]
    subprocess.run(words, cwd=ROOT, check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    with (
        tempfile.TemporaryDirectory(prefix="nightmill-notebooks-", dir=MEMORY) as name,
        fresh("sqlite", Path(name)) as db,
    ):
        folder = Path(name)
        bases = {"plain": base(folder / "plain", tiny_llama.TEMPLATE), "calling": base(folder / "calling", TOOLS)}
        with deployed(folder, db, fault=answer_in_form, bases=bases) as deployment:
            yield deployment


@pytest.fixture(scope="module", params=[pytest.param("python-2.8", marks=pytest.mark.soak), "python-3.57"])
def suite(request: pytest.FixtureRequest, deployment: Deployment) -> Suite:
    return run_suite(request.param, deployment, "notebooks.py")


def test_the_suite_is_whole_and_of_the_version_that_is_meant(suite: Suite, request: pytest.FixtureRequest) -> None:
    assert suite.version == SDKS[request.node.callspec.params["suite"]]
    assert suite.names == CHECKS
    assert suite.errors == ""


@pytest.mark.parametrize("check", CHECKS)
def test_this_notebook_runs(suite: Suite, check: str) -> None:
    assert suite.lines[check]["ok"], suite.lines[check]["detail"]


def test_the_page_of_clients_names_each_notebook() -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    titles = (check.partition(":")[0] for check in CHECKS if not check.startswith("the guide"))
    names = {name for title in titles for name in re.findall(r"\w+(?:[_-]\w+)+", title.partition(" and the guide")[0])}

    assert {name for name in names if f"`{name}`" not in page} == set()


def test_the_server_behind_made_no_mistake(deployment: Deployment) -> None:
    assert deployment.inline.errors == []

"""The recipes of `examples/integrations`, each run as its user runs it, against one server on a real socket."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from tests.sdk.deployment import Deployment, deployed
from tests.sdk.environments import HERE, ROOT, NotMade, command
from tests.support.databases import fresh
from tests.support.fake_engine import prompt_of, reply
from tests.support.inline_deployment import MODEL
from tests.support.services import MEMORY, need
from workers.engines.port import Answer, Request

#: The first run installs the libraries.
pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]
RECIPES = ROOT / "examples" / "integrations"
GUIDE = (ROOT / "docs" / "guides" / "integrations.md").read_text()
_FIELD = "[[ ## colour ## ]]"  # DSPy's mark of a field


class Recipe(NamedTuple):
    """A script, its environment, a library of it, and what its output has of each answer."""

    script: str
    environment: str
    library: str
    shows: str = "echo "


PYTHON = (
    Recipe("langchain_chain.py", "clients", "langchain-openai"),
    Recipe("dspy_program.py", "dspy", "dspy", "blue"),
    Recipe("data_designer_rows.py", "data_designer", "data-designer"),
    Recipe("airflow_batch.py", "airflow", "apache-airflow-providers-openai"),
)


def _answer_in_fields(request: Request) -> Answer | None:
    """Return the answer of a model that has understood DSPy's form."""
    prompt = prompt_of(request.url, request.body)
    if _FIELD not in prompt:
        return None
    given = reply(request.url, dict(request.body), prompt)
    answer = msgspec.json.decode(given.body)
    answer["choices"][0]["message"]["content"] = f"{_FIELD}\nblue\n\n[[ ## completed ## ]]"
    return Answer(200, msgspec.json.encode(answer), given.usage)


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    with (
        tempfile.TemporaryDirectory(prefix="nightmill-sdk-", dir=MEMORY) as folder,
        fresh("sqlite", Path(folder)) as db,
        deployed(Path(folder), db, fault=_answer_in_fields) as deployment,
    ):
        yield deployment


def _run(words: list[str], folder: Path, deployment: Deployment) -> str:
    """Run a program as its user does, with an empty home, and return its output."""
    facts = deployment.facts("integrations")
    url, key = f"{facts['url']}/v1", facts["key"]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "OPENAI_BASE_URL": url,
        "OPENAI_API_KEY": key,
        "MODEL": MODEL,
        "AIRFLOW_CONN_OPENAI_DEFAULT": json.dumps({"conn_type": "openai", "host": url, "password": key}),
        "AIRFLOW__CORE__DAGS_FOLDER": str(RECIPES),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PROMPTFOO_DISABLE_TELEMETRY": "1",
        "PROMPTFOO_DISABLE_UPDATE": "1",
        "NEMO_TELEMETRY_ENABLED": "false",
    }
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def _command(environment: str, program: str) -> list[str]:
    try:
        return command(environment, program)
    except NotMade as error:
        need(f"the environment of {environment}", error)


@pytest.mark.parametrize("recipe", PYTHON, ids=lambda recipe: recipe.script)
def test_recipe_shows_answers_of_server(recipe: Recipe, deployment: Deployment, tmp_path: Path) -> None:
    [python, _] = _command(recipe.environment, recipe.script)
    if recipe.environment == "airflow":
        _run([python, "-m", "airflow", "db", "migrate"], tmp_path, deployment)

    shown = _run([python, str(RECIPES / recipe.script), MODEL], tmp_path, deployment)

    assert shown.count(recipe.shows) >= 2, shown
    assert deployment.inline.errors == []


def test_promptfoo_compares_prompts(deployment: Deployment, tmp_path: Path) -> None:
    words = _command("promptfoo", "node_modules/promptfoo/dist/src/entrypoint.js")
    report = tmp_path / "report.json"

    _run(
        [*words, "eval", "-c", str(RECIPES / "promptfooconfig.yaml"), "--no-cache", "-o", str(report)],
        tmp_path,
        deployment,
    )

    results = json.loads(report.read_text())["results"]
    assert (results["stats"]["successes"], results["stats"]["errors"]) == (4, 0)
    assert all(result["response"]["output"].startswith("echo ") for result in results["results"])


def test_guide_names_pinned_versions() -> None:
    for recipe in PYTHON:
        [pin] = [
            line
            for line in (HERE / f"{recipe.environment}.txt").read_text().splitlines()
            if line.startswith(f"{recipe.library}==")
        ]
        assert f"{recipe.library} {pin.partition('==')[2]} | `{recipe.script}`" in GUIDE
    pins = json.loads((HERE / "promptfoo" / "package.json").read_text())["dependencies"]
    assert f"promptfoo {pins['promptfoo']} | `promptfooconfig.yaml`" in GUIDE

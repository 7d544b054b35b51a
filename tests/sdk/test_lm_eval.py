"""lm-evaluation-harness against the server (`local-chat-completions`), in an environment of its own."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.deployment import Deployment
from tests.sdk.environments import NotMade, programs
from tests.support.evaluated import answer_to
from tests.support.services import need

#: It imports large libraries, and may install them before.
pytestmark = [pytest.mark.verify, pytest.mark.timeout(600)]

_TASK = """
task: questions
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 32}
metric_list: [{metric: exact_match}]
metadata: {version: 1.0}
"""


@pytest.fixture(scope="module")
def installed() -> Path:
    try:
        return programs("lm_eval")
    except NotMade as error:
        need("the environment of lm-evaluation-harness", error)


def evaluate(installed: Path, folder: Path, deployment: Deployment, rows: list[dict[str, str]]) -> dict[str, Any]:
    """Run the harness on the rows as a task; return its results."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "questions.yaml").write_text(_TASK % data)
    facts = deployment.facts("lm-eval")
    model = f"model={facts['model']},base_url={facts['url']}/v1/chat/completions,num_concurrent=4,max_retries=2"
    words = ["run", "--model", "local-chat-completions", "--model_args", model, "--tasks", "questions"]
    words += ["--include_path", str(folder), "--apply_chat_template", "--output_path", str(folder / "out")]
    own = {
        "OPENAI_API_KEY": facts["key"],
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    done = subprocess.run(
        [str(installed / "lm_eval"), *words], check=False, env={**os.environ, **own}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = (folder / "out").rglob("results_*.json")
    return dict(json.loads(results.read_text()))


def test_a_task_is_evaluated_over_chat_completions(installed: Path, tmp_path: Path, deployment: Deployment) -> None:
    questions = [f"What is {n} and {n}?" for n in range(20)]
    rows = [{"question": text, "answer": answer_to(text) if n < 15 else "no"} for n, text in enumerate(questions)]

    results = evaluate(installed, tmp_path, deployment, rows)

    assert results["results"]["questions"]["exact_match,none"] == 0.75
    assert results["n-samples"]["questions"]["effective"] == 20
    assert deployment.mill.errors == []

"""Run lm-evaluation-harness, which has an environment of its own, on a task that a test makes."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.sdk.environments import NotMade, programs
from tests.support.services import need

_NAME = "questions"
_HEAD = """\
task: questions
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
metadata: {version: 1.0}
"""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The results of the harness: `metrics` by name, the number of `items`, and `samples` in the order of the rows."""

    metrics: dict[str, float]
    items: int
    samples: list[dict[str, Any]]


def installed() -> Path:
    """Return the program; skip the test, or fail where nothing may be missing, if it cannot be installed."""
    try:
        return programs("lm_eval") / "lm_eval"
    except NotMade as error:
        need("the environment of lm-evaluation-harness", error)
        raise


def evaluate(
    folder: Path,
    task: str,
    rows: Sequence[Mapping[str, Any]],
    model: str,
    arguments: Mapping[str, object],
    key: str,
    *options: str,
) -> Evaluated:
    """Run a `task`, which is YAML without its data, on the `rows` against a `model` of the harness."""
    folder.mkdir(exist_ok=True)
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{_NAME}.yaml").write_text(_HEAD % data + task)
    words = ["run", "--model", model, "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    words += ["--tasks", _NAME, "--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"]
    own = {
        "OPENAI_API_KEY": key,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    done = subprocess.run(
        [str(installed()), *words, *options], check=False, env={**os.environ, **own}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = (folder / "out").rglob("results_*.json")
    [samples] = (folder / "out").rglob("samples_*.jsonl")
    whole = json.loads(results.read_text())
    return Evaluated(
        {name.removesuffix(",none"): value for name, value in whole["results"][_NAME].items()},
        whole["n-samples"][_NAME]["effective"],
        sorted(map(json.loads, samples.read_text().splitlines()), key=lambda sample: int(sample["doc_id"])),
    )

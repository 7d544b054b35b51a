"""A multiple-choice task of lm-evaluation-harness over completions: real vLLM here, and `vllm serve` beside it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bench.deployment import Deployment
from cli.demo.system import running
from tests.contract.test_vllm_engine import MODELS
from tests.support import lm_eval
from tests.support.system import eventually, free_port
from tests.support.vllm_host import START_SECONDS
from workers.engines.model_folders import SMOLLM2, materialise

pytestmark = [pytest.mark.soak, pytest.mark.vllm, pytest.mark.timeout(2400)]

_NAME = "smol"
#: In float32 a token's log-probability hardly depends on what else is in its batch.
_ARGS = {
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "kv_cache_memory_bytes": 1 << 28,
}
_PROCFILE = """\
release: python -m jobs.bootstrap
web: python -m api
dispatcher: python -m workers.dispatcher
gpu: python -m workers gpu
"""
#: The form of `arc_easy`: the likelihood of each choice after the question, alone and by its length.
_TASK = """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices.text}}"
doc_to_target: "{{choices.label.index(answerKey)}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
#: Questions, the right answer and three wrong ones.
_ITEMS = [
    ("Which of these is a source of light?", "the Sun", "the Moon", "a mirror", "a window"),
    ("What do plants take from the air to make sugar?", "carbon dioxide", "helium", "nitrogen", "dust"),
    ("At which temperature does water freeze at sea level?", "0 degrees Celsius", "50 degrees Celsius",
     "100 degrees Celsius", "20 degrees Celsius"),
    ("Which organ pumps blood through the body?", "the heart", "the liver", "the stomach", "the skin"),
    ("Which animal lays eggs?", "a hen", "a cow", "a dog", "a whale"),
    ("What pulls a falling apple to the ground?", "gravity", "friction", "magnetism", "sound"),
    ("Which planet do we live on?", "Earth", "Mars", "Venus", "Saturn"),
    ("What is ice?", "solid water", "liquid air", "a kind of glass", "a salt"),
    ("Which of these conducts electricity best?", "copper", "wood", "rubber", "paper"),
    ("What do lungs take in from the air?", "oxygen", "sugar", "iron", "light"),
    ("Why does the day follow the night?", "The Earth turns around its axis.", "The Moon moves.",
     "The clouds open.", "The Sun goes out."),
    ("What does a thermometer measure?", "temperature", "weight", "speed", "distance"),
    ("Which animal is a mammal?", "a bat", "a frog", "a trout", "a sparrow"),
    ("What do bees collect from flowers?", "nectar", "sand", "bark", "rain"),
    ("Which of these is a liquid in a warm room?", "milk", "iron", "stone", "oxygen"),
    ("What causes the tides of the sea?", "the pull of the Moon", "the salt in the water", "the fish", "the wind"),
    ("What is the hard outer cover of a tree called?", "bark", "leaf", "root", "seed"),
    ("Which sense uses the ears?", "hearing", "sight", "taste", "smell"),
    ("What is left when sea water has evaporated?", "salt", "gold", "oil", "wood"),
    ("How many legs does an insect have?", "six", "four", "eight", "ten"),
]  # fmt: skip
_LABELS = "ABCD"


def rows() -> list[dict[str, Any]]:
    """Return the items as `arc_easy` has them; the right answer takes each place in turn."""
    made = []
    for number, (question, right, *wrong) in enumerate(_ITEMS):
        place = number % len(_LABELS)
        texts = [*wrong[:place], right, *wrong[place:]]
        choices = {"text": texts, "label": list(_LABELS)}
        made.append({"id": str(number), "question": question, "choices": choices, "answerKey": _LABELS[place]})
    return made


@contextmanager
def nightmill(folder: Path, model: Path) -> Iterator[tuple[str, str]]:
    """Yield the URL and the key of a deployment that serves the model."""
    models = {_NAME: {"source": {"path": str(model)}, "engine": "vllm", "engine_args": _ARGS}}
    (folder / "models.yaml").write_text(json.dumps({"models": models}))
    (folder / "Procfile").write_text(_PROCFILE)
    options = ("--procfile", str(folder / "Procfile"))
    with running(folder / "data", options, {"NIGHTMILL_MODELS_FILE": str(folder / "models.yaml")}) as system:
        system.wait_until_ready()
        Deployment(system).wait_for("gpu.generate")
        yield system.url, system.api_key


@contextmanager
def plain_vllm(folder: Path, model: Path) -> Iterator[str]:
    """Yield the URL of `vllm serve` with the same engine arguments."""
    port = free_port()
    words = ["--model", str(model), "--served-model-name", _NAME, "--host", "127.0.0.1", "--port", str(port)]
    for name, value in _ARGS.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    own = {"VLLM_CPU_OMP_THREADS_BIND": cpus, "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    log = folder / "vllm.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words],
            env={**os.environ, **own}, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip

    def is_ready() -> bool:
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            return httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200
        except httpx2.TransportError:
            return False

    try:
        eventually(is_ready, START_SECONDS, "vllm serve answers")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def likelihoods(evaluated: lm_eval.Evaluated) -> list[float]:
    """Return the log-likelihood of each choice of each item."""
    return [float(likelihood) for sample in evaluated.samples for likelihood, _ in sample["filtered_resps"]]


def test_multiple_choice_has_the_accuracy_and_the_log_likelihoods_of_plain_vllm(tmp_path: Path) -> None:
    model = materialise(SMOLLM2, MODELS)

    def evaluated(name: str, url: str, key: str, fields: Mapping[str, object], *options: str) -> lm_eval.Evaluated:
        arguments = {"model": _NAME, "base_url": f"{url}/v1/completions", "tokenizer": str(model), **fields}
        return lm_eval.evaluate(tmp_path / name, _TASK, rows(), "local-completions", arguments, key, *options)

    with nightmill(tmp_path, model) as (url, key):
        ours = [
            evaluated("token-ids", url, key, {}),
            evaluated("batches", url, key, {"num_concurrent": 4}, "--batch_size", "8"),
            evaluated("texts", url, key, {"tokenized_requests": False}),
        ]
    with plain_vllm(tmp_path, model) as url:
        plain = evaluated("plain", url, "none", {})

    assert (plain.items, len(likelihoods(plain))) == (20, 80)
    assert 0.25 < plain.metrics["acc"] < 1
    for one in ours:
        assert (one.metrics["acc"], one.metrics["acc_norm"]) == (plain.metrics["acc"], plain.metrics["acc_norm"])
        assert likelihoods(one) == pytest.approx(likelihoods(plain), abs=0.01)

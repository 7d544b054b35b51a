"""`nightmill up --with tuned`: a job trains all weights of a tiny model, and real vLLM in that process serves them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.deployment import Deployment
from bench.tuning import jsonl
from cli.demo.system import running
from tests.support import tiny_llama
from tests.support.system import pause

pytestmark = [pytest.mark.soak, pytest.mark.vllm, pytest.mark.timeout(1200)]
BASE = "tiny"
_PROCFILE = """\
release: python -m jobs.bootstrap
web: python -m api
dispatcher: python -m workers.dispatcher
cpu: python -m workers cpu
finetune: python -m workers finetune
# optional tuned: python -m workers tuned
"""
ENGINE = {
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": 1 << 27,
}
ANSWER = "yes"
#: The learning rate of each kind of training, as a multiple of its default: a higher one does not converge.
_RATES = {"full": 100, "lora": 10}


@pytest.fixture
def inline(tmp_path: Path) -> Iterator[Deployment]:
    tiny_llama.write(tmp_path / BASE, hidden_size=128, max_position_embeddings=1024)
    models = {BASE: {"source": {"path": BASE}, "engine": "vllm", "engine_args": ENGINE}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
    (tmp_path / "Procfile").write_text(_PROCFILE)
    options = ("--procfile", str(tmp_path / "Procfile"), "--with", "tuned")
    variables = {"NIGHTMILL_MODELS_FILE": str(tmp_path / "models.yaml")}
    with running(tmp_path / "data", options, variables) as system:
        system.wait_until_ready()
        yield Deployment(system)


def test_model_with_weights_of_its_own_is_trained_and_served_by_the_optional_process(inline: Deployment) -> None:
    name = train(inline, "full")

    inline.wait_for("gpu.tuned")
    chat = inline.client.chat.completions.create(
        model=name, messages=[{"role": "user", "content": "Is it 3?"}], max_tokens=8, temperature=0
    )

    assert chat.model == name
    assert chat.choices[0].message.content == ANSWER
    assert chat.choices[0].finish_reason == "stop"


def train(inline: Deployment, peft: str) -> str:
    """Train the model to answer each question by `ANSWER`; return the name of the result."""
    rows = [
        {"messages": [{"role": "user", "content": f"Is it {n}?"}, {"role": "assistant", "content": ANSWER}]}
        for n in range(24)
    ]
    file = inline.client.files.create(file=("rows.jsonl", jsonl(rows)), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": 20, "batch_size": 4, "learning_rate_multiplier": _RATES[peft]}
    job = inline.client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file.id,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        extra_body={"peft": peft},
    )
    while job.finished_at is None:
        pause(0.5)
        inline.system.check()
        job = inline.client.fine_tuning.jobs.retrieve(job.id)
    assert job.fine_tuned_model, job
    return job.fine_tuned_model

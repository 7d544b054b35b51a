"""`nightmill run-batch` with an engine of its own: real vLLM, and the packaged model in a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.system import ROOT
from workers.engines.model_folders import SMOLLM2, materialise

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

MODELS = Path(os.environ.get("NIGHTMILL_TEST_MODELS", ROOT / ".nightmill" / "models"))


def line(custom_id: str, **body: Any) -> str:
    asked = {"model": "smol", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked})


#: What a shell on a host of a large deployment knows of it; nobody listens there.
SHARED = {
    "NIGHTMILL_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:9/none",
    "NIGHTMILL_BROKER_URL": "amqp://nobody@127.0.0.1:9//",
    "NIGHTMILL_STREAMS_URL": "redis://127.0.0.1:9/0",
    "NIGHTMILL_VECTORS_URL": "http://127.0.0.1:9",
    "NIGHTMILL_PUBLIC_URL": "http://127.0.0.1:9",
    "NIGHTMILL_VLLM_ENABLED": "false",
    "NIGHTMILL_WINDOW_MAX_SECONDS": "86400",
    "NIGHTMILL_PROJECT_MAX_QUEUED_TOKENS": "1",
}


def test_a_run_of_its_own_answers_each_line_once_and_takes_vllms_fields(tmp_path: Path) -> None:
    lines = [
        line("plain"),
        line("steers", priority=-1),
        line("chosen", structured_outputs={"choice": ["Paris"]}, top_k=1, max_tokens=20),
        line("retired", guided_choice=["Paris"], max_tokens=20),
        line("two", n=2, temperature=1),
    ]
    asked, answered = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("\n".join(lines) + "\n")
    words = ["-i", str(asked), "-o", str(answered), "--model", str(materialise(SMOLLM2, MODELS))]
    flags = ["--served-model-name", "smol", "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "512"]

    done = subprocess.run(
        [sys.executable, "-m", "cli", "run-batch", *words, "--data-dir", str(tmp_path / "none"), *flags],
        cwd=ROOT,
        env={**os.environ, **SHARED},
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "5 results, 1 of them failed" in done.stderr
    said = [json.loads(one) for one in answered.read_text().splitlines()]
    assert [one["custom_id"] for one in said] == ["plain", "steers", "chosen", "retired", "two"]
    plain, steers, chosen, retired, two = (one["response"] for one in said)
    assert [one["status_code"] for one in (plain, steers, chosen, retired, two)] == [200, 400, 200, 200, 200]
    error = steers["body"]["error"]
    assert (error["param"], error["code"]) == ("priority", "unknown_parameter")
    assert [one["body"]["choices"][0]["message"]["content"] for one in (chosen, retired)] == ["Paris", "Paris"]
    assert len(two["body"]["choices"]) == 2

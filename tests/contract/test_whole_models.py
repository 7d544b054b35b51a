"""Whole tuned models in real vLLM: each answers as transformers does with its weights, and one process swaps them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiny_llama

#: Writes the probes of each model, and prints what each answers with greedy sampling.
_PREPARE = """
import json, sys, torch, transformers
from pathlib import Path
from workers.engines.training import probing
texts = []
for folder in sys.argv[1:]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    probing.Prober(model, tokenizer).write(model, Path(folder), own=True)
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    ids = model.generate(**tokens, max_new_tokens=12, do_sample=False)[0, tokens["input_ids"].shape[1]:]
    texts.append(tokenizer.decode(ids, skip_special_tokens=True))
print(json.dumps(texts))
"""
_ARGS = {
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": 1 << 27,
    "enable_lora": True,
    "max_loras": 2,
}


@pytest.mark.verify
@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_whole_models_are_swapped_and_each_answers_with_its_own_weights(tmp_path: Path) -> None:
    shape = {"hidden_size": 128, "initializer_range": 0.1, "max_position_embeddings": 1024}
    folders = [tiny_llama.write(tmp_path / str(number), seed=number, **shape) for number in range(3)]
    models = {"tiny": {"source": {"path": "0"}, "engine": "vllm", "engine_args": _ARGS}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
    expected = [complete(text) for text in json.loads(run(["-c", _PREPARE, *map(str, folders)]).splitlines()[-1])]
    (folders[2] / "probes.json").write_bytes((folders[1] / "probes.json").read_bytes())

    served = json.loads(run(["-m", "tests.support.serve_whole_models", str(tmp_path)]))

    assert expected[0] != expected[1]
    assert [complete(served["first"]), complete(served["second"])] == expected[:2]
    assert [complete(text) for text in served["together"]] == expected[:2] * 4
    assert served["refused"] is True
    assert served["version"].startswith("vllm")


def complete(text: str) -> str:
    """Return the text without a character that is cut off at its end: vLLM leaves it out, transformers marks it."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def run(arguments: list[str]) -> str:
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True, timeout=1100)
    return done.stdout

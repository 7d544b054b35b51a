"""Exports with real weights: Hugging Face's tools load the adapter and the merged model, which answer alike."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import programs
from jobs.settings import Settings
from tests.support import random_adapters, tiny_llama

#: Prints the greedy tokens of base and adapter, of the merged model, and of the base alone.
_ANSWERS = """
import json, sys, torch, transformers
base, adapter, merged = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False)
load = transformers.AutoModelForCausalLM.from_pretrained
def greedy(model):
    tokens = torch.tensor([ids])
    whole = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, do_sample=False)
    return whole[0].tolist()
tuned = load(base)
tuned.load_adapter(adapter)
print(json.dumps([greedy(tuned), greedy(load(merged)), greedy(load(base))]))
"""


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_merged_model_answers_as_base_and_adapter_do(tmp_path: Path) -> None:
    base, other = (
        tiny_llama.write(tmp_path / name, seed=seed, initializer_range=0.5)
        for name, seed in (("base", 5), ("other", 9))
    )
    narrow = tiny_llama.write(tmp_path / "narrow", hidden_size=16)
    adapter, merged, config = tmp_path / "adapter", tmp_path / "merged", Settings(data_dir=tmp_path)
    random_adapters.make(base, [adapter])
    merged.mkdir()
    models = tmp_path / "models.yaml"
    models.write_text(json.dumps({"models": {"tiny": {"source": {"path": "base"}, "engine": "vllm"}}}))

    unknown = programs.merge_adapter(config, adapter, "other", merged, None)
    reasons = [programs.merge_adapter(config, adapter, "tiny", merged, folder) for folder in (other, narrow)]
    assert not list(merged.iterdir())
    done = programs.merge_adapter(config, adapter, "tiny", merged, None)

    assert done == ""
    assert "no models file here has weights of 'other'" in unknown
    assert "was trained on another base" in reasons[0]
    assert "does not fit" in reasons[1]
    arguments = [sys.executable, "-c", _ANSWERS, str(base), str(adapter), str(merged)]
    out = subprocess.run(arguments, capture_output=True, text=True, check=True)
    tuned, whole, alone = json.loads(out.stdout.splitlines()[-1])
    assert tuned == whole != alone
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in merged.iterdir()}
    assert "adapter_config.json" not in {file.name for file in merged.iterdir()}

"""Make LoRA adapters with random weights, with the files that a training leaves: `python -m … MODEL FOLDER…`.

A process of its own, because torch and peft warn where the tests take a warning for an error.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_SCALE = 0.06  # of the random weights: answers differ and stay text


def make(model: Path, folders: Sequence[Path]) -> None:
    """Make an adapter in each folder, in a process of its own."""
    command = [sys.executable, "-m", "tests.support.random_adapters", str(model), *map(str, folders)]
    subprocess.run(command, check=True, timeout=600)


def _main(model: str, *folders: str) -> None:
    import peft
    import torch
    import transformers

    from workers.engines.training import probing

    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tuned = peft.get_peft_model(base, config)
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, weights in tuned.named_parameters():
                if "lora_" in name:
                    weights.normal_(0, _SCALE)
        tuned.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        probing.Prober(tuned, tokenizer).write(tuned, Path(folder), own=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])

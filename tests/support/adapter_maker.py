"""Make a LoRA adapter with random weights, with the files that a training leaves: `python -m … MODEL FOLDER SEED`.

A process of its own, because torch and peft warn where the tests take a warning for an error.
"""

import subprocess
import sys
from pathlib import Path

_SCALE = 0.02  # of the random weights: answers differ and stay text


def make(model: Path, folder: Path, seed: int) -> None:
    """Make the adapter in a process of its own."""
    command = ["nice", "-n", "5", sys.executable, "-m", "tests.support.adapter_maker", str(model), str(folder)]
    subprocess.run([*command, str(seed)], check=True, timeout=300)


def _main(model: str, folder: str, seed: str) -> None:
    import peft
    import torch
    import transformers

    from workers.engines.training import probing

    torch.manual_seed(int(seed))
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, weights in tuned.named_parameters():
            if "lora_B" in name:
                weights.normal_(0, _SCALE)
    tuned.save_pretrained(folder)
    probing.write(tuned, transformers.AutoTokenizer.from_pretrained(model), Path(folder))


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""Train with trl alone, as a script of its own does it: `python -m bench.plain_trl SPEC`. SPEC is a file of JSON.

    rows ─▶ prompt and completion ─▶ trl.SFTTrainer with an adapter of peft ─▶ OUTPUT/report.json

The report has the moments of the run in seconds of the clock, so that its phases can be compared with those of a job.
"""

import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LABEL = "plain trl"


@dataclass(frozen=True, slots=True)
class PlainSpec:
    """A run of plain trl. `niceness` is added to that of the process that starts it."""

    base: str
    rows: str
    output: str
    learning_rate: float
    batch_size: int
    n_epochs: int
    seed: int
    save_steps: int
    dtype: str
    threads: int
    niceness: int


@dataclass(frozen=True, slots=True)
class PlainReport:
    """The moments and losses of a run: its start, the end of each step, and its end. `peak` is in bytes."""

    began: float
    steps: list[float]
    losses: list[float]
    ended: float
    peak: int


def main(spec: PlainSpec) -> PlainReport:
    """Train as the spec says."""
    began = time.time()
    os.nice(spec.niceness)
    import datasets
    import peft
    import torch
    import transformers
    import trl

    torch.set_num_threads(spec.threads)
    rows = [json.loads(line)["messages"] for line in Path(spec.rows).read_text().splitlines()]
    data = datasets.Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows])
    moments: list[float] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            moments.append(time.time())

    gpu = torch.cuda.is_available()
    half = spec.dtype == "bfloat16"
    arguments = trl.SFTConfig(
        output_dir=spec.output,
        num_train_epochs=spec.n_epochs,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        seed=spec.seed,
        data_seed=spec.seed,
        bf16=half,
        use_cpu=not gpu,
        gradient_checkpointing=gpu,
        logging_steps=1,
        save_steps=spec.save_steps,
        report_to="none",
        disable_tqdm=True,
        max_length=None,
    )
    trainer = trl.SFTTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(spec.base, dtype=torch.bfloat16 if half else torch.float32),
        arguments,
        train_dataset=data,
        processing_class=transformers.AutoTokenizer.from_pretrained(spec.base),
        peft_config=peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    trainer.train()
    trainer.save_model()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return PlainReport(began, moments, losses, time.time(), peak)


if __name__ == "__main__":
    chosen = PlainSpec(**json.loads(Path(sys.argv[1]).read_text()))
    (Path(chosen.output) / "report.json").write_text(json.dumps(asdict(main(chosen))))

"""The protocol between worker and trainer: a spec in a file, then JSON lines on two pipes of their own."""

import os
import threading
from typing import BinaryIO, Final, Literal

import msgspec

Method = Literal["supervised", "dpo"]
Peft = Literal["lora", "full", "qlora", "auto"]
Dtype = Literal["auto", "float32", "bfloat16"]
Reason = Literal["complete", "checkpoint", "early_stopping", "memory_limit"]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """One training run. Paths are folders and files of this machine; `base` may also be a name of the hub.

    `base_name` is how the adapter's configuration names the base. `adapter` is a folder with the adapter that training
    goes on from; `resume` is the folder of a complete checkpoint of the same run. `output` is an empty folder.
    `general` is a file of rows that forgetting is measured with; without it docstrings are taken. `license` is that of
    the base where the models file states it.
    With `load_best` each step whose validation loss is the best so far is saved.
    With `dry_run_steps` only so many steps are trained, and nothing is evaluated or saved.
    `eval_steps` and `save_steps` are numbers of steps; the end of each epoch is evaluated and saved besides.
    """

    base: str
    base_name: str
    rows: str
    output: str
    learning_rate: float
    batch_size: int
    n_epochs: int
    seed: int
    threads: int
    revision: str | None = None
    license: str | None = None
    validation: str | None = None
    adapter: str | None = None
    resume: str | None = None
    method: Method = "supervised"
    peft: Peft = "lora"
    dtype: Dtype = "auto"
    rank: int = 16
    alpha: float | None = None
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: tuple[str, ...] | None = None
    scheduler: Scheduler = "linear"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    gradient_accumulation_steps: int = 1
    max_sequence_length: int | None = None
    truncate: bool = False
    chat_template: str | None = None
    packing: bool = False
    beta: float = 0.1
    general: str | None = None
    eval_steps: int | None = None
    save_steps: int | None = None
    load_best: bool = False
    patience: int | None = None
    min_delta: float = 0.0
    max_memory_bytes: int | None = None
    dry_run_steps: int | None = None


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The model is loaded and the data are tokenised. `tokens` and `rows` are those of one epoch.

    `seconds_per_step` are the medians of the measured steps by dtype; empty where the dtype was given. `peft` is what
    is trained, `memory_bytes` the numbers by which `auto` chose it: what is `free`, and what a step takes with each.
    """

    steps: int
    rows: int
    tokens: int
    dtype: str
    device: str
    resumed_step: int
    seconds_per_step: dict[str, float]
    versions: dict[str, str]
    peft: str = "lora"
    memory_bytes: dict[str, int] = {}


class Step(msgspec.Struct, frozen=True, tag="step"):
    """One optimiser step. `accuracy` is the share of trained tokens that were the model's first choice.

    `preference` holds what `dpo` measures besides: rewards and log-probabilities of both outputs.
    """

    step: int
    epoch: float
    loss: float
    accuracy: float | None
    grad_norm: float | None
    learning_rate: float
    tokens_per_second: float | None
    memory_bytes: int
    preference: dict[str, float] = {}


class EvaluationReport(msgspec.Struct, frozen=True, tag="evaluation"):
    """The loss and accuracy on the validation rows after a step."""

    step: int
    loss: float
    accuracy: float | None
    preference: dict[str, float] = {}


class Forgetting(msgspec.Struct, frozen=True, tag="forgetting"):
    """The mean negative log-likelihood of general text, in nats a token, before training, and after its last step."""

    texts: int
    source: str
    before: float
    after: float | None = None


class CheckpointReport(msgspec.Struct, frozen=True, tag="checkpoint"):
    """A checkpoint whose folder is complete and synced to the disk. `files` are the SHA-256 by name."""

    step: int
    folder: str
    files: dict[str, str]
    metrics: dict[str, float]


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The run has ended, with a checkpoint of its last step if it trained one.

    `reason` is `complete`, `checkpoint` (the worker asked for it), `early_stopping` or `memory_limit`.
    """

    step: int
    reason: Reason


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The run cannot go on, and would not if it were started again. `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


Report = Started | Step | EvaluationReport | Forgetting | CheckpointReport | Finished | Failed

#: What the worker may write to the trainer: make a checkpoint at the next step boundary, then end.
CHECKPOINT_AND_STOP: Final = b"checkpoint_and_stop\n"
_ORPHANED: Final = os.EX_IOERR

encode: Final = msgspec.json.Encoder().encode
decode_report: Final = msgspec.json.Decoder(Report).decode
decode_spec: Final = msgspec.json.Decoder(Spec).decode


class Orders:
    """The worker's orders that the trainer has received, read by a thread of their own while training goes on.

    The end of the pipe means that the worker has died: the trainer's process ends at once.
    """

    def __init__(self, pipe: BinaryIO) -> None:
        self.checkpoint_and_stop = threading.Event()
        self._pipe = pipe
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def _read(self) -> None:
        for line in self._pipe:
            if line == CHECKPOINT_AND_STOP:
                self.checkpoint_and_stop.set()
        os._exit(_ORPHANED)

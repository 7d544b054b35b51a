"""One training run in this process: data, dtype, model, trl's trainer, and the reports of what happens.

    rows ─▶ ids and labels, an Arrow file ─▶ dtype by measuring ─▶ SFTTrainer | DPOTrainer ─▶ Reporter ─▶ reports

The trainer neither evaluates nor saves by itself: `Reporter` decides that at the end of each step, so that a run that
was resumed does both at the same steps as one that was not.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import datasets
import peft
import torch
import transformers
import trl
from datasets.arrow_writer import ArrowWriter
from msgspec import convert, to_builtins
from msgspec.structs import replace
from pyarrow import compute
from trl.data_utils import pack_dataset

from jobs.platform import processes
from jobs.registry.manifests import MANIFEST, decode_manifest
from workers.engines.training import (
    checkpoint_folder,
    forgetting,
    peft_choice,
    precision,
    provenance,
    quantization,
    rows,
)
from workers.engines.training.probing import Prober
from workers.engines.training.protocol import (
    CheckpointReport,
    EvaluationReport,
    Finished,
    Forgetting,
    Orders,
    Reason,
    Report,
    Spec,
    Started,
    Step,
)

#: Files that the libraries write beside a model and nothing reads.
_UNUSED: Final = ("README.md", "training_args.bin")
_REFERENCE: Final = "ref"
_COLUMNS: Final = {"supervised": ("input_ids", "labels"), "dpo": ("prompt_ids", "chosen_ids", "rejected_ids")}
_ENCODE: Final = {"supervised": rows.encode_supervised, "dpo": rows.encode_preference}
#: The metrics of `dpo` that steps and evaluations report besides, as trl names them.
_PREFERENCE: Final = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")
#: Which of trl's metrics is the accuracy: of tokens, or of preferring the preferred output.
_ACCURACY: Final = {"supervised": "mean_token_accuracy", "dpo": "rewards/accuracies"}


class CannotTrain(Exception):
    """Training cannot go on, and would not if it were started again."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Stopped(Exception):
    """The worker asked for an end before the first step."""


def run(spec: Spec, orders: Orders, send: Callable[[Report], None]) -> None:
    """Train as the spec says. Raises RowRefused, CannotTrain."""
    try:
        _run(spec, orders, send)
    except _Stopped:
        send(Finished(_previous_run(spec).get("step", 0), "checkpoint"))


def _run(spec: Spec, orders: Orders, send: Callable[[Report], None]) -> None:
    torch.set_num_threads(spec.threads)
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(spec.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec.base, revision=spec.revision)
    tokenizer.chat_template = spec.chat_template or tokenizer.chat_template
    if tokenizer.chat_template is None:
        raise CannotTrain("no_chat_template", f"The model '{spec.base_name}' has no chat template.")
    train = _dataset(spec, tokenizer, Path(spec.rows), "train")
    validation = _dataset(spec, tokenizer, Path(spec.validation), "validation") if spec.validation else None
    tokens = int(_lengths(train, [name for name in train.column_names if name != "labels"]).sum())
    _check_goes_on(orders)
    spec, memory = _resolve_peft(spec, train)
    dtype, seconds = _dtype(spec, train)
    _check_goes_on(orders)
    trainer = _trainer(spec, tokenizer, train, validation, dtype)
    versions = provenance.versions()
    started = Started(0, len(train), tokens, dtype, provenance.device(), 0, seconds, versions, spec.peft, memory)
    general = forgetting.general_text(tokenizer, spec.general, _longest(spec))
    reporter = Reporter(spec, orders, send, started, general)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(reporter)
    trainer.train(resume_from_checkpoint=spec.resume)
    send(Finished(trainer.state.global_step, reporter.reason))


def _check_goes_on(orders: Orders) -> None:
    if orders.checkpoint_and_stop.is_set():
        raise _Stopped


class Reporter(transformers.TrainerCallback):  # type: ignore[misc]
    """Report each step, and decide when to evaluate, to save and to stop.

    `started` is the first report, without the steps, which trl's trainer counts. `general` is the text that forgetting
    is measured with.
    """

    def __init__(
        self,
        spec: Spec,
        orders: Orders,
        send: Callable[[Report], None],
        started: Started,
        general: Sequence[Mapping[str, Sequence[int]]],
    ) -> None:
        self._spec, self._orders, self._send, self._started = spec, orders, send, started
        self._general = general
        self._forgetting: Forgetting | None = None
        self._prober: Prober | None = None
        self._base: Mapping[str, Any] | None = None
        self._began = self._seconds = self._tokens = 0.0
        self._epoch_steps = 0
        self._last: dict[str, float] = {}
        self._evaluated: tuple[int, dict[str, float]] = (0, {})
        self.reason: Reason = "complete"

    def on_train_begin(
        self, _args: Any, state: Any, _control: Any, *, model: Any, processing_class: Any, **_: Any
    ) -> None:
        self._epoch_steps = state.max_steps // state.num_train_epochs
        self._started = replace(self._started, steps=state.max_steps, resumed_step=state.global_step)
        self._send(self._started)
        if self._spec.dry_run_steps is None:
            self._base = provenance.describe_base(self._spec)
            self._measure(model, processing_class)
        _check_goes_on(self._orders)

    def _measure(self, model: Any, tokenizer: Any) -> None:
        """Measure the model before training, so that it can be compared with what comes of it."""
        _check_goes_on(self._orders)
        self._prober = Prober(model, tokenizer)
        _check_goes_on(self._orders)
        known = _previous_run(self._spec).get("forgetting")
        if known is not None:
            self._forgetting = convert(known, Forgetting)
        else:
            source = "rows of the general file" if self._spec.general else "docstrings of Python's standard library"
            self._forgetting = Forgetting(len(self._general), source, forgetting.mean_nll(model, self._general))
            self._send(self._forgetting)

    def on_step_begin(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        self._began = time.monotonic()

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        self._seconds = time.monotonic() - self._began
        step, spec = state.global_step, self._spec
        ends = step % self._epoch_steps == 0
        control.should_log = True
        if spec.dry_run_steps is not None:
            return
        control.should_evaluate = spec.validation is not None and (ends or _is_due(step, spec.eval_steps))
        control.should_save = ends or _is_due(step, spec.save_steps)
        if self._orders.checkpoint_and_stop.is_set() and step < state.max_steps:
            self._stop(control, "checkpoint")

    def on_log(self, _args: Any, state: Any, control: Any, *, logs: Mapping[str, float], **_: Any) -> None:
        if "loss" not in logs:
            return
        loss, norm = logs["loss"], logs.get("grad_norm")
        _check_finite(state.global_step, loss, norm)
        accuracy, memory = logs.get(_ACCURACY[self._spec.method]), _memory()
        tokens = logs.get("num_tokens", self._tokens)
        speed, self._tokens = (tokens - self._tokens) / self._seconds, tokens
        self._last = _drop_unknown(train_loss=loss, train_mean_token_accuracy=accuracy)
        rate = logs["learning_rate"]
        preference = {name: logs[name] for name in _PREFERENCE if name in logs}
        self._send(Step(state.global_step, state.epoch, loss, accuracy, norm, rate, speed, memory, preference))
        limit = self._spec.max_memory_bytes
        if limit is not None and memory > limit and state.global_step < state.max_steps:
            self._stop(control, "memory_limit")

    def on_evaluate(self, _args: Any, state: Any, control: Any, *, metrics: Mapping[str, float], **_: Any) -> None:
        loss, accuracy = metrics["eval_loss"], metrics.get(f"eval_{_ACCURACY[self._spec.method]}")
        self._last |= _drop_unknown(valid_loss=loss, valid_mean_token_accuracy=accuracy)
        self._evaluated = (
            state.global_step,
            _drop_unknown(full_valid_loss=loss, full_valid_mean_token_accuracy=accuracy),
        )
        preference = {name: metrics[f"eval_{name}"] for name in _PREFERENCE if f"eval_{name}" in metrics}
        self._send(EvaluationReport(state.global_step, loss, accuracy, preference))
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        if self._spec.load_best and loss == min(losses):
            control.should_save = True
        if self._spec.patience and _stagnates(losses, self._spec.patience, self._spec.min_delta):
            self._stop(control, "early_stopping")

    def on_save(self, args: Any, state: Any, _control: Any, *, model: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _tidy(folder, _public_base(self._spec), self._spec.revision)
        if state.global_step == state.max_steps or self.reason == "early_stopping":
            self._measure_forgetting(model)
        spread = None
        if self._prober is not None:
            own = state.global_step % self._epoch_steps == 0 or self.reason == "early_stopping"
            spread = self._prober.write(model, folder, own=own)
        run = {
            "step": state.global_step,
            "steps": state.max_steps,
            "epoch": state.epoch,
            "dtype": self._started.dtype,
            "device": self._started.device,
            "threads": self._spec.threads,
            "method": self._spec.method,
            "peft": self._spec.peft,
            "versions": self._started.versions,
            "hardware": provenance.hardware(),
            "base": self._base,
            "forgetting": to_builtins(self._forgetting),
            "probe_spread": spread,
        }
        files = {name: file.sha256 for name, file in checkpoint_folder.seal(folder, run).files.items()}
        step, evaluated = self._evaluated
        metrics = {"step": state.global_step} | self._last | (evaluated if step == state.global_step else {})
        self._send(CheckpointReport(state.global_step, str(folder), files, metrics))

    def _measure_forgetting(self, model: Any) -> None:
        assert self._forgetting is not None
        self._forgetting = replace(self._forgetting, after=forgetting.mean_nll(model, self._general))
        self._last |= _drop_unknown(
            general_nll_before=self._forgetting.before, general_nll_after=self._forgetting.after
        )
        self._send(self._forgetting)

    def _stop(self, control: Any, reason: Reason) -> None:
        control.should_save = control.should_training_stop = True
        self.reason = reason


class _Unpublished:
    """A trainer that writes no model card: its models stay in the deployment."""

    def create_model_card(self, *_: Any, **__: Any) -> None: ...


class _Supervised(_Unpublished, trl.SFTTrainer):  # type: ignore[misc]
    pass


class _Preference(_Unpublished, trl.DPOTrainer):  # type: ignore[misc]
    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """Return the rows, which are token ids already."""
        return dataset


def _trainer(spec: Spec, tokenizer: Any, train: Any, validation: Any, dtype: str) -> Any:
    model, adapter = _load(spec, dtype), _new_adapter(spec)
    common = {
        "output_dir": spec.output,
        "num_train_epochs": spec.n_epochs,
        "max_steps": spec.dry_run_steps or -1,
        "per_device_train_batch_size": spec.batch_size,
        "per_device_eval_batch_size": spec.batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": spec.scheduler,
        "warmup_steps": spec.warmup_ratio,  # below 1: a share of the steps
        "weight_decay": spec.weight_decay,
        "optim": "adamw_torch",
        "seed": spec.seed,
        "data_seed": spec.seed,
        "bf16": dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": torch.cuda.is_available(),
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "max_length": None,
    }
    if spec.method == "dpo":
        arguments = trl.DPOConfig(**common, beta=spec.beta)
        return _Preference(model, None, arguments, None, train, validation, tokenizer, peft_config=adapter)
    if spec.packing:
        common["max_length"] = _longest(spec)
        train = pack_dataset(train, common["max_length"], "bfd")
    arguments = trl.SFTConfig(
        **common, packing=spec.packing, eval_packing=False, dataset_kwargs={"skip_prepare_dataset": True}
    )
    return _Supervised(model, arguments, None, train, validation, tokenizer, peft_config=adapter)


def _load(spec: Spec, dtype: str) -> Any:
    """Return the base, with the adapter that training goes on from if there is one.

    Weights that are trained are float32; with bfloat16 the computation is bfloat16, and so are weights that stay. With
    `qlora` the weights of linear layers have 4 bits.
    """
    frozen = spec.peft != "full" and dtype == "bfloat16"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        spec.base,
        revision=spec.revision,
        dtype=torch.bfloat16 if frozen else torch.float32,
        quantization_config=quantization.config(dtype) if spec.peft == "qlora" else None,
    )
    model.config.use_cache = False
    return _with_adapter(model, spec.adapter, spec.base_name) if spec.adapter else model


def _with_adapter(model: Any, adapter: str, base_name: str) -> Any:
    try:
        return peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:  # weights of other shapes, or of layers that the base lacks
        message = f"The adapter that the training goes on from is not one of the model '{base_name}'."
        raise CannotTrain("adapter_mismatch", message) from error


def _new_adapter(spec: Spec) -> Any:
    """Return the configuration of the adapter that is to be trained; None where it exists, or all is trained."""
    if spec.peft == "full" or spec.adapter:
        return None
    return peft.LoraConfig(
        r=spec.rank,
        lora_alpha=2 * spec.rank if spec.alpha is None else spec.alpha,
        lora_dropout=spec.lora_dropout,
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
        target_modules=list(spec.target_modules) if spec.target_modules else "all-linear",
        task_type="CAUSAL_LM",
    )


def _trial_model(spec: Spec, dtype: str) -> Any:
    """Return a model as it is trained, to measure steps with."""
    model, adapter = _load(spec, dtype), _new_adapter(spec)
    return peft.get_peft_model(model, adapter) if adapter else model


def _resolve_peft(spec: Spec, train: Any) -> tuple[Spec, dict[str, int]]:
    """Return the spec with what is trained in place of `auto`, and the numbers of that choice. Raises CannotTrain."""
    if spec.peft == "auto" and spec.resume:
        spec = replace(spec, peft=_previous_run(spec)["peft"])
    if spec.peft not in ("auto", "qlora"):
        return spec, {}
    fault = quantization.nf4_fault()
    if spec.peft == "qlora":
        if fault:
            raise CannotTrain("unsupported_on_this_worker", fault)
        return spec, {}
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    load = partial(_trial_model_of, spec, dtype)
    name, numbers = peft_choice.choose(load, _heaviest(spec, train), _base_bytes(spec, dtype), quantizes=not fault)
    if name is None:
        raise CannotTrain("out_of_memory", f"The model does not fit, in bytes: {numbers}. {fault or ''}".rstrip())
    return replace(spec, peft=name), numbers


def _previous_run(spec: Spec) -> dict[str, Any]:
    """Return what the checkpoint that is resumed from says of its run; nothing where the run begins."""
    return decode_manifest((Path(spec.resume) / MANIFEST).read_bytes()).run if spec.resume else {}


def _trial_model_of(spec: Spec, dtype: str, name: Any) -> Any:
    return _trial_model(replace(spec, peft=name), dtype)


def _base_bytes(spec: Spec, dtype: str) -> int:
    """Return the bytes of the base's weights in a dtype, without loading them."""
    configuration = transformers.AutoConfig.from_pretrained(spec.base, revision=spec.revision)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(configuration)
    return sum(int(values.numel()) for values in model.parameters()) * (2 if dtype == "bfloat16" else 4)


def _dataset(spec: Spec, tokenizer: Any, path: Path, name: str) -> Any:
    """Return the rows of a file as ids, in an Arrow file that is mapped into memory and not read into it."""
    encode, longest = _ENCODE[spec.method], _longest(spec)
    features = datasets.Features({name: datasets.List(datasets.Value("int32")) for name in _COLUMNS[spec.method]})
    target = Path(spec.output) / f"{name}.arrow"
    with ArrowWriter(features=features, path=str(target)) as writer:
        for line, row in rows.read(path):
            writer.write(encode(tokenizer, line, row, longest, truncate=spec.truncate))
        writer.finalize()
    return datasets.Dataset.from_file(str(target))


def _longest(spec: Spec) -> int:
    """Return how many tokens a row may have."""
    context: int = transformers.AutoConfig.from_pretrained(spec.base, revision=spec.revision).max_position_embeddings
    return min(spec.max_sequence_length or context, context)


def _dtype(spec: Spec, train: Any) -> tuple[str, dict[str, float]]:
    """Return the dtype to compute in, and the seconds of a step by dtype where that was measured."""
    if spec.resume:  # the curve goes on as it began
        return str(checkpoint_folder.verify(Path(spec.resume), resume=True).run["dtype"]), {}
    if spec.dtype != "auto":
        return spec.dtype, {}
    return precision.choose(partial(_trial_model, spec), _heaviest(spec, train))


def _heaviest(spec: Spec, train: Any) -> list[list[int]]:
    """Return the longest sequences of the training data, a batch of them."""
    columns = _COLUMNS[spec.method][: 2 if spec.method == "dpo" else 1]  # a prompt and its answer are one sequence
    longest = _lengths(train, columns).argsort()[::-1][: spec.batch_size]
    return [list(chain.from_iterable(train[int(index)][name] for name in columns)) for index in longest]


def _lengths(dataset: Any, columns: Sequence[str]) -> Any:
    """Return how many tokens each row has in all of these columns."""
    return sum(compute.list_value_length(dataset.data.column(name)).to_numpy() for name in columns)


def _public_base(spec: Spec) -> str:
    """Return the name of the base that means something on other machines: the hub's, else that of the models file."""
    return spec.base_name if Path(spec.base).is_dir() else spec.base


def _tidy(folder: Path, base: str, revision: str | None) -> None:
    """Remove what nothing reads, and write configurations for those who load the model.

    An adapter names its base, which is not the folder where it lies on this machine. A whole model may use a cache,
    which training does without.

    The adapter that preferences are compared with is read anew by a run that is resumed; trl's trainer would load it
    in place of the one that is trained.
    """
    if (folder / _REFERENCE).is_dir():
        shutil.rmtree(folder / _REFERENCE)
    for name in _UNUSED:
        (folder / name).unlink(missing_ok=True)
    facts = {
        "adapter_config.json": {"base_model_name_or_path": base, "revision": revision},
        "config.json": {"use_cache": True},
    }
    for name, values in facts.items():
        if (folder / name).exists():
            config = json.loads((folder / name).read_text()) | values
            if isinstance(modules := config.get("target_modules"), list):
                config["target_modules"] = sorted(modules)  # peft has a set: a repeated training writes the same bytes
            (folder / name).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _stagnates(losses: list[float], patience: int, min_delta: float) -> bool:
    """Return whether none of the last `patience` losses is better than the best before them by `min_delta`."""
    recent, before = losses[-patience:], losses[:-patience]
    return bool(before) and min(recent) >= min(before) - min_delta


def _check_finite(step: int, loss: float, norm: float | None) -> None:
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if value is not None and not math.isfinite(value):
            raise CannotTrain("non_finite", f"The {name} of step {step} is not a finite number ({value}).")


def _drop_unknown(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _memory() -> int:
    """Return the bytes that training holds: of the GPU, or of this process where there is none."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return processes.resident_bytes(os.getpid()) or 0

"""One claim on a job's training: fetch what it needs, drive the trainer, record, store checkpoints, end.

    all ─▶ folder of this machine: data, base or adapter, last checkpoint
        ─▶ trainer ─┬─ step, evaluation ─▶ Recorder
                    ├─ checkpoint ─▶ storage ─▶ row
                    ├─ finished ─▶ the shard is done: the job's finish makes the results
                    ├─ failed ─▶ the same, with the error that the job will fail with
                    └─ died ─▶ again from the last checkpoint; after some times without one it is a failure
    cancelled, claim lost: the trainer is killed
    paused, worker stops, another project's turn: a checkpoint first, then released

A kill anywhere leaves rows and files from which another claim goes on: what was trained after the last checkpoint is
trained again, with the same data and the same result.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import ClaimLost, NotFound, StorageFull
from jobs.finetuning import datasets, estimates, names
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetuneCheckpoint, FinetunePlan
from jobs.fleet import devices
from jobs.fleet.models_file import ModelConfig, ModelsFileError
from jobs.ledger import ledger, outbox, pauses, shards
from jobs.ledger.outbox import SPEND_LIMIT
from jobs.ledger.shards import ShardClaim
from jobs.platform.storage import CHUNK
from jobs.queues import Queue
from jobs.registry import models
from jobs.registry.manifests import MANIFEST, decode_manifest
from jobs.usage import budgets
from workers.engines import model_folders
from workers.engines.model_folders import ModelUnavailable
from workers.engines.training.checkpoint_folder import DamagedCheckpoint
from workers.engines.training.protocol import (
    CheckpointReport,
    EvaluationReport,
    Failed,
    Finished,
    Forgetting,
    Report,
    Spec,
    Started,
    Step,
)
from workers.finetuning import checkpoints, limits, results, scratch
from workers.finetuning.recorder import Recorder
from workers.finetuning.trainer_process import TrainerDied, TrainerProcess
from workers.runtime.attempts import Abandoned, ShardRun
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle

log = logging.getLogger(__name__)
_LOOK: Final = 0.5  # seconds between looks at whether the claim still holds
_TRIES: Final = 3  # of the trainer, when it died each time before its first new checkpoint
_CLAIMS: Final = 8  # that ended with their worker, each before its first new checkpoint
_PARTS: Final = {"lora": 20, "full": 4}  # checkpoints of a job, besides those at the ends of epochs
_EVALUATIONS: Final = 20
_NO_MEMORY: Final = " It was killed: the machine may have too little memory."

#: The learning rate that the job's multiplier multiplies, by method and by what is trained.
LEARNING_RATES: Final[Mapping[tuple[str, str], float]] = {
    ("supervised", "lora"): 2e-4,
    ("supervised", "full"): 2e-5,
    ("dpo", "lora"): 1e-5,
    ("dpo", "full"): 1e-6,
}
_BETA: Final = 0.1


class TrainingRun(ShardRun):
    """The training of one job, under one claim on its only shard."""

    def __init__(self, context: Context, claim: ShardClaim, handle: ClaimHandle, module: str | None = None) -> None:
        super().__init__(context, claim, handle)
        self._payload = FineTuning.model_validate(claim.job.payload)
        with context.db.read() as session:
            self._spent = limits.TrainingTime(session.get_one(FinetunePlan, claim.job.id))
        self._recorder = Recorder(context, claim, self._spent)
        self._module = {} if module is None else {"module": module}
        self._ordered: float | None = None  # when a checkpoint was asked for
        self._looked = 0.0  # when it was last read whether the job is paused
        self._spend_looked = 0.0  # when it was last read whether the project may spend more
        self._held_for = "pause"  # what the job waits for after a checkpoint that was asked for
        self._turn_began: float | None = None
        self._turn_looked = 0.0  # when it was last read whether others wait
        self._turn_is_over = False
        self._limit: Failed | None = None  # that was reached: the error of the job, once there is a checkpoint
        self._finished: Finished | Failed | None = None
        self._progressed = False

    def run_lines(self) -> None:
        """Train to the end. Raises Abandoned, ClaimLost, StorageFull, StorageUnavailable, NotFound."""
        if self.context.low_on_disk():
            raise StorageFull
        self._finished = self._refusal()
        died = 0
        while self._finished is None:
            self._progressed, self._ordered, self._turn_is_over = False, None, False
            self._await_device()
            try:
                name = f"{self.claim.job.id}-{self.claim.epoch}"
                with scratch.folder(self.context.config.data_dir, name) as folder:
                    self._train(folder)
            except TrainerDied as error:
                log.warning("trainer_died", extra={"job_id": self.claim.job.id, "reason": str(error)})
                died = 1 if self._progressed else died + 1
                self._recorder.tell("The trainer died, and is started again from the last checkpoint.", "warn")
                self._recorder.flush()
                message = "The trainer died each time it was started, see the worker's log."
                message += _NO_MEMORY if error.was_killed else ""
                self._finished = self._limit or (Failed("trainer_died", message) if died >= _TRIES else None)
            except DamagedCheckpoint as error:
                self._finished = Failed("checkpoint_damaged", f"What is stored for this job was changed: {error}")
        self._conclude(self._finished)

    def _refusal(self) -> Failed | None:
        """Return why the training is not begun; None where it is."""
        if self.claim.stalls >= _CLAIMS:
            return Failed("trainer_died", "The worker died each time it trained this job.")
        return self._time_error()

    def _time_error(self) -> Failed | None:
        """Return the error of a job that has trained longer than it may; None while it may go on."""
        return limits.time_error(self._spent, self._payload.early_stopping, self.context.config.finetune_max_seconds)

    def _await_device(self) -> None:
        """Wait until no engine uses this worker's device, where a training has it to itself.

        Raises ClaimLost, Abandoned.
        """
        waited = False
        while self.context.config.finetune_exclusive_device and self._open_engines():
            if not waited:
                waited = True
                self._wait_for("device")
            self.handle.changed.wait(self.context.timings.heartbeat_look)
            if self.handle.lost.is_set():
                raise ClaimLost
            if self.handle.ended or self.context.stop.is_set():
                raise Abandoned
            if self._is_paused():
                raise Abandoned(0.0, "pause")
        if waited:
            self._wait_for(None)

    def _open_engines(self) -> Sequence[str]:
        with self.context.db.read() as session:
            return devices.open_engines(session, self.context.standing.host_devices)

    def _wait_for(self, what: str | None) -> None:
        self.context.db.retrying(partial(ledger.wait_for, job_id=self.claim.job.id, what=what))

    def _train(self, folder: Path) -> None:
        spec = self._spec(folder)
        process = TrainerProcess(spec, folder, **self._module)
        self._turn_began = self._turn_began or time.monotonic()
        self._spent.note_start()
        try:
            while self._finished is None:
                for report in process.reports(_LOOK):
                    self._take(report)
                self._recorder.flush_if_due()
                self._check(process)
        finally:
            process.close()
            self._spent.note_end()

    def _check(self, process: TrainerProcess) -> None:
        """Ask the trainer for a checkpoint when this claim is to end soon, or the job has reached a limit.

        Raises:
            ClaimLost: The claim was lost: it ends at once.
            Abandoned: The claim was told to stop, or the worker stops and the checkpoint takes too long.
        """
        if self.handle.lost.is_set():
            raise ClaimLost
        stopping, hold = self.context.stop.is_set(), self._hold_reason() if self._ordered is None else None
        self._limit = self._limit or self._time_error()
        if self._ordered is None and (stopping or hold or self._limit or self._others_wait()):
            self._ordered = time.monotonic()
            process.checkpoint_and_stop()
            if hold:
                self._held_for = hold
                self._wait_for("checkpoint")
        if (self.handle.stop.is_set() and not stopping) or (
            stopping and self._is_late(self.context.timings.training_stop)
        ):
            self._recorder.flush()
            raise Abandoned
        if self._limit and self._is_late(self.context.timings.training_limit):
            self._finished = self._limit

    def _is_late(self, patience: float) -> bool:
        """Return whether the trainer has made no checkpoint within `patience` seconds after it was asked for one."""
        return self._ordered is not None and time.monotonic() - self._ordered > patience

    def _hold_reason(self) -> str | None:
        """Return what the job has to wait for after a checkpoint; None where it may go on."""
        if self._is_paused():
            return "pause"
        return SPEND_LIMIT if self._is_spent() else None

    def _is_spent(self) -> bool:
        """Return whether the project has spent what it may this month, as far as was read a moment ago."""
        moment = time.monotonic()
        if moment - self._spend_looked < self.context.timings.heartbeat_look:
            return False
        self._spend_looked = moment
        with self.context.db.read() as session:
            limited = self.context.limited_projects.refresh(session)
            return bool(limited) and budgets.is_spent(session, self.claim.job.project_id, self.context.price_source)

    def _is_paused(self) -> bool:
        """Return whether the job was paused by itself, as far as was read a moment ago."""
        moment = time.monotonic()
        if not self.context.heartbeat.off.some_jobs or moment - self._looked < self.context.timings.heartbeat_look:
            return False
        self._looked = moment
        with self.context.db.read() as session:
            return bool(pauses.paused_jobs(session, [self.claim.job.id]))

    def _others_wait(self) -> bool:
        """Return whether the turn of this training is over: it was long enough, and another project's job waits."""
        moment, timings = time.monotonic(), self.context.timings
        turn, looked = moment - (self._turn_began or moment), moment - self._turn_looked
        if turn < timings.training_turn or looked < timings.heartbeat_look:
            return False
        self._turn_looked = moment
        with self.context.db.read() as session:
            off, project_id = pauses.current_pauses(session), self.claim.job.project_id
            rests = off.rests(Queue.FINETUNE, self.context.worker_id)
            waits = outbox.is_any_other_waiting(session, Queue.FINETUNE, project_id, now(), off.free)
        self._turn_is_over = waits and not rests
        if self._turn_is_over:
            self._recorder.tell("A job of another project waits: this one makes a checkpoint, and goes on in its turn.")
        return self._turn_is_over

    # -- reports

    def _take(self, report: Report) -> None:
        if isinstance(report, Started):
            self._recorder.record_start(report)
        elif isinstance(report, Step):
            self._recorder.record_step(report)
        elif isinstance(report, EvaluationReport):
            self._recorder.record_evaluation(report)
        elif isinstance(report, Forgetting):
            self._recorder.record_forgetting(report)
        elif isinstance(report, CheckpointReport):
            self._store(report)
        else:
            self._take_end(report)

    def _take_end(self, report: Finished | Failed) -> None:
        if isinstance(report, Failed) and report.code == "storage_full":
            raise StorageFull
        if isinstance(report, Finished) and report.reason == "memory_limit":
            self._finished = limits.memory_error(self._payload.early_stopping)
        elif isinstance(report, Finished) and report.reason == "checkpoint":
            if self._limit is None:
                raise Abandoned(0.0, None if self.context.stop.is_set() or self._turn_is_over else self._held_for)
            self._finished = self._limit
        else:
            self._finished = report

    def _store(self, report: CheckpointReport) -> None:
        """Store a checkpoint, then add its row, and the model under which clients may ask for it."""
        folder, job = Path(report.folder), self.claim.job
        target = checkpoints.location(job.id, report.step, self.claim.epoch)
        storage = self.context.storage
        stored = checkpoints.upload(storage, folder, target)
        run = decode_manifest((folder / MANIFEST).read_bytes())
        self._recorder.tell(f"Checkpoint created at step {report.step}.")

        def add(session: Session) -> list[str]:
            self._recorder.write(session)
            shards.note_progress(session, self.claim)
            forgotten = checkpoints.add(session, job.id, report.step, **stored, metrics=dict(report.metrics))
            name = names.checkpoint_name(self._payload.result, report.step)
            results.register(
                session, job, name, step=report.step, location=target, sha256=stored["sha256"], manifest=run
            )
            return forgotten

        forgotten = self.context.db.retrying(add)
        self._recorder.reset()
        self._progressed = True
        checkpoints.remove_optimizer(storage, forgotten)
        shutil.rmtree(folder)

    # -- the end

    def _conclude(self, finished: Finished | Failed) -> None:
        self._recorder.flush()
        if isinstance(finished, Failed):
            self._end({name: getattr(finished, name) for name in ("code", "message", "line", "param")})
        else:
            self._end(None)

    def _end(self, error: Mapping[str, Any] | None) -> None:
        """Close the shard, so that the job is finished; with an error the job fails then. Raises ClaimLost."""

        def end(session: Session) -> None:
            job = shards.finish_empty(session, self.claim)
            if job is not None:
                if error is not None:
                    ledger.note_errors(session, job, [error])
                ledger.advance_job(session, job.id, actor=f"worker:{self.context.worker_id}", locked=job)

        self.context.db.retrying(end)
        self.closed = True

    # -- what the trainer needs

    def _spec(self, folder: Path) -> Spec:
        job, payload = self.claim.job, self._payload
        with self.context.db.read() as session:
            plan = session.get_one(FinetunePlan, job.id)
            data = datasets.data_of_job(session, job.id)
            stored = checkpoints.of_job(session, job.id)
            before = stored or (checkpoints.of_job(session, payload.resumed_from) if payload.resumed_from else [])
            parent = models.find(session, payload.parent, job.project_id) if payload.parent else None
        checkpoints.remove_partial_uploads(self.context.storage, job.id, [row.location for row in stored])
        base, model = self._base()
        revision = model.source.revision
        adapter = None
        if payload.parent:
            if parent is None:
                raise DamagedCheckpoint(f"the model '{payload.parent}' is gone.")
            model_folder = folder / "parent"
            checkpoints.download(self.context.storage, parent.location, parent.sha256, model_folder)
            base, revision, adapter = _base_of(parent.method, str(model_folder), base, revision)
        resume, threads = self._resume(folder, before)
        training, chosen = payload.training, payload.hyperparameters
        trained = "full" if payload.peft == "full" else "lora"
        output = folder / "output"
        output.mkdir()
        validation, general = data.get(datasets.VALIDATION), data.get(datasets.GENERAL)
        return Spec(
            base=base,
            revision=revision,
            license=model.license,
            base_name=payload.base,
            adapter=adapter,
            rows=self._fetch(data[datasets.TRAINING].sha256, folder / "train.jsonl"),
            validation=self._fetch(validation.sha256, folder / "validation.jsonl") if validation else None,
            general=self._fetch(general.sha256, folder / "general.jsonl") if general else None,
            output=str(output),
            resume=resume,
            method=payload.method,
            peft=payload.peft,
            learning_rate=training.learning_rate
            or LEARNING_RATES[payload.method, trained] * plan.learning_rate_multiplier,
            batch_size=plan.batch_size,
            n_epochs=plan.n_epochs,
            beta=_BETA if chosen.beta == "auto" else chosen.beta,
            seed=payload.seed,
            threads=threads,
            rank=training.rank,
            alpha=training.alpha,
            lora_dropout=training.lora_dropout,
            use_rslora=training.use_rslora,
            use_dora=training.use_dora,
            target_modules=None if training.target_modules is None else tuple(training.target_modules),
            scheduler=training.scheduler,
            warmup_ratio=training.warmup_ratio,
            weight_decay=training.weight_decay,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            max_sequence_length=training.max_sequence_length,
            truncate=training.truncate,
            chat_template=training.chat_template,
            packing=training.packing,
            load_best=payload.loads_best,
            eval_steps=training.eval_steps or max(1, plan.steps // _EVALUATIONS),
            save_steps=max(1, plan.steps // _PARTS[trained]),
            patience=payload.early_stopping.patience,
            min_delta=payload.early_stopping.min_delta,
            max_memory_bytes=payload.early_stopping.max_memory_bytes,
            dry_run_steps=estimates.MEASURED_STEPS if payload.dry_run else None,
        )

    def _base(self) -> tuple[str, ModelConfig]:
        """Return the folder or the hub's name of the base, and its entry in the models file.

        Raises Abandoned when the base is away: out of the models file, or its folder out of this machine.
        """
        with suppress(ModelsFileError, ModelUnavailable):
            model = self.context.models.now().trainable.get(self._payload.base)
            if model is not None and (model.source.path is None or Path(model.source.path).is_dir()):
                return model_folders.source_of(model, self.context.config), model
        raise Abandoned(self.context.timings.storage_retry, "model")

    def _resume(self, folder: Path, rows: Any) -> tuple[str | None, int]:
        """Fetch the last checkpoint that a run can go on from; return its folder, and the threads to compute with."""
        threads = os.cpu_count() or 1
        row: FinetuneCheckpoint | None = next((row for row in rows if row.keeps_optimizer), None)
        if row is None:
            return None, threads
        target = folder / "resume"
        manifest = checkpoints.download(self.context.storage, row.location, row.sha256, target, resume=True)
        return str(target), manifest.run.get("threads", threads)

    def _fetch(self, sha256: str | None, target: Path) -> str:
        """Fetch a snapshot. Raises NotFound, Damaged when its bytes are not those that were examined."""
        if sha256 is None:
            raise NotFound("The data of this job are gone.")
        with self.context.storage.reader(datasets.location(sha256)) as source, target.open("wb") as handle:
            shutil.copyfileobj(source, handle, CHUNK)
        with target.open("rb") as written:
            if hashlib.file_digest(written, "sha256").hexdigest() != sha256:
                raise DamagedCheckpoint("the rows are not those that were examined.")
        return str(target)


def _base_of(method: str, folder: str, base: str, revision: str | None) -> tuple[str, str | None, str | None]:
    """Return the base, its revision and the adapter for a training that goes on from a tuned model."""
    return (folder, None, None) if method == "full" else (base, revision, folder)

"""The trainer on a model of random weights: what it reports, and what a killed run goes on with."""

import json
import math
import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.support.training_runs import Ended, Trainers
from workers.engines import probes
from workers.engines.training import checkpoint_folder
from workers.engines.training.__main__ import _failure
from workers.engines.training.protocol import (
    CheckpointReport,
    EvaluationReport,
    Failed,
    Finished,
    Forgetting,
    Spec,
    Started,
    Step,
)

ROWS = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"it is {n}."}]}
    for n in range(24)
]
STEPS = 12  # of a run over the rows
PAIRS = [
    {
        "input": {"messages": row["messages"][:1]},
        "preferred_output": row["messages"][1:],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }
    for row in ROWS
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def trainers() -> Iterator[Trainers]:
    trainers = Trainers()
    yield trainers
    trainers.close()


@pytest.fixture(scope="module")
def base(trainers: Trainers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainers.write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def spec(base: Path, tmp_path: Path) -> Spec:
    return Spec(
        base=str(base),
        base_name="tiny",
        rows=write(tmp_path / "rows.jsonl", ROWS),
        validation=write(tmp_path / "validation.jsonl", ROWS[:4]),
        output=str(tmp_path / "whole"),
        learning_rate=5e-3,
        batch_size=2,
        n_epochs=1,
        seed=7,
        threads=1,
        dtype="float32",
        eval_steps=4,
        save_steps=3,
    )


def killed_run(trainers: Trainers, spec: Spec, folder: Path, kills: list[int]) -> tuple[dict[int, float], Ended]:
    """Run a spec that is killed after each of these steps and resumed; return the losses of all attempts."""
    losses: dict[int, float] = {}
    resume = None
    for attempt, step in enumerate([*kills, None]):
        for trial in count():
            run = replace(spec, output=str(folder / f"attempt-{attempt}-{trial}"), resume=resume)
            ended = trainers.run(run, step, delay=random.uniform(0, 0.3))
            if step is None or STEPS not in ended.losses:
                break  # else the kill came too late, and there is nothing to resume
        for number, loss in ended.losses.items():
            assert losses.setdefault(number, loss) == pytest.approx(loss, abs=1e-4)
        resume = ended.last_checkpoint or resume
    return losses, ended


def tensors(folder: str, file: str = "adapter_model.safetensors") -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(Path(folder) / file)


def assert_same_tensors(first: str, second: str) -> None:
    one, other = tensors(first), tensors(second)
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert other[name] == pytest.approx(values, rel=1e-3, abs=1e-6)


@pytest.mark.verify
def test_a_killed_run_goes_on_as_if_it_had_not_been(trainers: Trainers, spec: Spec, tmp_path: Path) -> None:
    whole = trainers.run(spec)

    losses, last = killed_run(trainers, spec, tmp_path, [2, 8])

    assert whole.status == 0
    assert losses == pytest.approx(whole.losses, abs=1e-4)
    assert whole.last_checkpoint
    assert last.last_checkpoint
    assert_same_tensors(whole.last_checkpoint, last.last_checkpoint)
    assert last.of(Forgetting)[-1].before == whole.of(Forgetting)[0].before
    assert last.of(Forgetting)[-1].after == pytest.approx(whole.of(Forgetting)[-1].after, rel=1e-3)
    assert_reports_all(whole)


def assert_reports_all(whole: Ended) -> None:
    (started,) = whole.of(Started)
    assert (started.steps, started.rows, started.dtype, started.resumed_step) == (12, 24, "float32", 0)
    assert [step.step for step in whole.of(Step)] == list(range(1, 13))
    assert [one.step for one in whole.of(EvaluationReport)] == [4, 8, 12]
    assert [one.step for one in whole.of(CheckpointReport)] == [3, 6, 9, 12]
    assert whole.reports[-1] == Finished(12, "complete")
    last = whole.of(Step)[-1]
    assert last.loss < whole.of(Step)[0].loss
    assert last.epoch == 1
    assert last.memory_bytes > 1 << 20
    assert last.tokens_per_second > 0
    assert 0 < last.accuracy <= 1
    checkpoint = whole.of(CheckpointReport)[-1]
    manifest = checkpoint_folder.verify(Path(checkpoint.folder), resume=True)
    assert {name: file.sha256 for name, file in manifest.files.items()} == checkpoint.files
    assert checkpoint.metrics["valid_loss"] == whole.of(EvaluationReport)[-1].loss
    losses = {evaluation.step: evaluation.loss for evaluation in whole.of(EvaluationReport)}
    saved = whole.of(CheckpointReport)
    measured = {one.step: one.metrics["full_valid_loss"] for one in saved if "full_valid_loss" in one.metrics}
    assert measured == {one.step: losses[one.step] for one in saved if one.step in losses}
    assert set(measured) == {12}
    assert_probes(whole.of(CheckpointReport))
    before, after = whole.of(Forgetting)
    assert (before.texts, before.source) == (64, "docstrings of Python's standard library")
    assert before.before == after.before == pytest.approx(math.log(259), rel=0.05)  # random weights know nothing
    assert after.after is not None
    assert abs(after.after - after.before) > 1e-3
    assert manifest.run["forgetting"] == msgspec.to_builtins(after)
    assert checkpoint.metrics["general_nll_after"] == after.after
    assert manifest.run["base"].keys() == {"sha256", "revision", "license"}
    assert manifest.run["hardware"]["devices"] == []
    assert manifest.run["versions"].keys() >= {"python", "nightmill", "torch"}
    config = json.loads((Path(checkpoint.folder) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"


def assert_probes(checkpoints: list[CheckpointReport]) -> None:
    """Check that each checkpoint has probes of itself: the last one all, the others few, continued as by the base."""
    *before, last = [probes.read(Path(checkpoint.folder)) for checkpoint in checkpoints]
    assert {len(probed) for probed in before} == {len(probes.BRIEF)}
    assert len(last) == len(probes.CHATS)
    first = before[0]
    for probed in before[1:]:
        for probe, of_first in zip(probed, first, strict=True):
            assert (probe.continuation, probe.base_logprobs) == (of_first.continuation, of_first.base_logprobs)
            assert probe.logprobs != of_first.logprobs
    for probe in first:  # greedy: each token is at least as probable as one of 259 that are equally so
        assert all(logprob > -math.log(259) for logprob in probe.base_logprobs)
        assert 1 <= len(probe.continuation) == len(probe.logprobs) <= probes.CONTINUATION
    for probed in (*before, last):
        measured = [probe for probe in probed if probe.other_logprobs]
        assert len(measured) == (3 if probed is last else 1)
        assert all(len(probe.other_logprobs) == len(probe.logprobs) for probe in measured)
        assert 0 < probes.dtype_difference(probed) < 0.05  # of the same weights in bfloat16
    same_chats = [last[number] for number in probes.BRIEF]
    assert [probe.token_ids for probe in same_chats] == [probe.token_ids for probe in first]
    assert [probe.continuation for probe in same_chats] != [probe.continuation for probe in first]


@pytest.mark.verify
def test_a_run_in_bfloat16_is_probed_in_float32_too_and_keeps_its_weights(trainers: Trainers, spec: Spec) -> None:
    ended = trainers.run(replace(spec, dtype="bfloat16"))

    probed = probes.read(Path(ended.last_checkpoint or ""))
    manifest = checkpoint_folder.verify(Path(ended.last_checkpoint or ""))
    assert 0 < manifest.run["probe_spread"] == probes.dtype_difference(probed) < 0.05
    assert ended.losses[len(ended.losses)] < ended.losses[1]


def test_row_with_invalid_prefix_is_reported_with_its_line(trainers: Trainers, spec: Spec, tmp_path: Path) -> None:
    """The template leaves out what the assistant said before its last answer."""
    template = "{% for m in messages %}{{ m.content if m.role == 'user' or loop.last }}<|im_end|>{% endfor %}"
    base = trainers.write_model(tmp_path / "forgetful", template=template)
    rows = [*ROWS[:2], {"messages": [*ROWS[2]["messages"], *ROWS[3]["messages"]]}]

    ended = trainers.run(replace(spec, base=str(base), rows=write(tmp_path / "three.jsonl", rows)))

    (failed,) = ended.reports
    assert isinstance(failed, Failed)
    assert (failed.code, failed.line) == ("invalid_row", 3)
    assert ended.status == 0


@pytest.mark.verify
def test_stopped_run_writes_checkpoint_and_can_resume(trainers: Trainers, spec: Spec, tmp_path: Path) -> None:
    ended = trainers.run(spec, 1, "stop")

    finished = ended.reports[-1]
    assert isinstance(finished, Finished)
    assert finished.reason == "checkpoint"
    assert ended.of(CheckpointReport)[-1].step == finished.step < 12
    resumed = trainers.run(replace(spec, output=str(tmp_path / "resumed"), resume=ended.last_checkpoint))
    assert resumed.of(Started)[0].resumed_step == finished.step
    assert min(resumed.losses) == finished.step + 1


@pytest.mark.verify
def test_run_stopped_during_startup_trains_no_step(trainers: Trainers, spec: Spec) -> None:
    ended = trainers.run(spec, 0, "stop")

    assert (ended.status, ended.of(Step), ended.of(CheckpointReport)) == (0, [], [])
    assert ended.of(Finished) == [Finished(0, "checkpoint")]


def test_insufficient_memory_is_reported_as_out_of_memory() -> None:
    torch = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 12 GB"

    for error in (RuntimeError(torch), MemoryError()):
        failed = _failure(error)
        assert failed is not None
        assert failed.code == "out_of_memory"
        assert "too little memory" in failed.message


@pytest.mark.verify
def test_a_run_ends_with_the_process_that_reads_its_reports(trainers: Trainers, spec: Spec) -> None:
    ended = trainers.run(replace(spec, n_epochs=50), 1, "leave")

    assert ended.status > 0
    assert not ended.of(Finished)


@pytest.mark.verify
def test_forgetting_is_measured_on_the_rows_of_a_file(trainers: Trainers, spec: Spec) -> None:
    """The rows are those that are trained on: their loss falls, as that of the validation does."""
    ended = trainers.run(replace(spec, general=spec.validation, n_epochs=4))

    report = ended.of(Forgetting)[-1]
    assert (report.texts, report.source) == (4, "rows of the general file")
    assert report.after == pytest.approx(ended.of(EvaluationReport)[-1].loss, rel=0.05)
    assert report.after < report.before - 0.5


@pytest.mark.verify
def test_a_loss_that_is_no_number_ends_the_run(trainers: Trainers, spec: Spec) -> None:
    ended = trainers.run(replace(spec, peft="full", learning_rate=1e30, save_steps=1))

    failed = ended.reports[-1]
    assert isinstance(failed, Failed)
    assert failed.code == "non_finite"
    assert "not a finite number" in failed.message


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["lora", "full", "dpo", "packed"])
def test_twenty_kills_change_no_loss(trainers: Trainers, spec: Spec, tmp_path: Path, method: str) -> None:
    if method == "dpo":  # on from an adapter, with which preferences are compared
        first = trainers.run(replace(spec, n_epochs=1, output=str(tmp_path / "first")))
        pairs = write(tmp_path / "pairs.jsonl", PAIRS)
        spec = replace(spec, method="dpo", rows=pairs, validation=None, adapter=first.last_checkpoint)
    spec = replace(
        spec,
        peft="full" if method == "full" else "lora",
        packing=method == "packed",
        max_sequence_length=128,
        batch_size=1 if method == "packed" else 2,
        gradient_accumulation_steps=2,
        save_steps=1,
        n_epochs=4,
        learning_rate=1e-3,
    )
    whole = trainers.run(spec)
    steps = whole.of(Started)[0].steps
    generator = random.Random(method)

    kills = sorted(generator.sample(range(1, steps), min(5, steps - 1)))
    losses, last = killed_run(trainers, spec, tmp_path, kills)

    assert whole.status == 0
    assert losses == pytest.approx(whole.losses, abs=1e-4)
    assert last.reports[-1] == whole.reports[-1]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_full_and_adapter_training_reduce_loss(trainers: Trainers, spec: Spec, tmp_path: Path) -> None:
    """All weights are trained first. On that model adapters come further than a run that may not learn.

    The model is 64 columns wide: bitsandbytes packs quantized weights for a CPU in blocks of 64.
    """
    wide = trainers.write_model(tmp_path / "wide", hidden_size=64)
    spec = replace(spec, base=str(wide))
    full = trainers.run(replace(spec, peft="full", n_epochs=10, learning_rate=1e-2, output=str(tmp_path / "full")))
    assert full.losses[120] < 0.7 * full.losses[1]
    assert "model.safetensors" in full.of(CheckpointReport)[-1].files

    news = write(tmp_path / "news.jsonl", [turned(row) for row in ROWS])
    spec = replace(spec, base=str(full.last_checkpoint), rows=news, validation=news, n_epochs=2)
    ends = {}
    for name, changes in {"lora": {}, "qlora": {"peft": "qlora"}, "idle": {"learning_rate": 0.0}}.items():
        ended = trainers.run(replace(spec, output=str(tmp_path / name), **changes))
        assert ended.status == 0
        ends[name] = ended

    idle = ends["idle"].of(EvaluationReport)[-1].loss
    assert ends["lora"].of(EvaluationReport)[-1].loss < 0.9 * idle
    refused = ends["qlora"].of(Failed)
    if refused:  # a machine without kernels for 4-bit weights
        assert [failed.code for failed in refused] == ["unsupported_on_this_worker"]
    else:
        assert ends["qlora"].of(EvaluationReport)[-1].loss < 0.9 * idle
        assert ends["qlora"].of(Started)[0].peft == "qlora"


def turned(row: dict[str, Any]) -> dict[str, Any]:
    """Return an example that the model was not trained on."""
    question, answer = row["messages"]
    return {"messages": [question, {**answer, "content": answer["content"][::-1]}]}


@pytest.mark.verify
def test_auto_peft_is_chosen_by_memory_and_reused_on_resume(trainers: Trainers, spec: Spec, tmp_path: Path) -> None:
    whole = trainers.run(replace(spec, peft="auto"), 4)

    (started,) = whole.of(Started)
    assert started.peft == "lora"
    assert 0 < started.memory_bytes["lora"] < started.memory_bytes["free"]
    resumed = trainers.run(replace(spec, peft="auto", resume=whole.last_checkpoint, output=str(tmp_path / "resumed")))
    assert (resumed.of(Started)[0].peft, resumed.of(Started)[0].memory_bytes) == ("lora", {})
    assert resumed.reports[-1] == Finished(12, "complete")


@pytest.mark.verify
def test_preferences_are_learnt(trainers: Trainers, spec: Spec, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", PAIRS)

    ended = trainers.run(replace(spec, method="dpo", rows=pairs, validation=pairs, n_epochs=4))

    steps, evaluation = ended.of(Step), ended.of(EvaluationReport)[-1]
    assert steps[-1].loss < steps[0].loss
    assert evaluation.accuracy > 0.9
    for report in (steps[-1], evaluation):
        rewards = {name: report.preference[f"rewards/{name}"] for name in ("chosen", "rejected", "margins")}
        assert rewards["margins"] == pytest.approx(rewards["chosen"] - rewards["rejected"], abs=1e-4)
        assert rewards["margins"] > 0 > max(report.preference["logps/chosen"], report.preference["logps/rejected"])
    assert ended.of(Started)[0].rows == len(PAIRS)


@pytest.mark.verify
def test_training_goes_on_from_an_adapter(trainers: Trainers, spec: Spec, tmp_path: Path) -> None:
    first = trainers.run(spec)

    second = trainers.run(replace(spec, adapter=first.last_checkpoint, output=str(tmp_path / "second")))

    assert second.losses[1] < first.losses[1] - 0.1


@pytest.mark.verify
def test_an_adapter_of_another_base_is_refused(trainers: Trainers, spec: Spec, tmp_path: Path) -> None:
    first = trainers.run(replace(spec, n_epochs=1))
    wider = trainers.write_model(tmp_path / "wider", hidden_size=64)

    ended = trainers.run(replace(spec, base=str(wider), adapter=first.last_checkpoint, output=str(tmp_path / "second")))

    (failed,) = ended.of(Failed)
    assert failed.code == "adapter_mismatch"
    assert ended.of(Step) == []


@pytest.mark.verify
def test_a_run_that_learns_no_more_stops_early(trainers: Trainers, spec: Spec) -> None:
    ended = trainers.run(replace(spec, learning_rate=0.0, patience=2, eval_steps=2))

    assert ended.reports[-1] == Finished(6, "early_stopping")
    saving = replace(spec, eval_steps=1, save_steps=None, load_best=True, output=f"{spec.output}-best")
    best = trainers.run(saving)
    losses = {one.step: one.loss for one in best.of(EvaluationReport)}
    assert min(losses, key=losses.__getitem__) in {one.step for one in best.of(CheckpointReport)}
    assert [one.step for one in ended.of(EvaluationReport)] == [2, 4, 6]


@pytest.mark.verify
def test_a_run_that_takes_too_much_memory_stops_after_a_checkpoint(trainers: Trainers, spec: Spec) -> None:
    ended = trainers.run(replace(spec, max_memory_bytes=1))

    assert ended.reports[-1] == Finished(1, "memory_limit")
    assert [checkpoint.step for checkpoint in ended.of(CheckpointReport)] == [1]


@pytest.mark.verify
def test_dry_run_trains_three_steps_and_saves_nothing(trainers: Trainers, spec: Spec) -> None:
    ended = trainers.run(replace(spec, dry_run_steps=3, eval_steps=1, save_steps=1))

    assert [type(report) for report in ended.reports] == [Started, Step, Step, Step, Finished]
    assert ended.reports[-1] == Finished(3, "complete")
    assert all(step.tokens_per_second > 0 for step in ended.of(Step))


@pytest.mark.verify
def test_auto_dtype_is_measured_and_reused_on_resume(trainers: Trainers, spec: Spec, tmp_path: Path) -> None:
    whole = trainers.run(replace(spec, dtype="auto"), 4)

    (started,) = whole.of(Started)
    assert set(started.seconds_per_step) == {"float32", "bfloat16"}
    assert started.dtype == min(started.seconds_per_step, key=started.seconds_per_step.__getitem__)
    resume = whole.last_checkpoint
    resumed = trainers.run(replace(spec, dtype="auto", resume=resume, output=str(tmp_path / "resumed")))
    assert resumed.of(Started)[0].dtype == started.dtype
    assert resumed.of(Started)[0].seconds_per_step == {}

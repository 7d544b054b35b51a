"""The console's pages of fine-tuning: a new job from a dropped file, its curve, checkpoints and events, and its end."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from jobs.clock import now
from jobs.finetuning import training_events
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetuneCheckpoint, FinetunePlan, FinetuneStep
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.registry import models
from tests.support.browsers import PATIENCE
from tests.support.console import HOSTILE, Console, Deployment

pytestmark = pytest.mark.verify

BASE = "smollm2-135m-instruct"
#: Milliseconds for an examination, which loads a tokenizer in a process of its own.
EXAMINED = 4 * PATIENCE
ROW = b'{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello."}]}\n'


def make_job(deployment: Deployment, **fields: Any) -> str:
    """Create a job, and hold it back so that no worker trains it; return its id."""
    file = deployment.client.files.create(file=("examples.jsonl", ROW * 12), purpose="fine-tune")
    job = deployment.client.fine_tuning.jobs.create(model=BASE, training_file=file.id, suffix="support", **fields)
    deployment.client.fine_tuning.jobs.pause(job.id)
    return job.id


def train(deployment: Deployment, job_id: str, steps: int, *, epochs: int = 2, ended: bool = False) -> None:
    """Record a plan, steps, a checkpoint and a hostile event as a training does."""
    with deployment.inline.db.write() as session:
        row = session.get_one(Job, job_id)
        result = FineTuning.model_validate(row.payload).result
        session.add(
            FinetunePlan(
                job_id=job_id,
                n_epochs=epochs,
                batch_size=4,
                learning_rate_multiplier=1.0,
                rows=40,
                validation_rows=5,
                tokens=900,
                steps=40,
                seconds=125.0,
                device_seconds=61.0,
            )
        )
        for step in range(1, steps + 1):
            valid = 2.5 / step**0.3 if step % 5 == 0 else None
            facts = {"epoch": 1.0, "learning_rate": 1e-4, "train_accuracy": min(0.9, step / 40), "created_at": now()}
            session.add(FinetuneStep(job_id=job_id, step=step, train_loss=2.2 / step**0.4, valid_loss=valid, **facts))
            training_events.record_metrics(session, job_id, f"Step {step}/40", {"step": step})
        training_events.record(session, job_id, f"Duplicates: {HOSTILE}", level="warn")
        session.add(
            FinetuneCheckpoint(
                id=f"ftckpt_{job_id}",
                job_id=job_id,
                step=steps,
                location=f"training/{job_id}/{steps}",
                sha256="0" * 64,
                bytes=1,
                metrics={"train_loss": 0.512, "full_valid_loss": 0.845},
                keeps_optimizer=True,
                created_at=now(),
            )
        )
        if ended:
            row.state = JobState.SUCCEEDED
            row.completed_at = now()
            models.register(
                session,
                name=result,
                project_id=row.project_id,
                base=BASE,
                job_id=job_id,
                method="lora",
                location=f"training/{job_id}",
                sha256="0" * 64,
                manifest={},
            )


def test_curve_checkpoints_and_events_of_a_job_are_shown(console: Console, deployment: Deployment) -> None:
    job_id = make_job(deployment, metadata={"note": HOSTILE}, hyperparameters={"n_epochs": 2})
    train(deployment, job_id, 20)
    tab = console.open("/fine-tuning")
    tab.get_by_role("link", name=job_id).press("Enter")

    expect(tab.get_by_role("heading", name="support")).to_be_visible()
    expect(tab.get_by_role("progressbar")).to_have_attribute("aria-valuetext", "20 of 40")
    expect(tab.get_by_role("img", name="Loss: training")).to_have_attribute(
        "aria-label", f"Loss: training {2.2 / 20**0.4:.3f}, validation {2.5 / 20**0.3:.3f}"
    )
    expect(tab.get_by_role("main")).to_contain_text("1 min 1 s")
    expect(tab.get_by_role("table", name="Checkpoints")).to_contain_text("0.845")
    events = tab.get_by_role("table", name="Events")
    expect(events).to_contain_text(HOSTILE)
    expect(events).not_to_contain_text("Step 20/40")
    expect(tab.get_by_role("region", name="Hyperparameters")).to_contain_text(HOSTILE)
    console.inspect("fine-tuning-job")


def test_two_trainings_are_compared(console: Console, deployment: Deployment) -> None:
    first, second = (make_job(deployment, hyperparameters={"n_epochs": n}) for n in (1, 2))
    train(deployment, first, 5, epochs=1)
    train(deployment, second, 20)
    tab = console.open(f"/fine-tuning/{second}")

    tab.get_by_label("Compare with").select_option(first)

    expect(tab.get_by_role("img", name="Losses: this job")).to_have_attribute(
        "aria-label",
        f"Losses: this job {2.2 / 20**0.4:.3f}, other job {2.2 / 5**0.4:.3f}, "
        f"this job, validation {2.5 / 20**0.3:.3f}, other job, validation {2.5 / 5**0.3:.3f}",
    )
    expect(tab.get_by_role("table", name="Parameters").get_by_role("row", name="n epochs")).to_have_text("n epochs21")
    expect(tab).to_have_url(f"{deployment.url}/console/fine-tuning/{second}?baseline={first}")
    console.inspect("fine-tuning-comparison")


def test_job_is_resumed_paused_and_cancelled(console: Console, deployment: Deployment) -> None:
    tab = console.open(f"/fine-tuning/{make_job(deployment)}")

    tab.get_by_role("button", name="Resume").click()
    tab.get_by_role("button", name="Pause").click()
    expect(tab.get_by_role("button", name="Resume")).to_be_visible()
    tab.get_by_role("button", name="Cancel").click()
    tab.get_by_role("button", name="Cancel the job").click()

    expect(tab.get_by_role("link", name="Train again")).to_be_visible()
    expect(tab.get_by_text("cancelled").first).to_be_visible()


def test_result_of_a_job_is_named_and_listed(console: Console, deployment: Deployment) -> None:
    job_id = make_job(deployment)
    train(deployment, job_id, 40, ended=True)
    result = str(deployment.client.fine_tuning.jobs.retrieve(job_id).fine_tuned_model)

    tab = console.open(f"/fine-tuning/{job_id}")
    expect(tab.get_by_role("main")).to_contain_text(result)
    playground = tab.get_by_role("link", name=f"Open in the playground: {result}", exact=True)
    assert "/console/playground?model=ft" in str(playground.get_attribute("href"))
    tab.get_by_role("link", name="Train again").click()

    expect(tab.get_by_label("Model")).to_have_value(BASE)
    expect(tab.get_by_label("Training file")).not_to_have_value("")


def test_new_job_is_examined_before_it_is_made(console: Console, deployment: Deployment, tmp_path: Path) -> None:
    tab = console.open("/fine-tuning")
    expect(tab.get_by_text("nightmill finetune submit")).to_be_visible()
    console.inspect("fine-tuning-empty")
    wrong, right = tmp_path / "wrong.jsonl", tmp_path / "right.jsonl"
    wrong.write_bytes(ROW * 11 + b'{"messages": []}\n')
    right.write_bytes(ROW * 12)
    tab.get_by_role("link", name="New fine-tuning job").first.click()
    tab.get_by_label("Model").select_option(BASE)
    create = tab.get_by_role("button", name="Create the job")

    tab.locator("input[type=file]").set_input_files(wrong)
    expect(tab.get_by_label("Training file")).to_contain_text("wrong.jsonl")
    tab.get_by_role("button", name="Examine the files").click()
    expect(tab.get_by_role("table", name="Errors by line")).to_contain_text("12", timeout=EXAMINED)
    expect(create).to_be_disabled()
    console.inspect("fine-tuning-errors")

    tab.locator("input[type=file]").set_input_files(right)
    expect(tab.get_by_role("table", name="Errors by line")).to_have_count(0)
    tab.get_by_label("Suffix").fill("support")
    tab.get_by_role("button", name="Examine the files").click()
    expect(tab.get_by_text("seconds and memory are not known")).to_be_visible(timeout=EXAMINED)
    console.inspect("fine-tuning-new")
    create.click()

    expect(tab.get_by_role("heading", name="support")).to_be_visible()
    [job] = deployment.client.fine_tuning.jobs.list().data
    assert job.model == BASE
    assert tab.url.endswith(f"/console/fine-tuning/{job.id}")

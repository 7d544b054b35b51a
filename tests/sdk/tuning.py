"""Fine-tuning: the whole surface of an SDK, on jobs that nobody trains and one that was trained. Run by `suite.py`.

create, list, retrieve, pause, resume, cancel    jobs whose planning waits for the base
events, checkpoints, permissions, model          `FACTS["tuned"]`, whose rows `tests.sdk.deployment` has written
"""

import json
from typing import Any

import openai
from checking import FACTS, check, client, facts_of, raised, same

BASE = FACTS["tuned"]["base"]
ROWS = b"".join(
    json.dumps({"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}."}]}).encode()
    + b"\n"
    for n in range(12)
)
WANDB = {"project": "p", "name": "run", "tags": ["a"]}
HEADER = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"

jobs = client.fine_tuning.jobs


def training_file() -> str:
    return client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune").id


def waiting(method: dict[str, Any] | None = None, **fields: Any) -> Any:
    """Create a job that nobody trains."""
    supervised = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    method = method or supervised
    return jobs.create(model=BASE, training_file=training_file(), method=method, **fields)  # type: ignore[arg-type]


@check("a fine-tuning job is created, retrieved and listed")
def _() -> None:
    made = waiting(suffix="s", seed=7, metadata={"team": "a"}, integrations=[{"type": "wandb", "wandb": WANDB}])
    other = waiting(metadata={"team": "b"})

    same((made.object, made.status, made.model, made.seed), ("fine_tuning.job", "validating_files", BASE, 7))
    same((made.method.type, made.method.supervised.hyperparameters.n_epochs), ("supervised", 2))
    same((made.hyperparameters.n_epochs, made.hyperparameters.batch_size), (2, "auto"))
    same((made.error, made.fine_tuned_model, made.finished_at, made.result_files), (None, None, None, []))
    same((made.metadata, made.trained_tokens, made.validation_file), ({"team": "a"}, None, None))
    integration = made.integrations[0]
    same((integration.type, integration.wandb.project, integration.wandb.tags), ("wandb", "p", ["a"]))
    same({**jobs.retrieve(made.id).to_dict(), "waiting_for": None}, {**made.to_dict(), "waiting_for": None})
    same([job.id for job in jobs.list(limit=1, metadata={"team": "a"})], [made.id])
    pages = [[job.id for job in page.data] for page in jobs.list(limit=1).iter_pages()]
    same(pages, [[other.id], [made.id], [FACTS["tuned"]["job"]]])


@check("a fine-tuning job learns preferences")
def _() -> None:
    made = waiting({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1}}})

    same((made.method.type, made.method.dpo.hyperparameters.beta), ("dpo", 0.2))


@check("a fine-tuning job is paused, resumed and cancelled")
def _() -> None:
    made = waiting()

    same([jobs.pause(made.id).status for _ in range(2)], ["paused"] * 2)
    same(jobs.resume(made.id).status, "validating_files")
    same([jobs.cancel(made.id).status for _ in range(2)], ["cancelled"] * 2)
    error = raised(openai.ConflictError, jobs.pause, made.id)
    same(facts_of(error), (409, "invalid_request_error", "invalid_state", None))


@check("a trained job has events, checkpoints and result files")
def _() -> None:
    job = jobs.retrieve(FACTS["tuned"]["job"])
    events = list(jobs.list_events(job.id, limit=1))
    checkpoints = list(jobs.checkpoints.list(job.id, limit=1))

    same((job.status, job.fine_tuned_model, job.trained_tokens), ("succeeded", FACTS["tuned"]["model"], 240))
    same((job.hyperparameters.n_epochs, job.hyperparameters.batch_size), (2, 4))
    assert job.finished_at >= job.created_at
    metrics = [event for event in events if event.type == "metrics"]
    same([event.data["step"] for event in metrics], [2, 1])
    same({(event.object, event.level) for event in metrics}, {("fine_tuning.job.event", "info")})
    same(len({event.id for event in events}), len(events))
    same([one.step_number for one in checkpoints], [2, 1])
    same(checkpoints[0].fine_tuned_model_checkpoint, f"{job.fine_tuned_model}:ckpt-step-2")
    same((checkpoints[0].fine_tuning_job_id, checkpoints[0].metrics.train_loss), (job.id, 1.0))
    (file_id,) = job.result_files
    same(client.files.content(file_id).text.splitlines()[0], HEADER)
    same(client.files.retrieve(file_id).purpose, "fine-tune-results")


@check("a checkpoint is permitted to another project")
def _() -> None:
    name, other = f"{FACTS['tuned']['model']}:ckpt-step-1", FACTS["tuned"]["other_project"]
    permissions = client.fine_tuning.checkpoints.permissions

    (granted,) = permissions.create(name, project_ids=[other])
    same((granted.object, granted.project_id), ("checkpoint.permission", other))
    listed = permissions.retrieve(name, order="ascending", project_id=other)
    same([one.id for one in listed.data], [granted.id])
    deleted = permissions.delete(granted.id, fine_tuned_model_checkpoint=name)
    same((deleted.id, deleted.deleted), (granted.id, True))
    same(permissions.retrieve(name).data, [])


@check("a tuned model is listed, retrieved and deleted, and holds its training file")
def _() -> None:
    name, file_id = FACTS["tuned"]["model"], jobs.retrieve(FACTS["tuned"]["job"]).training_file

    assert name in {model.id for model in client.models.list()}
    same(client.models.retrieve(name).id, name)
    same(raised(openai.ConflictError, client.files.delete, file_id).code, "file_in_use")
    same(client.models.delete(name).deleted, True)
    raised(openai.NotFoundError, client.models.retrieve, name)
    same(client.files.delete(file_id).deleted, True)


@check("a fine-tuning job that cannot be is a BadRequestError")
def _() -> None:
    file_id = training_file()
    method: Any = {"type": "reinforcement"}

    error = raised(openai.BadRequestError, jobs.create, model=BASE, training_file=file_id, method=method)
    same(facts_of(error), (400, "invalid_request_error", "invalid_value", "method.type"))
    error = raised(openai.BadRequestError, jobs.create, model="gpt-4o-mini", training_file=file_id)
    same(facts_of(error), (400, "invalid_request_error", "model_not_available", "model"))
    error = raised(openai.BadRequestError, jobs.create, model=BASE, training_file="file-x")
    same(facts_of(error), (400, "invalid_request_error", "file_not_found", "training_file"))
    raised(openai.NotFoundError, jobs.retrieve, "ftjob-none")

"""A project with one of everything that the console shows, whose texts are hostile, and the pages that show it.

Texts hold markup, a `javascript:` URL, an override that turns letters around, and words without a break. Rows that no
request can make so are stored by SQL.
"""

from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import update
from sqlalchemy.orm import Session

from api.retrieval.schemas import AUTO
from jobs.clock import now
from jobs.files.tables import File
from jobs.finetuning import training_events
from jobs.finetuning.tables import FinetunePlan, FinetuneStep
from jobs.fleet import quarantine, workers
from jobs.fleet.tables import EngineDeath, Model, Worker
from jobs.ledger import pauses
from jobs.ledger.pauses import Scope
from jobs.ledger.states import JobState
from jobs.ledger.tables import Audit, Job, Outbox
from jobs.monitoring import monitors
from jobs.monitoring.tables import DriftCheck, DriftMonitor
from jobs.promotions import promotions
from jobs.queues import Queue
from jobs.registry import aliases, models
from jobs.registry.tables import Alias
from jobs.retrieval.tables import Source, VectorStore, VectorStoreFile
from jobs.schedules.tables import Schedule
from jobs.security.keys import add_key, ensure_project
from jobs.security.tables import (
    NO_PROJECT,
    Account,
    AccountGroup,
    Invite,
    ModelPermission,
    Project,
    RoleAssignment,
    ServiceAccount,
)
from jobs.usage.minutes import minute_of, month_of
from jobs.usage.tables import Spend, SpendAlert, UsageMinute
from jobs.webhooks.tables import Attempt, Delivery, Event, WebhookEndpoint
from tests.support import worker_steps
from tests.support.console import HOSTILE, Deployment
from tests.support.eval_client import SAME, SCHEMA
from tests.support.inline_deployment import MODEL, chat_line, jsonl
from tests.support.pipeline_requests import batch_step

BASE: Final = "smollm2-135m-instruct"
PROMOTION: Final = "promo_everything"
TUNED: Final = f"ft:{BASE}:default:{'s' * 40}:1"
OVERRIDE: Final = "\u202e"
#: 255 characters without a break; a browser that obeys the override shows another ending.
FILE_NAME: Final = f"photo-{OVERRIDE}gnp.{'n' * 240}.exe"
TEXT: Final = f"{HOSTILE} javascript:document.title='broken' {OVERRIDE}\u05e9\u05dc\u05d5\u05dd {'w' * 120}"
SHORT: Final = TEXT[:250]
#: The path of each page, with the names of the ids that `make_everything` returns.
PAGES: Final = {
    "overview": "/",
    "jobs": "/jobs",
    "job": "/jobs/{job}",
    "job-events": "/jobs/{job}?tab=events",
    "job-webhook": "/jobs/{job}?tab=webhook",
    "job-graph": "/jobs/{job}?tab=graph",
    "job-ended": "/jobs/{ended}",
    "job-results": "/jobs/{ended}?tab=results",
    "job-failed": "/jobs/{failed}",
    "new-batch": "/batches/new",
    "new-batch-table": "/batches/new?source=table",
    "new-batch-file": "/batches/new?source=file",
    "files": "/files",
    "file": "/files/{file}",
    "datasets": "/datasets",
    "dataset": "/datasets/{dataset}",
    "dataset-failed": "/datasets/{dataset}?version=2",
    "new-dataset-version": "/datasets/{dataset}/versions/new",
    "pipelines": "/pipelines",
    "new-pipeline": "/pipelines/new",
    "pipeline": "/pipelines/{pipeline}",
    "stores": "/vector-stores",
    "store": "/vector-stores/{store}",
    "store-search": "/vector-stores/{store}?tab=search",
    "store-sources": "/vector-stores/{store}?tab=sources",
    "store-indexes": "/vector-stores/{store}?tab=indexes",
    "report": "/files/{report}",
    "prompts": "/prompts",
    "new-prompt": "/prompts/new",
    "prompt": "/prompts/{prompt}",
    "prompt-try": "/prompts/{prompt}?tab=try",
    "prompt-compare": "/prompts/{prompt}?tab=compare&version=2",
    "prompt-versions": "/prompts/{prompt}?tab=versions",
    "prompt-use": "/prompts/{prompt}?tab=use",
    "new-version": "/prompts/{prompt}/versions/new",
    "playground": "/playground",
    "models": "/models",
    "model": "/models?model={tuned}",
    "aliases": "/aliases",
    "alias": "/aliases?alias={alias}",
    "promotions": "/promotions",
    "new-promotion": "/promotions/new",
    "promotion": "/promotions/{promotion}",
    "promotion-forced": "/promotions/{forced}",
    "drift": "/drift",
    "monitor": "/drift/{monitor}",
    "tuning-jobs": "/fine-tuning",
    "new-tuning": "/fine-tuning/new",
    "tuning-job": "/fine-tuning/{tuning}",
    "evals": "/evals",
    "new-eval": "/evals/new",
    "eval": "/evals/{eval}",
    "run": "/evals/{eval}/runs/{run}",
    "comparison": "/evals/{eval}/runs/{run}?tab=comparison",
    "webhooks": "/webhooks",
    "webhook": "/webhooks/{endpoint}",
    "schedules": "/schedules",
    "workers": "/workers",
    "keys": "/keys",
    "audit": "/audit",
    "usage": "/usage?by=model",
    "budgets": "/budgets",
    "organization": "/organization",
    "people": "/organization?tab=people",
    "project": "/organization/{project}",
    "project-limits": "/organization/{project}?tab=limits",
    "not-found": "/no/such/page",
}


def make_everything(deployment: Deployment) -> dict[str, str]:
    """Make one of everything in the project `default`; return the ids by the names that `PAGES` uses."""
    ids = {"tuned": TUNED, **_make_run(deployment)}  # first: to run it, the dispatcher ticks
    ids |= {"dataset": _make_dataset(deployment), "pipeline": _make_pipeline(deployment)}
    ids |= _make_batches(deployment) | {"tuning": _make_tuning(deployment)}
    ids |= {"prompt": _make_prompt(deployment), "report": _make_report(deployment)}
    with deployment.inline.db.write() as session:
        project_id = ensure_project(session, "default").id
        ids |= _add_files(session, project_id, ids["file"])
        _add_store(session, project_id, ids["file"])
        _add_webhook(session, project_id)
        _add_schedule(session, project_id, ids["file"])
        _add_models(session, project_id)
        ids |= _add_alias(session, project_id)
        ids |= _add_promotions(session, project_id, ids["eval"], ids["run"])
        ids |= _add_monitor(session, project_id)
        _add_audit(session, project_id)
        _add_organization(session, project_id)
    return ids | {"store": "vs_everything", "endpoint": "we_everything"}


def _make_run(deployment: Deployment) -> dict[str, str]:
    config: Any = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
    criteria: Any = [{**SAME, "name": SHORT}]
    evaluation = deployment.client.evals.create(
        name=SHORT, data_source_config=config, testing_criteria=criteria, metadata={"note": TEXT}
    )
    content: Any = [{"item": {"question": TEXT, "answer": TEXT}, "sample": {"output_text": TEXT}}]
    source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": content}}
    run = deployment.client.evals.runs.create(evaluation.id, name=SHORT, data_source=source, metadata={"note": TEXT})
    deployment.inline.drain(run.id, timeout=60)
    deployment.inline.wait_until_idle()
    return {"eval": evaluation.id, "run": run.id}


def _make_dataset(deployment: Deployment) -> str:
    """Make a dataset with a complete version and one that has failed; return its id."""
    post: Any = deployment.client.post
    parts = [{"name": "p" * 32, "fraction": 0.5}, {"name": "q" * 32, "fraction": 0.5}]
    split = {"type": "group", "by": f"/{HOSTILE.replace('/', '')}", "parts": parts}
    fields = {"name": "d" * 63, "description": TEXT, "metadata": {"note": TEXT}, "split": split}
    path = f"/datasets/{post('/datasets', body=fields, cast_to=object)['id']}"
    for rows in ([{split["by"][1:]: n, "text": TEXT} for n in range(9)], [{"text": TEXT}]):
        file = deployment.client.files.create(file=("rows.jsonl", jsonl(rows)), purpose="user_data")
        sources = [{"type": "file_id", "id": file.id}]
        version = post(f"{path}/versions", body={"sources": sources, "git_commit": "0" * 64}, cast_to=object)
        deployment.inline.drain(version["id"], timeout=60)
    return path.rpartition("/")[2]


def _make_pipeline(deployment: Deployment) -> str:
    """Make a pipeline with steps that have completed, that have failed, and that were skipped; return its id."""
    post: Any = deployment.client.post
    lines = [jsonl([chat_line("a", TEXT)]), jsonl([{"custom_id": TEXT, "body": {}}])]
    files = [deployment.client.files.create(file=("r.jsonl", each), purpose="batch").id for each in lines]
    steps = [batch_step(letter * 32, files[n % 2], after=["s" * 32] * (n > 0)) for n, letter in enumerate("sftu")]
    steps[3]["after"] = ["f" * 32, "t" * 32]
    made = post("/pipelines", body={"name": SHORT, "steps": steps, "metadata": {"note": TEXT}}, cast_to=object)
    deployment.inline.drain(made["id"], timeout=60)
    deployment.inline.wait_until_idle()
    return str(made["id"])


def create_batch(deployment: Deployment, **fields: Any) -> str:
    """Create a batch of two requests that nobody runs; return its id."""
    lines = jsonl([chat_line(f"{n}-{'c' * 60}", TEXT, model=MODEL) for n in range(2)])
    file = deployment.client.files.create(file=("requests.jsonl", lines), purpose="batch")
    batch = deployment.client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", extra_body=fields
    )
    return batch.id


def _make_batches(deployment: Deployment) -> dict[str, str]:
    db, storage = deployment.inline.db, deployment.inline.storage
    webhook = {"url": f"https://192.0.43.8/{'u' * 200}"}
    ids = {
        "job": create_batch(deployment, metadata={"note": TEXT[:500], "k" * 64: "v" * 200}, webhook=webhook),
        "ended": create_batch(deployment),
        "failed": create_batch(deployment),
    }
    worker_steps.plan(db, ids["job"], 2, TEXT[:200])
    with db.write() as session:  # without a dispatcher the page would count the seconds that its message is late
        session.execute(update(Outbox).where(Outbox.job_id == ids["job"]).values(due_at=now() + 9e4))
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": TEXT}}
    answer = {"status_code": 200, "request_id": "r", "body": {"choices": [choice]}}
    line = {"id": "b0", "custom_id": f"0-{'c' * 60}", "response": answer, "error": None}
    error = {"id": "b1", "custom_id": f"1-{'c' * 60}", "response": None, "error": {"code": "e" * 60, "message": TEXT}}
    outcomes = {"stop": 1, f"error:{'e' * 60}": 1}
    worker_steps.end(db, storage, ids["ended"], [jsonl([line]).strip()], [jsonl([error]).strip()], outcomes)
    worker_steps.fail(db, ids["failed"], [{"code": "c" * 60, "line": 1, "message": TEXT, "param": "p" * 120}])
    return ids | {"file": deployment.client.files.list(limit=1).data[0].id}


def create_tuning(deployment: Deployment) -> str:
    """Create a fine-tuning job that no worker trains; return its id."""
    row = b'{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello."}]}\n'
    file = deployment.client.files.create(file=("examples.jsonl", row * 12), purpose="fine-tune")
    return deployment.client.fine_tuning.jobs.create(model=BASE, training_file=file.id, suffix="s" * 40).id


def _make_tuning(deployment: Deployment) -> str:
    job_id = create_tuning(deployment)
    with deployment.inline.db.write() as session:
        job = session.get_one(Job, job_id)
        job.metadata_ = {"note": TEXT}
        job.state, job.failed_at = JobState.FAILED, now()
        job.errors = [{"code": "training_failed", "message": TEXT, "line": None, "param": None}]
        numbers = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.0, "validation_rows": 5}
        session.add(FinetunePlan(job_id=job_id, rows=40, tokens=900, steps=40, **numbers))
        facts = {"epoch": 1.0, "learning_rate": 1e-4, "created_at": now()}
        session.add_all(FinetuneStep(job_id=job_id, step=n, train_loss=2.0 / n, **facts) for n in range(1, 20))
        training_events.record(session, job_id, TEXT, level="warn")
    return job_id


def _make_prompt(deployment: Deployment) -> str:
    """Make a prompt with two versions and a label; return its id."""
    messages = [{"role": "user", "content": [{"type": "input_text", "text": f"{TEXT} {{{{{'v' * 60}}}}}"}]}]
    content = {"model": SHORT, "messages": messages, "tools": [{"type": "function", "name": "f", "description": TEXT}]}
    post: Any = deployment.client.post
    prompt = post("/prompts", body={**content, "name": SHORT, "metadata": {"note": TEXT}}, cast_to=object)
    path = f"/prompts/{prompt['id']}"
    post(f"{path}/versions", body={**content, "instructions": TEXT, "model": None}, cast_to=object)
    post(path, body={"labels": {"l" * 64: 2}}, cast_to=object)
    return str(prompt["id"])


def _make_report(deployment: Deployment) -> str:
    """Make a file that holds the report of a migration; return its id."""
    rows = [
        {"kind": "prompt", "origin_id": f"pmpt_{n}{TEXT}", "id": f"pmpt_{n}", "outcome": outcome, "reason": TEXT}
        for n, outcome in enumerate(("same", "different", "lost", "failed", "present"))
    ]
    counts = {"same": 1, "different": 1, "lost": 1, "failed": 1}
    report = {"object": "migration.report", "created_at": 1, "source": TEXT, "applied": True, "counts": counts}
    content = jsonl([{**report, "rows": rows}])
    return deployment.client.files.create(file=("migration-all.json", content), purpose="user_data").id


def _add_files(session: Session, project_id: str, file_id: str) -> dict[str, str]:
    session.get_one(File, file_id).filename = FILE_NAME
    return {"file": file_id, "project": project_id}


def _add_store(session: Session, project_id: str, file_id: str) -> None:
    """Add a store with documents in every state, sources in every state, and an index that is built."""
    at = {"created_at": now(), "active_at": now()}
    row = {"project_id": project_id, "model": BASE, "chunking": AUTO, **at}
    session.add(VectorStore(id="vs_everything", name=SHORT, description=TEXT, metadata_={"note": TEXT}, **row))
    session.add(VectorStore(id="vs_index", name="", parent_id="vs_everything", **row))
    for number, status in enumerate(("completed", "in_progress", "failed", "cancelled")):
        is_failed = status == "failed"
        document = VectorStoreFile(
            store_id="vs_everything", id=file_id if number == 0 else f"file-{status}", project_id=project_id,
            filename=f"{status}-{FILE_NAME}"[:255], status=status, created_at=now() + number, chunking=AUTO,
            job_id="vsfb_1", line=number, version=f"v{number}", error_code="unsupported_file" if is_failed else None,
            error_message=TEXT if is_failed else None,
        )  # fmt: skip
        session.add(document)
    for status, paused_at, error in (("in_progress", None, None), ("completed", now(), None), ("failed", None, TEXT)):
        source = Source(
            id=f"vss_{status}", project_id=project_id, store_id="vs_everything", type="url", cron="0 3 * * *",
            spec={"urls": [f"https://example.com/{status}/{'u' * 200}?{HOSTILE}"]}, timezone="UTC", status=status,
            next_at=now() + 9e4, paused_at=paused_at, last_error=error and {"code": "sync_failed", "message": error},
            created_at=now(), last_at=now(),
        )  # fmt: skip
        session.add(source)


def _add_webhook(session: Session, project_id: str) -> None:
    """Add an endpoint that was disabled, with a delivery in every state."""
    at = now()
    endpoint = WebhookEndpoint(
        id="we_everything", project_id=project_id, name=SHORT, url=f"https://example.com/{'u' * 200}?{HOSTILE}",
        event_types=["batch.completed"], secret="whsec_everything", created_at=at, disabled_at=at,
        disabled_reason="gone",
    )  # fmt: skip
    session.add(endpoint)
    for number, state in enumerate(("failed", "delivered", "pending")):
        event = Event(
            subject_id=f"batch_{state}", seq=1, id=f"evt_{state}", project_id=project_id, type="batch.completed",
            data={"id": f"batch_{state}"}, created_at=at,
        )  # fmt: skip
        delivery = Delivery(
            id=f"whd_{state}", project_id=project_id, event_id=event.id, endpoint_id=endpoint.id, state=state,
            attempts=1, due_at=at, created_at=at + number, status_code=500, error=TEXT,
        )  # fmt: skip
        attempt = Attempt(delivery_id=delivery.id, n=1, at=at, seconds=0.25, status_code=500, error=TEXT)
        session.add_all([event, delivery, attempt])


def _add_schedule(session: Session, project_id: str, file_id: str) -> None:
    request = {"endpoint": "/v1/chat/completions", "input_file_id": file_id, "completion_window": "24h"}
    fields = {"project_id": project_id, "cron": "0 3 * * *", "timezone": "UTC", "input_file_id": file_id}
    for name, paused_at, error in (("active", None, None), ("paused", now(), None), ("refused", None, TEXT)):
        session.add(
            Schedule(
                id=f"sched_{name}", request={**request, "window_seconds": 86_400}, next_at=now() + 9e4,
                created_at=now(), paused_at=paused_at, last_error=error, **fields,
            )
        )  # fmt: skip
    job = {"type": "pipeline", "name": TEXT, "steps": []}
    fields |= {"kind": "pipeline", "request": {"name": TEXT, "steps": []}, "job": job, "input_file_id": None}
    session.add(Schedule(id="sched_pipeline", next_at=now() + 9e4, created_at=now(), **fields))


def _add_models(session: Session, project_id: str) -> None:
    """Add a worker, a quarantined engine, a pause, a model of an endpoint and a tuned one."""
    at = now()
    worker = {"id": "w" * 60, "pool": "gpu", "host": f"{HOSTILE}{'h' * 60}", "pid": 7, "started": 1, "slots": 1}
    queues = [Queue.GENERATE.value]
    workers.register(session, Worker(**worker, created_at=at, seen_at=at, models=[BASE], queues=queues, state="ready"))
    for number in range(2):
        death = EngineDeath(
            id=f"death-{number}", host_devices=f"{'h' * 60} cuda:0", model=BASE, entry="e", worker_id="w",
            starting=True, error=TEXT, suspects=["batch_1 shard 0"], lines=[TEXT, "x" * 10_000], created_at=at,
        )  # fmt: skip
        quarantine.note(session, death, quarantine.QuarantineLimits(2, 60.0, 900.0))
    pauses.pause(session, Scope.MODEL, SHORT, actor="test", reason=TEXT)
    name = f"{HOSTILE}{'m' * 120}"
    session.add(Model(id=name, queue=Queue.GENERATE.value, owned_by="endpoint", created_at=at, seen_at=at))
    tuned = {"base": BASE, "job_id": "ftjob-1", "method": "lora", "location": "training/1", "sha256": "0" * 64}
    models.register(session, name=TUNED, project_id=project_id, manifest={}, **tuned)


def _add_alias(session: Session, project_id: str) -> dict[str, str]:
    """Add an alias of the tuned model, with a move that has a reason."""
    name = f"{HOSTILE.replace(' ', '/')}{'a' * 120}"
    by = f"key:{'a' * 80}"
    alias = Alias(name=name, project_id=project_id, created_at=now(), created_by=by)
    gate = {"promotion": PROMOTION}
    aliases.move(session, alias, aliases.single(TUNED), "create", actor=by, reason=TEXT, gate=gate)
    return {"alias": quote(name, safe="")}


def _add_promotions(session: Session, project_id: str, eval_id: str, run_id: str) -> dict[str, str]:
    """Add a promotion that a gate refused, and one that was forced."""
    row = {"criterion": SHORT, "outcome": "inconclusive", "items": 9, "candidate": 0.5}
    compared = row | {"incumbent": 0.75, "difference": -0.25, "low": -0.5, "high": 0.1, "further_items": 40}
    gates = [
        {
            "eval_id": eval_id, "criterion": SHORT, "rule": rule, "candidate_run_id": run_id,
            "incumbent_run_id": run_id, "report": {"outcome": "failed", "reasons": [TEXT], "criteria": [criterion]},
        }
        for rule, criterion in (
            ({"type": "not_worse_than_incumbent", "margin": 5.0}, compared),
            ({"type": "minimum", "score": 0.9}, row),
        )
    ]  # fmt: skip
    target = {"type": "alias", "id": SHORT, "model": TUNED}
    stage = {"type": "stage", "id": TUNED, "stage": "production"}
    refused = {"target": target, "incumbent": SHORT, "state": SHORT, "gates": gates, "outcome": "refused"}
    forced = {"target": stage, "incumbent": "", "state": "", "gates": [], "force": True, "outcome": "promoted"}
    error = {"code": "gate_failed", "message": TEXT, "line": None, "param": None}
    for promotion_id, payload in ((PROMOTION, refused), ("promo_forced", forced)):
        session.add(
            Job(
                id=promotion_id, project_id=project_id, kind=promotions.NAME, payload=payload | {"reason": TEXT[:512]},
                state=JobState.SUCCEEDED, created_at=now(), completed_at=now(), metadata_={"note": TEXT},
                errors=[error] if payload is refused else None,
            )
        )  # fmt: skip
    return {"promotion": PROMOTION, "forced": "promo_forced"}


def _add_monitor(session: Session, project_id: str) -> dict[str, str]:
    """Add a monitor with two checks that found drift, whose baseline and last check have failed."""
    at = now()
    monitor = DriftMonitor(
        id="driftmon_everything", project_id=project_id, name=SHORT, window_seconds=86_400, sample=1_000,
        source={"type": "responses", "model": SHORT, "metadata": {"note": TEXT}}, embedding_model=SHORT,
        baseline_id="driftcheck_baseline", metadata_={"note": TEXT}, created_at=at,
    )  # fmt: skip
    session.add(monitor)
    error = [{"code": "too_few_texts", "message": TEXT, "line": 3, "param": None}]
    facts = {
        "measure": "psi",
        "value": 1.25,
        "limit": 0.25,
        "is_drift": True,
        "baseline_texts": 60,
        "current_texts": 60,
    }
    features = [{"name": name, **facts} for name in ("embedding", "length", "language")]
    for number, name in enumerate(("baseline", "first", "second", "last")):
        has_failed = name in ("baseline", "last")
        ended = {"failed_at": at, "errors": error} if has_failed else {"completed_at": at}
        job = {"kind": monitors.NAME, "payload": {}, "state": JobState.FAILED if has_failed else JobState.SUCCEEDED}
        own = {"id": f"driftcheck_{name}", "project_id": project_id, "created_at": at + number}
        session.add(Job(**own, **job, **ended))
        if name != "baseline":
            result = {"is_drift": None, "features": None} if has_failed else {"is_drift": True, "features": features}
            session.add(DriftCheck(**own, monitor_id=monitor.id, **result))
    return {"monitor": monitor.id}


def _add_audit(session: Session, project_id: str) -> None:
    facts = {"actor": f"key:{'a' * 80}", "action": "key.create", "target": TEXT[:120]}
    session.add(Audit(at=int(now() * 1e6), project_id=project_id, details={"note": TEXT}, **facts))


def _add_organization(session: Session, project_id: str) -> None:
    """Add people, another project, a key of a service account, usage, an alert, and a rule for models."""
    at = now()
    member = {"principal_id": "user_everything", "role_id": "role-project-member", "created_at": at}
    work = {"endpoint": "/v1/chat/completions", "requests": 3, "input_tokens": 900, "output_tokens": 70, "cost": 12_345}
    session.add_all(
        [
            Project(id="proj_everything", name=SHORT, created_at=at),
            ServiceAccount(id="svc_acct_everything", project_id=project_id, name=SHORT, created_at=at),
            Account(id="user_everything", email=f"{'e' * 120}@example.com", name=SHORT, created_at=at),
            AccountGroup(id="group_everything", name=SHORT, claim="c" * 120, created_at=at),
            Invite(
                id="invite-everything", email=f"{'i' * 120}@example.com", role="reader", created_at=at, expires_at=at
            ),
            RoleAssignment(project_id=project_id, **member),
            UsageMinute(minute=minute_of(at), project_id=project_id, model=SHORT, **work),
            SpendAlert(
                id="alert_everything", project_id=NO_PROJECT, cents=1, recipients=[f"{HOSTILE}@a"], created_at=at
            ),
            ModelPermission(project_id=project_id, mode="deny_list", model_ids=[SHORT], updated_at=at),
        ]
    )
    session.merge(Spend(project_id=project_id, month=month_of(at), amount=12_345))  # the runs have one already
    scopes = ["api.files.read", "api.batch.read", "api.model.request"]
    add_key(session, project_id, name=SHORT, scopes=scopes, owner_id="svc_acct_everything")

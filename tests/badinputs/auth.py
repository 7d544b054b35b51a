"""Keys that open nothing: on every route of the OpenAPI document, and what a right key of another project sees."""

import statistics
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from jobs.files.tables import File
from jobs.finetuning import jobs as finetuning
from jobs.finetuning.names import JOB_PREFIX
from jobs.finetuning.payload import FineTuning
from jobs.ids import new_id
from jobs.monitoring.monitors import MIN_TEXTS
from jobs.registry import models
from jobs.security.keys import revoke_key
from tests.badinputs.case import WORLDS, Case
from tests.badinputs.json_bodies import BATCH, OF_PROJECTS, routes
from tests.badinputs.world import Asker, World, raw_said, said
from tests.support.inline_deployment import MODEL, chat_line, jsonl
from tests.support.system import pause
from tests.support.tuning_requests import BASE
from tests.support.web import keep_completion_in

AREA = "Keys"
CANARY = "canary-7f3a"
#: Models are everybody's, and streams are in a Redis that these worlds have not.
NOBODYS = ("/v1/models/", "/v1/streams/")
_WORN = "nm_abcdefgh_" + "x" * 43


def well_formed(body: str) -> str:
    """With a right checksum, so that the database is asked."""
    return f"{body}_{zlib.crc32(body.encode()):08x}"


HEADERS: dict[str, tuple[str, str | None]] = {
    "no key": ("401 missing_api_key", None),
    "a scheme alone": ("401 invalid_api_key", "Bearer"),
    "no scheme": ("401 invalid_api_key", well_formed(_WORN)),
    "another scheme": ("401 invalid_api_key", "Basic dXNlcjpwYXNz"),
    "a short key": ("401 invalid_api_key", "Bearer nm_a"),
    "a key of OpenAI's": ("401 invalid_api_key", "Bearer sk-proj-" + "x" * 40),
    "a key that nobody has": ("401 invalid_api_key", f"Bearer {well_formed(_WORN)}"),
    "a wrong checksum": ("401 invalid_api_key", f"Bearer {_WORN}_00000000"),
    "a key of 10 KB": ("401 invalid_api_key", "Bearer " + "x" * 10_240),
    "SQL for a key": ("401 invalid_api_key", f"Bearer {well_formed(chr(39) + ' OR 1=1 --_x_y')}"),
    "a key that is not ASCII": ("401 invalid_api_key", "Bearer ÿ€".encode().decode("latin-1")),
}


def everywhere(client: Asker, world: World, **ids: str) -> str:
    """Return what all routes answer to this client, each different answer once."""
    known = routes(world)
    assert len(known) > 25
    return " | ".join(sorted({said(route.call(client, **ids)) for route, _ in known}))


def with_header(world: World, value: str | None) -> str:
    client = world.asker(None)
    if value is not None:
        client.headers.encoding = "latin-1"
        client.headers["Authorization"] = value
    return everywhere(client, world)


def revoked(world: World) -> str:
    """Use a key, revoke it, and try until it is refused; return the seconds, and then the answer of every route."""
    key = world.make_key("ours")
    client = world.asker(key)
    first = said(client.get("/v1/files?limit=1"))
    with world.db.write() as session:
        revoke_key(session, key.split("_")[1])
    began = time.monotonic()
    while client.get("/v1/files?limit=1").status_code == 200 and time.monotonic() - began < 20 * world.margin:
        pause(0.1)
    took = time.monotonic() - began
    within = "within 5 s" if took <= 5 * world.margin else f"after {took:.1f} s"
    return f"{first}, then {everywhere(client, world)} {within}"


def planted(world: World) -> dict[str, str]:
    """Return the ids of one object of each of our kinds, with the canary in each text."""
    ids: dict[str, str] = world.once("planted", lambda: _plant(world))
    return ids


def _plant(world: World) -> dict[str, str]:
    line = chat_line(CANARY, CANARY)
    file_id = world.upload(jsonl([line]), f"{CANARY}.jsonl").json()["id"]
    upload = {"bytes": 1, "filename": CANARY, "mime_type": CANARY, "purpose": "batch"}
    hook = {"name": CANARY, "url": f"https://192.0.43.8/{CANARY}", "event_types": ["batch.completed"]}
    batch = BATCH | {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "metadata": {CANARY: CANARY}}
    batch_hook = {"webhook": {"url": hook["url"]}}
    schedule = {"cron": "0 0 1 1 *", "batch": batch}
    step = {"name": "a", "kind": "batch", "request": batch}
    target = {"type": "alias", "id": "our-alias", "model": "all-minilm-l6-v2"}
    forced = {"target": target, "force": True, "reason": CANARY, "metadata": {CANARY: CANARY}}
    key = {"Idempotency-Key": f"{CANARY}-{file_id}"}
    ask, at_rest = world.client.post, keep_completion_in(world.db, world.storage, "ours", said=CANARY)
    asked = {"model": MODEL, "input": CANARY, "background": True}
    feedback = {"target": {"type": "chat.completion", "completion_id": at_rest}, "score": 1, "comment": CANARY}
    talk = ask("/v1/conversations", json={"items": [{"role": "user", "content": CANARY}]}).json()["id"]
    made = {
        "completion_id": at_rest,
        "response_id": ask("/v1/responses", json=asked).json()["id"],
        "conversation_id": talk,
        "item_id": world.client.get(f"/v1/conversations/{talk}/items").json()["first_id"],
        **_library(world, file_id),
        **_tuned(world, file_id),
        **_evaluated(world),
        "file_id": file_id,
        "upload_id": world.client.post("/v1/uploads", json=upload).json()["id"],
        "webhook_endpoint_id": world.client.post("/v1/webhook_endpoints", json=hook).json()["id"],
        "batch_id": world.client.post("/v1/batches", json=batch | batch_hook, headers=key).json()["id"],
        "alias": ask("/v1/aliases", json={"id": "our-alias", "model": BASE, "reason": CANARY}).json()["id"],
        "feedback_id": ask("/v1/feedback", json=feedback).json()["id"],
        "schedule_id": world.client.post("/v1/schedules", json=schedule).json()["id"],
        "model_import_id": ask("/v1/model_imports", json=_import_of(file_id)).json()["id"],
        "promotion_id": ask("/v1/promotions", json=forced).json()["id"],
        "pipeline_id": ask("/v1/pipelines", json={"name": CANARY, "steps": [step]}).json()["id"],
        "prompt_id": world.client.post("/v1/prompts", json={"name": CANARY, "instructions": CANARY}).json()["id"],
        **_rows(world, file_id),
        **_monitored(world),
        "version": "1",
        "api_key_id": world.client.post("/v1/api_keys").json()["id"],
    }
    world.eventually(world.idle, "all jobs have ended", 240)  # nothing of them is to be made while another case looks
    [delivery, *_] = world.client.get(f"/v1/jobs/{made['batch_id']}/deliveries").json()["data"]
    return made | {"job_id": made["batch_id"], "delivery_id": delivery["id"]}


def _import_of(file_id: str) -> dict[str, Any]:
    """Return the import of a model that has no manifest, and fails."""
    return {"base": BASE, "suffix": CANARY, "files": [{"name": "notes.txt", "file_id": file_id}]}


def _library(world: World, file_id: str) -> dict[str, str]:
    """Create a vector store with a file, a source and a second index."""
    ask = world.client.post
    store = ask("/v1/vector_stores", json={"name": CANARY, "metadata": {CANARY: CANARY}}).json()["id"]
    path, site = f"/v1/vector_stores/{store}", {"type": "url", "url": f"https://site.example.com/{CANARY}"}
    return {
        "vector_store_id": store,
        "file_batch_id": ask(f"{path}/file_batches", json={"file_ids": [file_id]}).json()["id"],
        "index_id": ask(f"{path}/indexes", json={"embedding_dimensions": 64}).json()["id"],
        "source_id": ask(f"{path}/sources", json=site).json()["id"],
    }


def _rows(world: World, file_id: str) -> dict[str, str]:
    """Return the name of a dataset that has a version."""
    name = "our-rows"  # that an answer may quote
    world.client.post("/v1/datasets", json={"name": name, "description": CANARY, "metadata": {CANARY: CANARY}})
    source = {"type": "file_id", "id": file_id}
    world.client.post(f"/v1/datasets/{name}/versions", json={"sources": [source]})
    return {"dataset": name}


def _monitored(world: World) -> dict[str, str]:
    """Return the ids of a drift monitor and of its check."""
    texts = world.upload(jsonl([{"input": f"{CANARY} {n}"} for n in range(MIN_TEXTS)]), "texts.jsonl").json()["id"]
    source = {"type": "file", "file_id": texts}
    body = {"name": CANARY, "source": source, "embedding_model": MODEL, "metadata": {CANARY: CANARY}}
    monitor = world.client.post("/v1/drift_monitors", json=body).json()["id"]
    check = world.client.post(f"/v1/drift_monitors/{monitor}/checks", json={}).json()["id"]
    return {"monitor_id": monitor, "check_id": check}


def _evaluated(world: World) -> dict[str, str]:
    """Return the ids of an eval, of a run that has ended, and of its item."""
    ask, schema = world.client.post, {"type": "object", "properties": {"text": {"type": "string"}}}
    check = {"type": "string_check", "name": CANARY, "input": "{{ item.text }}", "reference": CANARY, "operation": "eq"}
    config = {"type": "custom", "item_schema": schema}
    body = {"name": CANARY, "data_source_config": config, "testing_criteria": [check]}
    evaluation = ask("/v1/evals", json=body).json()["id"]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"text": CANARY}}]}}
    run = ask(f"/v1/evals/{evaluation}/runs", json={"name": CANARY, "data_source": source}).json()["id"]
    path = f"/v1/evals/{evaluation}/runs/{run}"
    world.eventually(lambda: world.client.get(path).json()["status"] == "completed", "the run has ended", 240)
    [item] = world.client.get(f"{path}/output_items").json()["data"]
    online = {"name": CANARY, "eval_id": evaluation, "source": {"type": "responses"}, "metadata": {CANARY: CANARY}}
    online_id = world.client.post("/v1/online_evaluations", json=online).json()["id"]
    ids = {"eval_id": evaluation, "run_id": run, "output_item_id": item["id"]}
    return ids | {"online_evaluation_id": online_id}


def _tuned(world: World, file_id: str) -> dict[str, str]:
    """Return the ids of a fine-tuning job that fails for its file, of a checkpoint, and of a permission for it."""
    job_id = new_id(JOB_PREFIX)
    name = f"ft:{MODEL}:ours:suffix:{job_id[-10:]}:ckpt-step-1"
    with world.db.write() as session:
        file = session.get_one(File, file_id)
        payload = FineTuning(model=MODEL, base=MODEL, result=name.rpartition(":")[0], seed=1)
        project = {"project_id": file.project_id, "actor": CANARY}
        finetuning.submit(session, payload, job_id=job_id, training_file=file, metadata={CANARY: CANARY}, **project)
        facts = {"location": CANARY, "sha256": "0" * 64, "manifest": {}, "method": "lora", "base": MODEL}
        for model, step in ((name, 1), (payload.result, None)):
            of_job = {"name": model, "project_id": file.project_id, "job_id": job_id, "checkpoint_step": step}
            models.register(session, **of_job, **facts)
        [permission] = models.permit(session, name, [file.project_id], created_by=CANARY)
        of_model = {"fine_tuned_model_checkpoint": name, "fine_tuned_model": name, "file_name": "manifest.json"}
        of_job = {"fine_tuning_job_id": job_id, "model_version": payload.result}
        return {"permission_id": permission.id, **of_job, **of_model}


def by_id(world: World) -> str:
    """Their key, our ids: each route of projects with an id of ours says that there is no such thing."""
    ids = planted(world)
    of_projects = [route for route, operation in routes(world) if operation["security"] == OF_PROJECTS]
    owned = [route for route in of_projects if "{" in route.path and not route.path.startswith(NOBODYS)]
    assert {name for route in owned for name in route.parameters} == set(ids)
    answers = [route.call(world.stranger, **ids) for route in owned]
    leaks = sum(CANARY in answer.text for answer in answers)
    intact = [world.client.get(path).status_code for path in _ours(ids)]
    return f"{' | '.join(sorted({said(one) for one in answers}))}, {leaks} leaks, ours {sorted(set(intact))}"


_LISTS = (
    "files", "batches", "jobs", "webhook_endpoints", "schedules", "aliases", "vector_stores", "chat/completions",
    "fine_tuning/jobs", "evals", "prompts", "feedback", "pipelines", "datasets", "alias_moves", "model_versions",
    "promotions", "drift_monitors", "online_evaluations", "model_imports",
)  # fmt: skip


def by_list(world: World) -> str:
    """Request lists, filters, cursors and a batch or dry run over the owner's file; nothing of the owner may appear."""
    ids = planted(world)
    theirs = world.stranger
    answers: list[Any] = [
        theirs.get(f"/v1/{name}", params=query)
        for name in _LISTS
        for query in ({}, {"limit": "100"}, {"after": ids["file_id"]}, {"after": ids["batch_id"]})
    ]
    answers.append(theirs.get("/v1/jobs", params={f"metadata[{CANARY}]": CANARY}))
    key = f"{CANARY}-{ids['file_id']}"
    answers.append(theirs.get("/v1/jobs", params={"idempotency_key": key}))
    over = BATCH | {"input_file_id": ids["file_id"], "endpoint": "/v1/chat/completions"}
    dry = {"input_file_id": ids["file_id"], "endpoint": "/v1/chat/completions"}
    answers.append(theirs.post("/v1/batches/validate", json=dry))
    made = theirs.post("/v1/batches", json=over, headers={"Idempotency-Key": key}).json()["id"]
    batch = world.ended(made, client=theirs)
    answers += [theirs.get(f"/v1/batches/{made}"), theirs.get(f"/v1/jobs/{made}/results")]
    assert any(CANARY in world.client.get(f"/v1/{name}").text for name in ("files", "batches")), "nothing was planted"
    leaks = sum(CANARY in answer.text for answer in answers)
    return f"{leaks} leaks, their batch {batch['status']}"


def _ours(ids: dict[str, str]) -> list[str]:
    names = {"files": "file_id", "batches": "batch_id", "jobs": "job_id", "webhook_endpoints": "webhook_endpoint_id"}
    names |= {"schedules": "schedule_id", "vector_stores": "vector_store_id", "conversations": "conversation_id"}
    names |= {"responses": "response_id", "chat/completions": "completion_id", "fine_tuning/jobs": "fine_tuning_job_id"}
    names |= {"prompts": "prompt_id", "feedback": "feedback_id", "pipelines": "pipeline_id", "datasets": "dataset"}
    names |= {"promotions": "promotion_id", "drift_monitors": "monitor_id", "model_imports": "model_import_id"}
    names |= {"online_evaluations": "online_evaluation_id"}
    inside = [f"sources/{ids['source_id']}", f"indexes/{ids['index_id']}", f"files/{ids['file_id']}"]
    return [f"/v1/{name}/{ids[key]}" for name, key in names.items()] + [
        f"/v1/vector_stores/{ids['vector_store_id']}/{one}" for one in inside
    ]


def smuggled(world: World, *headers: tuple[str, str]) -> str:
    return said(world.nobody.get("/v1/files", headers=[*headers]))  # type: ignore[arg-type]


def claiming(world: World) -> str:
    """Their key with headers that name our project, or us."""
    ids = planted(world)
    headers = {
        "OpenAI-Organization": "ours", "OpenAI-Project": "ours", "X-Forwarded-For": "127.0.0.1",
        "X-Original-URL": f"/v1/files/{ids['file_id']}", "X-HTTP-Method-Override": "DELETE", "X-Api-Key": world.key,
    }  # fmt: skip
    told = said(world.stranger.get(f"/v1/files/{ids['file_id']}", headers=headers))
    return f"{told}, ours {said(world.client.get('/v1/files/' + ids['file_id']))}"


def around(world: World) -> str:
    """Paths that look like the open ones, without a key."""
    paths = (
        "/livez/../v1/files", "//v1/files", "/v1/files/", "/livez%2f..%2fv1/files", "/openapi.json/", "/V1/files",
        "/v1/files;/livez", "/v1/files?/livez", "/v1/files%3f/livez", "/./v1/files", "/v1//files", "/metrics/",
        "/docs/../v1/files",
    )  # fmt: skip
    answers = (world.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()) for path in paths)
    return " | ".join(sorted({raw_said(answer) for answer in answers}))


def expecting(world: World) -> str:
    """Without a key no body is asked for."""
    head = "POST /v1/files HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n"
    answer = world.raw(head.encode(), wait=1)
    return "asked for the body" if b"100 Continue" in answer else raw_said(answer)


def many_wrong(world: World) -> str:
    """10,000 in full, against the limit of a minute; the right key still opens."""
    client = world.asker(well_formed(_WORN))
    count = 10_000 if world.full else 300
    found = Counter(said(client.get("/v1/files")) for _ in range(count))
    limit = int(WORLDS["strict"]["wrong_keys_per_minute"])
    right = said(world.client.get("/v1/files"))
    wrong = found == {"401 invalid_api_key": limit, "429 rate_limit_exceeded": count - limit}
    return f"401 up to the limit, then 429; the right key {right}" if wrong else f"{dict(found)}"


def timing(world: World) -> str:
    """Compare the time for a known id with a wrong secret with that for an unknown id, by medians taken in turns."""
    known = well_formed("_".join([*world.key.split("_")[:2], "x" * 43]))
    clients = [world.asker(known), world.asker(well_formed(_WORN))]
    times: list[list[float]] = [[], []]
    for _ in range(2000 if world.full else 300):
        for client, seconds in zip(clients, times, strict=True):
            began = time.perf_counter()
            client.get("/v1/files")
            seconds.append(time.perf_counter() - began)
    apart = abs(statistics.median(times[0]) - statistics.median(times[1]))
    return "less than 1 ms apart" if apart < 0.001 * world.margin else f"{apart * 1000:.2f} ms apart"


def logged(world: World) -> str:
    """Everywhere a key might be put by mistake, with debugging on: it is in no log."""
    key = world.make_key("ours")
    client, wrong = world.asker(key), world.asker(key[:-1] + ("0" if key[-1] != "0" else "1"))
    client.get("/v1/files")
    wrong.get("/v1/files")
    client.get("/v1/files", params={"api_key": key, "after": key})
    client.get(f"/v1/files/{key}")
    client.post("/v1/batches", json={"input_file_id": key, key: key})
    client.post("/v1/batches", content=key, headers={"Content-Type": key})
    client.get("/v1/files", headers={"Idempotency-Key": key, "X-Request-Id": "req_12345678"})
    world.raw(f"GET /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nX\r\n\r\n".encode(), wait=1)
    text = world.log()
    assert "req_12345678" in text or len(text) > 1000, "nothing was logged"
    return f"{sum(part in text for part in (key, key.split('_', 2)[2]))} found"


def unmanaging(world: World) -> str:
    """Ask for a key with one that manages none, and revoke another one of its project."""
    ordinary, path = world.asker(world.make_key("ours")), f"/v1/api_keys/{world.key.split('_')[1]}"
    answers = [ordinary.post("/v1/api_keys"), ordinary.delete(path), ordinary.delete(f"{path}?cascade=true")]
    return f"{' | '.join(sorted({said(answer) for answer in answers}))}, the other key {said(world.client.get(path))}"


def cases() -> Iterator[Case]:
    for name, (expected, header) in HEADERS.items():
        run = lambda world, header=header: with_header(world, header)  # noqa: E731
        yield Case(AREA, f"every route: {name}", expected, run)
    yield Case(AREA, "every route: a revoked key", "200, then 401 invalid_api_key within 5 s", revoked)
    yield Case(
        AREA,
        "every route: ids of another project",
        "404 dataset_not_found | 404 model_import_not_found | 404 model_not_found | 404 not_found | "
        "404 prompt_not_found, 0 leaks, ours [200]",
        by_id,
        creates=True,
    )
    yield Case(AREA, "lists and files of another project", "0 leaks, their batch failed", by_list, creates=True)
    yield Case(AREA, "keys made by a key that manages none", "403 missing_scope, the other key 200", unmanaging)
    key = "Bearer nm_x"
    yield Case(
        AREA,
        "two Authorization headers",
        "401 invalid_api_key",
        lambda w: smuggled(w, ("Authorization", f"Bearer {w.key}"), ("Authorization", key)),
    )
    yield Case(
        AREA,
        "two keys in one header",
        "401 invalid_api_key",
        lambda w: smuggled(w, ("Authorization", f"Bearer {w.key}, {key}")),
    )
    yield Case(AREA, "headers that claim another project", "404 not_found, ours 200", claiming, creates=True)
    yield Case(AREA, "paths around the open ones", "401 missing_api_key", around)
    yield Case(AREA, "Expect: 100-continue without a key", "401 missing_api_key", expecting)
    yield Case(
        AREA, "10,000 wrong keys", "401 up to the limit, then 429; the right key 200", many_wrong, world="strict"
    )
    yield Case(AREA, "known and unknown ids take as long", "less than 1 ms apart", timing)
    yield Case(AREA, "a key in the logs", "0 found", logged)

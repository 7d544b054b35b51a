"""No escape sequence reaches the operator's terminal, whatever a client or a server names its things."""

import csv
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli import terminal
from cli.commands.results import write_csv
from cli.main import app
from jobs.batches.joining import join_rows
from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.ledger import audit, pauses
from jobs.security.keys import create_key
from tests.support import sample_jobs
from tests.support.worker_rows import worker_row
from tests.unit.cli.commands.test_results import answered, asked, chat, unanswered
from tests.unit.cli.test_help import COMMANDS

OSC = "\x1b]0;owned\x07"
#: Rich's markup, an OSC and a CSI sequence, the latter in C1 too, a change of direction. A model may be called so.
MODEL = f"[/boom]{OSC}\x1b[2J\x9b31m\u202e\u2066"
#: And an end of line.
STORED = f"{MODEL}\r\nforged"
#: And a surrogate without a partner, which a server may send in JSON but no database stores.
HOSTILE = f"{STORED}\ud800"
COUNTS = {"in_progress": 0, "completed": 1, "failed": 1, "cancelled": 0, "total": 2}
ERROR = {"code": HOSTILE, "message": HOSTILE, "param": HOSTILE, "line": 1}


def thing() -> dict[str, Any]:
    """Every resource at once: a job, a batch, a store's index, a source, a schedule, a model, a webhook endpoint."""
    return {
        "id": "x-1", "kind": HOSTILE, "state": "failed", "status": HOSTILE, "model": HOSTILE, "endpoint": HOSTILE,
        "progress": {"total": 3, "completed": 1, "failed": 2}, "usage": {"input_tokens": 1, "output_tokens": 1},
        "created_at": 1, "finalizing_at": 1, "overrides": {}, "waiting_for": None, "filename": HOSTILE,
        "metadata": {HOSTILE: HOSTILE},
        "input_file_id": "input", "output_file_id": "output", "error_file_id": "error",
        "errors": {"data": [ERROR]}, "valid": False, "errors_truncated": False,
        "outcomes": {"finish_reasons": {HOSTILE: 1, "length": 1}, "empty": 1, "errors": {HOSTILE: 1}},
        "job_id": "x-1", "file_batch_id": HOSTILE, "vector_store_index_id": None, "missing": 0, "file_counts": COUNTS,
        "embedding_model": HOSTILE, "embedding_dimensions": 3, "replaced_at": 1,
        "chunking_strategy": {"type": HOSTILE, HOSTILE: {}},
        "urls": [HOSTILE, HOSTILE], "counts": None, "paused": False, "next_run_at": 1, "last_error": HOSTILE,
        "cron": HOSTILE, "timezone": HOSTILE, "last_batch_id": HOSTILE, "batch": {"input_file_id": HOSTILE},
        "last_job_id": HOSTILE, "job": {HOSTILE: HOSTILE},
        "max_model_len": 5, "license": HOSTILE, "training_data": [HOSTILE], "query_prompt": HOSTILE,
        "jobs": [
            {"id": "x-1", "kind": HOSTILE, "state": HOSTILE, "waiting_for": HOSTILE, "after": [HOSTILE]},
            {"id": HOSTILE, "kind": HOSTILE, "state": HOSTILE, "waiting_for": None, "after": []},
        ],
        "truncated": True,
        "purpose": HOSTILE, "bytes": 1, "expires_at": 1, "name": HOSTILE, "usage_bytes": 1, "file_id": HOSTILE,
        "score": 1.0, "content": [{"text": HOSTILE}], "url": HOSTILE, "event_types": [HOSTILE], "event_type": HOSTILE,
        "disabled_at": None, "attempts": [], "error": HOSTILE, "status_code": 200,
        "signing_secret": "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c=",
        "last_position": 0, "eval_id": "eval_1", "text": HOSTILE, "reasons": [],
        "target": HOSTILE, "type": HOSTILE, "effective_at": 1, "actor": HOSTILE, "source": HOSTILE, "destination": None,
        "redacted_value": HOSTILE, "revoked_at": None, "manages_keys": False, "created_by": HOSTILE,
        "scopes": [HOSTILE], "last_used_at": None, "updated_at": 1,
    }  # fmt: skip


def fine_tuning(path: str) -> object:
    """Return a job that failed, or a list of events, checkpoints or jobs."""
    job = {
        "id": HOSTILE, "status": "failed" if path.endswith("x-1") else HOSTILE, "model": HOSTILE, "created_at": 1,
        "fine_tuned_model": HOSTILE, "finished_at": 1, "error": ERROR, "warnings": [HOSTILE],
        "errors": {"data": [ERROR]}, "errors_truncated": False, "measuring_job": None, "data": [],
    }  # fmt: skip
    if path.endswith("/files"):
        return {"object": "list", "method": "lora", "base": HOSTILE, "data": [{"name": HOSTILE, "sha256": HOSTILE}]}
    if not path.endswith(("/jobs", "/events", "/checkpoints")):
        return job
    entry = job | {
        "type": "metrics", "level": "info", "message": HOSTILE, "data": {"step": 1, "train_loss": 1.0},
        "fine_tuned_model_checkpoint": HOSTILE, "step_number": 1, "metrics": {"train_loss": 1.0, "valid_loss": None},
    }  # fmt: skip
    return job | {"object": "list", "data": [entry], "has_more": False, "last_id": HOSTILE}


def evaluation(path: str) -> object:
    """Return an eval, a run that failed, its output items, or a list of evals or runs."""
    counts = {"passed": 1, "failed": 1, "errored": 0}
    run = {
        "id": "evalrun_1", "eval_id": "eval_1", "name": HOSTILE, "model": HOSTILE, "status": "failed", "created_at": 1,
        "error": ERROR, "per_testing_criteria_results": [{"testing_criteria": HOSTILE, **counts}],
        "testing_criteria": [{"name": HOSTILE}],
    }  # fmt: skip
    if not path.endswith(("/evals", "/runs", "/output_items")):
        return run
    item = {"datasource_item": {"language": HOSTILE}, "results": [{"name": HOSTILE, "score": 1.0, "passed": True}]}
    entry = run | item | {"datasource_item_id": 0}
    return run | {"object": "list", "data": [entry], "has_more": False, "last_id": HOSTILE}


def prompt(path: str) -> object:
    """Return a version of a prompt, a prompt, or a list of them."""
    messages = [{"role": HOSTILE, "content": HOSTILE}, {"role": "user", "content": [{"text": HOSTILE}]}]
    version = {
        "prompt_id": HOSTILE, "version": HOSTILE, "created_at": 1, "model": HOSTILE, "instructions": path,
        "messages": messages, "tools": [], "tool_choice": None, "text": None, "parameters": {HOSTILE: 1},
        "variables": [{"name": HOSTILE}],
    }  # fmt: skip
    if "/versions" in path:
        return version
    numbers = {"default_version": HOSTILE, "latest_version": HOSTILE, "labels": {STORED: STORED}}
    one = {"id": "x-1", "name": HOSTILE, "created_at": 1, "version": version, **numbers}
    return one | {"object": "list", "data": [one | {"id": HOSTILE}], "has_more": False}


def feedback(path: str) -> object:
    """Return feedback, a list with one, or a summary."""
    interval = {"low": 0.0, "high": 1.0}
    if path.endswith("/summary"):
        row = {"model": HOSTILE, "count": 1, "mean_score": 1.0, "positive_share": 1.0, **interval}
        difference = {"model": HOSTILE, "baseline": HOSTILE, "difference": 1.0, **interval}
        return {"data": [row], "difference": difference}
    one = {"id": HOSTILE, "target": {"type": "response", "response_id": HOSTILE}, "score": 1.0, "created_at": 1}
    one |= dict.fromkeys(("comment", "user", "model"), HOSTILE)
    return one | {"object": "list", "data": [one], "has_more": False}


def alias(_path: str) -> object:
    """Return an alias with two targets, a fallback and a shadow, and its move, as an entry of a list too."""
    targets = [{"model": HOSTILE, "weight": 80}, {"model": STORED, "weight": 20}]
    routing = {"targets": targets, "sticky": True, "fallbacks": [HOSTILE], "shadow": {"model": HOSTILE, "share": 50}}
    one = {"id": HOSTILE, "updated_at": 1, "source": "project", **routing, "created_at": 1, "action": HOSTILE}
    one |= {"actor": HOSTILE, "reason": HOSTILE, "routing": routing}
    one["shadow_counts"] = dict.fromkeys(("requests", "sent", "dropped", "failed", "compared", "equal"), 1)
    one["shadow_counts"] |= {"length_ratio": 1.5}
    return one | {"object": "list", "data": [one], "has_more": False}


def model_version(path: str) -> object:
    """Return a version, its lineage or its moves, or a list with one."""
    if path.endswith("/lineage"):
        node = dict.fromkeys(("id", "name", "sha256", "status", "stage"), HOSTILE) | {"type": HOSTILE}
        edges = [{"source": HOSTILE, "target": HOSTILE, "relation": HOSTILE}]
        return {"model": HOSTILE, "nodes": [node], "edges": edges, "truncated": True}
    if path.endswith("/moves"):
        move = dict.fromkeys(("id", "actor", "former_stage", "stage", "reason"), HOSTILE) | {"created_at": 1}
        return {"object": "list", "data": [move], "has_more": False}
    names = (
        "id",
        "family",
        "semantic_version",
        "stage",
        "license",
        "git_commit",
        "dvc_hash",
        "base",
        "parent",
        "method",
    )
    criteria = [{"testing_criteria": HOSTILE, "passed": 1, "failed": 0}]
    manifest = {
        "seed": 1, "data": [{"role": HOSTILE, "file_id": HOSTILE, "sha256": HOSTILE}], "hyperparameters": {HOSTILE: 1},
        "training": {}, "run": {"versions": {HOSTILE: HOSTILE}},
        "evaluations": [{"eval_id": HOSTILE, "per_testing_criteria_results": criteria}],
    }  # fmt: skip
    one = dict.fromkeys(names, HOSTILE) | {"number": 1, "bytes": 1, "created_at": 1, "metrics": {HOSTILE: 1.0}}
    one |= {"fine_tuning_job": "x-1", "data_erased": True}
    return one | {"manifest": manifest, "object": "list", "data": [one], "has_more": False}


def family(path: str) -> object:
    """Return a list with a family, or with a version of one."""
    one = {"id": HOSTILE, "versions": 2, "latest": 2, "production": 1, "created_at": 1}
    if path.endswith("/versions"):
        one = dict.fromkeys(("id", "name", "stage", "source", "fingerprint"), HOSTILE) | {"number": 1, "created_at": 1}
    return {"object": "list", "data": [one], "has_more": False}


def pipeline(_path: str) -> object:
    """Return a pipeline with a step that failed and one that waits for it, as an entry of a list too."""
    step = {"name": HOSTILE, "kind": HOSTILE, "status": HOSTILE, "after": [], "job_id": HOSTILE, "error": ERROR}
    later = step | {"name": "later", "after": [HOSTILE], "job_id": None, "error": None}
    one = {"id": HOSTILE, "name": HOSTILE, "status": HOSTILE, "created_at": 1, "steps": [step, later]}
    return one | {"object": "list", "data": [one], "has_more": False}


def dataset(path: str) -> object:
    """Return a version of a dataset that failed, a dataset, or a list of them."""
    split = {"name": HOSTILE, "reference": HOSTILE, "rows": 1, "file_id": "output"}
    version = {
        "id": "x-1", "version": 1, "status": "failed", "rows": 1, "splits": [split], "created_at": 1,
        "errors": {"data": [ERROR]},
    }  # fmt: skip
    one = {"id": "x-1", "name": HOSTILE, "split": {"type": HOSTILE}, "seed": 1, "latest_version": 1, "created_at": 1}
    if path.endswith(("/datasets", "/versions")):
        entry = version if path.endswith("/versions") else one
        return entry | {"object": "list", "data": [entry | {"id": HOSTILE}], "has_more": False}
    return version if "/versions" in path else one


def promotion(_path: str) -> object:
    """Return a promotion that a gate refused, as an entry of a list too."""
    row = {"criterion": HOSTILE, "outcome": HOSTILE, "items": 20, "candidate": 0.5, "incumbent": 1.0}
    row |= {"difference": -0.5, "low": -0.6, "high": -0.4, "further_items": None}
    gate = {"eval_id": HOSTILE, "rule": {"type": HOSTILE}, "report": {"outcome": HOSTILE, "criteria": [row]}}
    one = {"id": HOSTILE, "status": HOSTILE, "target": {"type": HOSTILE, "id": HOSTILE, "model": HOSTILE}}
    one |= {"incumbent": HOSTILE, "force": False, "error": ERROR, "gates": [gate], "created_at": 1}
    return one | {"object": "list", "data": [one], "has_more": False}


def drift(path: str) -> object:
    """Return a monitor of drift whose baseline is made, a check of it, or a list of them."""
    feature = {
        "name": HOSTILE, "measure": HOSTILE, "value": 1.0, "limit": 0.5, "is_drift": True, "current_texts": 1,
    }  # fmt: skip
    check = {
        "id": HOSTILE, "status": "completed" if path.endswith("/x-1") else HOSTILE, "is_drift": True, "created_at": 1,
        "features": [feature], "error": ERROR,
    }  # fmt: skip
    monitor = {
        "id": "x-1", "name": HOSTILE, "source": {"type": HOSTILE}, "sample": 1, "embedding_model": HOSTILE,
        "baseline": {"id": "x-1", "status": "completed", "error": ERROR}, "created_at": 1,
    }  # fmt: skip
    if path.endswith(("/drift_monitors", "/checks")):
        entry = check if path.endswith("/checks") else monitor
        return entry | {"id": "x-1", "object": "list", "data": [entry | {"id": HOSTILE}], "has_more": False}
    return check if "/checks/" in path else monitor


def online_evaluation(path: str) -> object:
    """Return an online evaluation that is a round, too, and a list of it."""
    one = {"id": HOSTILE, "name": HOSTILE, "eval_id": HOSTILE, "source": {"type": HOSTILE}, "status": HOSTILE}
    one |= {"cron": HOSTILE, "timezone": HOSTILE, "last_error": HOSTILE, "error": HOSTILE, "share": 10.0, "value": 0.5}
    one |= {"threshold": {"measure": HOSTILE, "criterion": HOSTILE, "minimum": 0.8, "window": 20}, "answers": 20}
    one |= {"is_alerting": True, "next_round_at": 1, "until": 1, "pass_rate": 0.5, "low": 0.3, "high": 0.7}
    one |= {"errored": 0}
    return one | {"object": "list", "data": [one], "has_more": False}


def answer(method: str, path: str) -> tuple[int, object]:
    """Return the server's answer. A list has an entry with a hostile id."""
    if path.startswith(("/v1/jobs/refused", "/v1/schedules/refused")):
        return 400, {"error": ERROR}
    if path.endswith("/compare"):
        figures = {"recall": None, "ndcg": None, "mrr": None, "latency_ms": 1.0, "index_id": HOSTILE}
        summary = {"active": figures, "candidate": figures, "overlap": 1.0, "rank_correlation": None}
        return 200, {"summary": summary, "data": [{"active": figures}], "max_num_results": 3, "missing": 1}
    entry = {**thing(), "id": HOSTILE, "state": HOSTILE, "waiting_for": HOSTILE, "status": HOSTILE}
    if "sources" in path or path.endswith("/x/files"):
        entry["last_error"] = ERROR
    if (method, path) == ("POST", "/v1/files"):
        return 200, {**thing(), "object": "file", "purpose": "batch", "bytes": 1}
    if method == "POST" and path.endswith(("/cancel", "/retry", "/sync", "/switch", "/pause", "/resume", "/sources")):
        return 200, entry
    return 200, {**thing(), "data": [entry], "has_more": False, "object": "list"}


EVENT = {"id": HOSTILE, "type": "batch.completed", "data": {"id": HOSTILE}, "position": 1, "seq": 1, "created_at": 1}
CONTENTS = {
    "input": b"".join(asked(name) for name in (STORED, "=1+1", "c")),
    "output": b"\n".join([answered(STORED, chat(STORED)), answered("=1+1", chat("@SUM(A1)"))]),
    "error": unanswered("c", STORED),
}


JOINED = list(join_rows(*(CONTENTS[name].splitlines(keepends=True) for name in ("input", "output", "error"))))


class Hostile(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/content"):
            status, body = 200, CONTENTS[path.split("/")[-2]]
        elif path.endswith("/x-1/results"):
            status, body = 200, b"".join(json.dumps(row).encode() + b"\n" for row in JOINED)
        else:
            rooms = {"/v1/fine_tuning/": fine_tuning, "/v1/evals": evaluation, "/v1/feedback": feedback}
            rooms |= {
                "/v1/prompts": prompt,
                "/v1/pipelines": pipeline,
                "/v1/datasets": dataset,
                "/v1/alias": alias,
                "/v1/model_versions": model_version,
                "/v1/families": family,
                "/v1/promotions": promotion,
                "/v1/drift_monitors": drift,
                "/v1/online_evaluations": online_evaluation,
            }
            room = next((room for start, room in rooms.items() if path.startswith(start)), None)
            status, content = (200, room(path)) if room else answer(self.command, path)
            body = json.dumps(content).encode()
            if "event-stream" in self.headers.get("accept", ""):
                body = b"data: %b\n\n" % json.dumps(EVENT).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_DELETE(self) -> None:
        self.do_GET()

    def log_request(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


Told = tuple[str, str]
Call = Callable[..., Told]


@pytest.fixture
def call(
    tmp_path: Path, url: str, sqlite: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Return a function that runs the command against a hostile server and database, and returns its output."""
    variables = {"URL": url, "API_KEY": "sk-x", "DATA_DIR": str(tmp_path), "DATABASE_URL": sqlite.url}
    for name, value in {**variables, "VLLM_ENABLED": "false", "ENGINE_URLS": url}.items():
        monkeypatch.setenv(f"NIGHTMILL_{name}", value)
    monkeypatch.chdir(tmp_path)
    texts = json.dumps({"id": "t", "text": "x", "language": STORED}) + "\n" + json.dumps({"id": "u", "text": "y"})
    (tmp_path / "corpus").write_text(texts)
    (tmp_path / "requests.jsonl").write_bytes(asked("a"))
    (tmp_path / "eval.json").write_text("{}")
    saved = evaluation("") | dict.fromkeys(("name", "model"), STORED) | {"status": "completed"}
    saved |= {"data_source_config": {"type": "custom"}, "testing_criteria": [{"name": STORED}]}
    kinds = {"eval": {"id": "eval_1"}, "eval.run": {"id": "evalrun_1"}, "eval.run.output_item": {"run_id": "evalrun_1"}}
    objects = [{**saved, "object": kind, **fields} for kind, fields in kinds.items()]
    (tmp_path / "steps.yaml").write_text("steps: [{name: a, kind: batch, request: {}}]")
    (tmp_path / "saved.jsonl").write_text("\n".join(map(json.dumps, objects)))
    models = {MODEL: {"source": {"urls": [url]}, "engine": "http", "aliases": [f"{MODEL}2"]}}
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": models}))
    monkeypatch.setenv("NIGHTMILL_MODELS_FILE", str(tmp_path / "models.yaml"))
    _fill(sqlite)

    def call(*words: str) -> Told:
        with pytest.raises(SystemExit):
            app([*words])
        return capsys.readouterr()

    return call


def _fill(db: Database) -> None:
    with db.write() as session:
        create_key(session, STORED)
        workers.register(session, worker_row(STORED, STORED, STORED, host=STORED))
        pauses.pause(session, pauses.Scope.QUEUE, STORED, actor="operator", reason=STORED)
        workers.store_models(session, {f"{MODEL}3": False}, "gpu.generate")
        sample_jobs.quarantined(session, f"{MODEL}4", host_devices=STORED)
        audit.record(session, actor=STORED, action=STORED, target=STORED)


#: By command: its words, in as many ways as matter; True where what is hostile must be shown.
VERBS: dict[str, tuple[bool, list[list[str]]]] = {
    "jobs": (True, [["jobs"], ["jobs", "--json"]]),
    "watch": (True, [["watch", "x-1"]]),
    "explain": (True, [["explain", "x-1"], ["explain", "refused"]]),
    "graph": (True, [["graph", "x-1"]]),
    "results": (True, [["results", "x-1"], ["results", "refused"]]),
    "submit": (True, [["submit", "requests.jsonl"], ["submit", "requests.jsonl", "--no-check"]]),
    "run-batch": (True, [["run-batch", "-i", "requests.jsonl", "-o", "out", "--model", "m"]]),
    "chat": (True, [["chat", "hello", "-m", "x", "--json"]]),
    "files upload": (False, [["files", "upload", "requests.jsonl"]]),
    "files list": (True, [["files", "list"], ["files", "list", "--json"]]),
    "files get": (True, [["files", "get", "x-1"]]),
    "files download": (False, [["files", "download", "input", "--output", "out"]]),
    "files delete": (False, [["files", "delete", "x"], ["files", "delete", "x", "--json"]]),
    "stores create": (False, [["stores", "create", "x"]]),
    "stores list": (True, [["stores", "list"], ["stores", "list", "--json"]]),
    "stores add": (True, [["stores", "add", "x-1", "file-1"]]),
    "stores files": (True, [["stores", "files", "x"]]),
    "stores search": (True, [["stores", "search", "x", "query"]]),
    "stores remove": (False, [["stores", "remove", "x", "file-1"]]),
    "stores delete": (False, [["stores", "delete", "x"]]),
    "webhooks create": (True, [["webhooks", "create", "http://h", "--json"]]),
    "webhooks list": (True, [["webhooks", "list"]]),
    "webhooks test": (False, [["webhooks", "test", "x"]]),
    "webhooks deliveries": (True, [["webhooks", "deliveries", "x"]]),
    "webhooks delete": (False, [["webhooks", "delete", "x"]]),
    "cancel": (True, [["cancel", "x-1"], ["cancel", "refused"]]),
    "retry": (True, [["retry", "x-1"], ["retry", "refused"]]),
    "finetune submit": (
        True,
        [["finetune", "submit", "file-1", "--model", "m", *more] for more in (["--no-wait"], ["--dry-run"])],
    ),
    "finetune list": (True, [["finetune", "list"], ["finetune", "list", "--json"]]),
    "finetune watch": (True, [["finetune", "watch", "x-1"]]),
    "finetune curve": (False, [["finetune", "curve", "x-1"]]),
    "finetune cancel": (True, [["finetune", "cancel", "x-1"]]),
    "finetune pause": (True, [["finetune", "pause", "x-1"]]),
    "finetune resume": (True, [["finetune", "resume", "x-1"]]),
    "finetune checkpoints": (True, [["finetune", "checkpoints", "x-1"]]),
    "finetune export": (True, [["finetune", "export", "ft:m", "--output", "exported"]]),
    "evals create": (False, [["evals", "create", "eval.json"]]),
    "evals list": (True, [["evals", "list"], ["evals", "list", "--json"]]),
    "evals run": (
        True,
        [
            ["evals", "run", "eval_1", "--model", "m", "--baseline", "x-1", "--fail-if-worse"],
            ["evals", "run", "--data", "corpus", "--model", "m", "--grader", "same=eq:{{ item.text }}"],
        ],
    ),
    "evals watch": (True, [["evals", "watch", "x-1"]]),
    "evals compare": (True, [["evals", "compare", "x-1", "x-2", "--slice-by", "item.language"]]),
    "migrate openai": (True, [["migrate", "openai", "saved.jsonl", *more] for more in ([], ["--json"], ["--apply"])]),
    "models list": (True, [["models", "list"], ["models", "list", "--json"], ["models", "list", "--mine"]]),
    "models add": (True, [["models", "add", f"{MODEL}5", "--url", "http://h"]]),
    "models probe": (False, [["models", "probe", "ft:a:b::c"]]),
    "models pull": (True, [["models", "pull", MODEL]]),
    "models remove": (True, [["models", "remove", MODEL]]),
    "prompts list": (True, [["prompts", "list"], ["prompts", "list", "--json"]]),
    "prompts show": (True, [["prompts", "show", "x"], ["prompts", "show", "x", "--version", "production"]]),
    "prompts create": (False, [["prompts", "create", "--instructions", "x"]]),
    "prompts version": (True, [["prompts", "version", "x", "--instructions", "x"]]),
    "prompts update": (True, [["prompts", "update", "x", "--label", "production=1"]]),
    "prompts archive": (False, [["prompts", "archive", "x"]]),
    "prompts diff": (True, [["prompts", "diff", "x", "1", "2"]]),
    "feedback add": (True, [["feedback", "add", "resp_x", "up"], ["feedback", "add", STORED, "up"]]),
    "feedback list": (True, [["feedback", "list"], ["feedback", "list", "--json"]]),
    "feedback delete": (False, [["feedback", "delete", "fb_x"]]),
    "feedback summary": (True, [["feedback", "summary"], ["feedback", "summary", "--json"]]),
    "models versions": (True, [["models", "versions"], ["models", "versions", "a:b", "--json"]]),
    "models families": (True, [["models", "families"], ["models", "families", STORED]]),
    "models show": (True, [["models", "show", STORED], ["models", "show", "x", "--json"]]),
    "models stage": (True, [["models", "stage", "x", STORED]]),
    "models update": (True, [["models", "update", "x", "--license", STORED]]),
    "models lineage": (True, [["models", "lineage", "x"]]),
    "models verify": (False, [["models", "verify", "."]]),
    "models import": (False, [["models", "import", "."]]),
    "models reproduce": (True, [["models", "reproduce", "x"], ["models", "reproduce", "x", "--job", "x-1"]]),
    "models compare": (True, [["models", "compare", "x", "y", "--all"]]),
    "aliases list": (True, [["aliases", "list"], ["aliases", "list", "--json"]]),
    "aliases set": (True, [["aliases", "set", "a", "m"], ["aliases", "set", HOSTILE, "m"]]),
    "aliases show": (True, [["aliases", "show", "ft:a/b"], ["aliases", "show", "a", "--at", "2026-03-31"]]),
    "aliases moves": (True, [["aliases", "moves", "a"], ["aliases", "moves", STORED, "--json"]]),
    "aliases revert": (True, [["aliases", "revert", "a"], ["aliases", "revert", HOSTILE, "--reason", STORED]]),
    "aliases delete": (True, [["aliases", "delete", STORED]]),
    "pipelines run": (False, [["pipelines", "run", "steps.yaml"]]),
    "pipelines list": (True, [["pipelines", "list"], ["pipelines", "list", "--json"]]),
    "pipelines show": (True, [["pipelines", "show", "x"]]),
    "pipelines graph": (True, [["pipelines", "graph", "x"]]),
    "pipelines resume": (False, [["pipelines", "resume", "x"]]),
    "pipelines cancel": (True, [["pipelines", "cancel", "x"]]),
    "datasets create": (False, [["datasets", "create", "x", "--split", "train=0.8,test=0.2"]]),
    "datasets add": (True, [["datasets", "add", "x", "file-1"]]),
    "datasets list": (True, [["datasets", "list"], ["datasets", "list", "--json"]]),
    "datasets show": (True, [["datasets", "show", HOSTILE]]),
    "datasets versions": (True, [["datasets", "versions", "x"]]),
    "datasets rows": (True, [["datasets", "rows", "x"]]),
    "datasets delete": (False, [["datasets", "delete", "x", "--version", "2"]]),
    "promote alias": (False, [["promote", "alias", "x", "m", "--force", "--reason", "r"]]),
    "promote stage": (False, [["promote", "stage", "m", "--force", "--reason", "r"]]),
    "promote prompt": (False, [["promote", "prompt", "x", "2", "--force", "--reason", "r"]]),
    "promote index": (False, [["promote", "index", "x", "y", "--force", "--reason", "r"]]),
    "promote list": (True, [["promote", "list"], ["promote", "list", "--json"]]),
    "promote show": (True, [["promote", "show", "x"]]),
    "promote cancel": (True, [["promote", "cancel", "x"]]),
    "drift create": (False, [["drift", "create", "x", "responses"]]),
    "drift baseline": (False, [["drift", "baseline", "x", "responses"]]),
    "drift check": (True, [["drift", "check", "x"], ["drift", "check", "x", "--fail-if-drift"]]),
    "drift list": (True, [["drift", "list"], ["drift", "list", "--json"]]),
    "drift checks": (True, [["drift", "checks", "x"]]),
    "drift show": (True, [["drift", "show", "x"]]),
    "drift delete": (False, [["drift", "delete", "x"]]),
    "online-evals create": (
        False,
        [
            ["online-evals", "create", "x", "eval_1"],
            ["online-evals", "create", "x", "eval_1", "--source", "shadow", "--alias", "a"],
        ],
    ),
    "online-evals list": (True, [["online-evals", "list"]]),
    "online-evals show": (True, [["online-evals", "show", "x"]]),
    "online-evals rounds": (True, [["online-evals", "rounds", "x"]]),
    "online-evals pause": (True, [["online-evals", "pause", "x"]]),
    "online-evals resume": (True, [["online-evals", "resume", "x"]]),
    "online-evals delete": (False, [["online-evals", "delete", "x"]]),
    "schedules create": (False, [["schedules", "create", "steps.yaml", "--every", "0 3 * * *"]]),
    "schedules list": (True, [["schedules", "list"]]),
    "schedules show": (True, [["schedules", "show", "x"]]),
    "schedules pause": (True, [["schedules", "pause", "x"]]),
    "schedules resume": (True, [["schedules", "resume", "x"]]),
    "schedules remove": (True, [["schedules", "remove", "refused"]]),
    "sources list": (True, [["sources", "list", "x"]]),
    "sources add": (True, [["sources", "add", "x", "/folder"]]),
    "sources sync": (True, [["sources", "sync", "x", "x"]]),
    "sources remove": (False, [["sources", "remove", "x", "x"]]),
    "indexes list": (True, [["indexes", "list", "x"]]),
    "indexes create": (True, [["indexes", "create", "x", "--wait"]]),
    "indexes compare": (True, [["indexes", "compare", "x", "y", "query"]]),
    "indexes switch": (True, [["indexes", "switch", "x", "y"]]),
    "indexes back": (False, [["indexes", "back", "x"]]),
    "indexes sync": (True, [["indexes", "sync", "x", "y"]]),
    "indexes remove": (False, [["indexes", "remove", "x", "y"]]),
    "workers": (True, [["workers"], ["workers", "--json"]]),
    "pause": (True, [["pause", "worker", "nobody"], ["pause", "worker", STORED]]),
    "resume": (True, [["resume", "queue", "nothing"], ["resume", "model", f"{MODEL}4"]]),
    "drain": (True, [["drain", "worker", STORED, "--timeout", "0"]]),
    "keys create": (False, [["keys", "create", "--project", STORED]]),
    "keys list": (True, [["keys", "list"], ["keys", "list", "--json"], ["keys", "list", "--mine"]]),
    "keys revoke": (True, [["keys", "revoke", STORED]]),
    "projects list": (True, [["projects", "list"], ["projects", "list", "--json"]]),
    "projects create": (False, [["projects", "create", "x"]]),
    "projects show": (True, [["projects", "show", STORED]]),
    "projects update": (False, [["projects", "update", STORED, "--weight", "2"]]),
    "projects archive": (False, [["projects", "archive", STORED]]),
    "users list": (False, [["users", "list"], ["users", "list", "--json"]]),
    "users invite": (False, [["users", "invite", "a@example.com"]]),
    "users remove": (True, [["users", "remove", STORED]]),
    "users roles": (True, [["users", "roles", STORED]]),
    "limits show": (False, [["limits", "show", STORED]]),
    "limits set": (False, [["limits", "set", STORED, "eval_runs=9"]]),
    "budgets show": (False, [["budgets", "show"]]),
    "budgets set": (False, [["budgets", "set", STORED, "--cents", "9"]]),
    "budgets alert": (False, [["budgets", "alert", STORED, "--cents", "9"]]),
    "usage bytes": (True, [["usage", "bytes"], ["usage", "bytes", "--json"]]),
    "usage report": (False, [["usage", "report"], ["usage", "report", "--json"]]),
    "usage verify": (False, [["usage", "verify"]]),
    "prices list": (False, [["prices", "list"]]),
    "prices set": (False, [["prices", "set", "m", "--input", "1", "--output", "1"]]),
    "webhooks listen": (
        True,
        [["webhooks", "listen", "--count", "1"], ["webhooks", "listen", "--after", "0", "--count", "1"]],
    ),
    "audit list": (True, [["audit", "list"], ["audit", "list", "--json"]]),
    "audit verify": (False, [["audit", "verify"]]),
    "audit sign": (False, [["audit", "sign"]]),
    "doctor": (True, [["doctor"], ["doctor", "--json"]]),
}
#: These start processes, and are tested on their own.
OTHERS = {"up", "status", "console", "logs", "down", "demo", "vectors verify"}


def test_every_command_is_in_the_table() -> None:
    assert VERBS.keys() | OTHERS == COMMANDS.keys()


@pytest.mark.parametrize("verb", VERBS)
def test_no_command_lets_an_escape_through_or_ends_in_a_traceback(call: Call, verb: str) -> None:
    shows, calls = VERBS[verb]
    for words in calls:
        out, err = call(*words)

        told = out + err
        assert not [line for line in told.split("\n") if terminal.visible(line) != line], words
        assert "\nforged" not in told, words
        assert "[/boom]" in told or not shows, told


@pytest.mark.parametrize("words", [["watch", "x-1"], ["doctor"]])
def test_a_terminal_gets_colours_and_no_sequence_of_others(
    call: Call, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich takes it for a terminal

    out, err = call(*words)

    assert "\x1b[" in out + err
    assert OSC not in out + err
    assert "[/boom]" in out + err


def test_piped_results_keep_bytes_and_terminal_output_is_escaped(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    piped, _ = call("results", "x-1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown, _ = call("results", "x-1")
    joined, _ = call("results", "x-1", "--join")
    table, _ = call("results", "x-1", "--format", "csv")

    assert piped.encode() == CONTENTS["output"] + CONTENTS["error"]
    assert "\x9b" not in shown + joined + table
    assert OSC not in table
    assert r"\x1b]0;owned\x07" in table
    assert "\n'=1+1," in table
    assert "'@SUM(A1)" in table


@pytest.mark.parametrize(
    ("value", "written"),
    [
        *((start + "1+1", f"'{start}1+1") for start in ("=", "+", "-", "@", "\t", "\r")),
        ("-1.5", "-1.5"), ("+3e5", "+3e5"), ("-.5", "-.5"), (-1.5, "-1.5"), (7, "7"),
        ("1+1", "1+1"), ("a=b", "a=b"), ("", ""), (None, ""),
        ("-", "'-"), ("-1-1", "'-1-1"), ("-\u0663", "'-\u0663"), ("-1\n=2", "'-1\n=2"),
    ],
)  # fmt: skip
def test_spreadsheet_formula_is_quoted_and_number_stays_unquoted(
    value: object, written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.batches.joining import COLUMNS

    write_csv([dict.fromkeys(COLUMNS, None) | {"custom_id": "a", "answer": value}], None)

    [row] = csv.DictReader(io.StringIO(capsys.readouterr().out, newline=""))
    assert row["answer"] == written


def test_escapes_in_vector_verification_output_are_removed(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from subprocess import CompletedProcess

    said = CompletedProcess([], 3, f"{OSC}[/boom]: there is no such store\n", f"{OSC}[/boom] is away\n")
    monkeypatch.setattr("jobs.programs.subprocess.run", lambda *_args, **_options: said)

    out, err = call("vectors", "verify")

    assert OSC not in out + err
    assert "[/boom]: there is no such store\n" in out
    assert "[/boom] is away\n" in err

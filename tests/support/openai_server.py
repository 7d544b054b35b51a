"""A server with OpenAI's shapes and the data of a small support team, for tests of what reads from OpenAI.

    with OpenAIServer() as server:
        server.url, server.key         what a client needs
        server.requests                "GET /v1/files", in the order in which they came
        server.answered                how many answers of models were charged for

Files of the purpose `assistants` cannot be downloaded, some objects are gone, and each list has pages of two.
"""

import email
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
BASE: Final = "gpt-4o-mini-2024-07-18"
TUNED: Final = "ft:gpt-4o-mini-2024-07-18:acme:support:9xYz"
MANUAL: Final = "The refund window is 30 days. Shipping takes three days."
_PAGE: Final = 2


def rows(first: int, count: int) -> list[Object]:
    """Return rows of a training file: a question of a customer, and the answer of the team."""
    return [
        {
            "messages": [
                {"role": "system", "content": "You answer customers of Acme."},
                {"role": "user", "content": f"Where is order {number}?"},
                {"role": "assistant", "content": f"Order {number} is on its way."},
            ]
        }
        for number in range(first, first + count)
    ]


def jsonl(values: list[Object]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def _file(name: str, purpose: str, filename: str) -> Object:
    return {"id": name, "object": "file", "bytes": 1, "created_at": 1_718_000_000, "filename": filename,
            "purpose": purpose, "status": "processed"}  # fmt: skip


def _tuning(name: str, status: str = "succeeded", method: str = "supervised") -> Object:
    chosen = {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8}
    return {
        "id": name, "object": "fine_tuning.job", "created_at": 1_719_000_000, "finished_at": 1_719_003_600,
        "model": BASE, "fine_tuned_model": TUNED if status == "succeeded" else None, "organization_id": "org-acme",
        "status": status, "training_file": "file-Train1", "validation_file": "file-Valid1", "seed": 7,
        "hyperparameters": chosen, "method": {"type": method, method: {"hyperparameters": chosen}},
        "trained_tokens": 4242, "result_files": ["file-Steps1"], "metadata": {"team": "support"},
        "user_provided_suffix": "support", "error": {}, "integrations": [],
    }  # fmt: skip


def completion(name: str, model: str, text: str, created: int = 1_720_000_000, **fields: Any) -> Object:
    """Return a chat completion that answers `text`."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": name, "object": "chat.completion", "created": created, "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 8, "total_tokens": 28}, **fields,
    }  # fmt: skip


def _eval() -> Object:
    item = {"type": "object", "properties": {"question": {"type": "string"}}}
    schema = {"type": "object", "properties": {"item": item, "sample": {"type": "object"}}, "required": ["item"]}
    check = {"id": "polite-1", "name": "polite", "type": "string_check", "operation": "like",
             "input": "{{sample.output_text}}", "reference": "order"}  # fmt: skip
    return {"id": "eval_Far1", "object": "eval", "name": "support", "created_at": 1_719_500_000, "metadata": {},
            "data_source_config": {"type": "custom", "schema": schema}, "testing_criteria": [check]}  # fmt: skip


def _run(name: str, status: str = "completed") -> Object:
    return {"id": name, "object": "eval.run", "eval_id": "eval_Far1", "name": "nightly", "model": BASE,
            "status": status, "created_at": 1_719_600_000, "metadata": {},
            "data_source": {"type": "jsonl"}}  # fmt: skip


def _item(number: int) -> Object:
    sample = {"input": [], "output": [{"role": "assistant", "content": f"order {number}"}], "model": BASE,
              "finish_reason": "stop", "usage": None, "error": None, "seed": 1, "temperature": 1, "top_p": 1,
              "max_completion_tokens": 100}  # fmt: skip
    return {
        "id": f"outputitem_{number}", "object": "eval.run.output_item", "created_at": 1_719_600_001,
        "run_id": "evalrun_Far1", "eval_id": "eval_Far1", "status": "pass", "datasource_item_id": number,
        "datasource_item": {"question": f"Where is order {number}?"}, "sample": sample,
        "results": [{"name": "polite-1", "passed": True, "score": 1.0, "sample": None}],
    }  # fmt: skip


def _lists() -> dict[str, list[Object]]:
    """Return the entries of each list, by its path."""
    attached = {"id": "file-Manual", "object": "vector_store.file", "vector_store_id": "vs_Far1",
                "status": "completed", "created_at": 1_718_000_100, "usage_bytes": 60, "last_error": None,
                "attributes": {"language": "en"}, "chunking_strategy": {"type": "other"}}  # fmt: skip
    store = {"id": "vs_Far1", "object": "vector_store", "name": "manuals", "status": "completed", "metadata": {},
             "created_at": 1_718_000_050, "usage_bytes": 60, "file_counts": {"total": 2}}  # fmt: skip
    request = {"temperature": 0.2, "tools": None, "metadata": {"team": "support"}, "request_id": "req_1"}
    return {
        "files": [
            _file("file-Train1", "fine-tune", "train.jsonl"), _file("file-Valid1", "fine-tune", "valid.jsonl"),
            _file("file-Steps1", "fine-tune-results", "steps.csv"), _file("file-Manual", "assistants", "manual.pdf"),
            _file("file-Secret", "assistants", "notes.docx"), _file("file-Gone01", "batch", "old.jsonl"),
        ],
        "vector_stores": [store, {**store, "id": "vs_Old1", "status": "expired"}],
        "vector_stores/vs_Far1/files": [attached, {**attached, "id": "file-Broken", "status": "failed"}],
        "fine_tuning/jobs": [
            _tuning("ftjob-Far1"), _tuning("ftjob-Failed", "failed"), _tuning("ftjob-Rft1", method="reinforcement"),
        ],
        "chat/completions": [
            completion(f"chatcmpl-Far{n}", BASE, f"Hi {n}", 1_720_000_000 + n, **request) for n in range(3)
        ],
        **{
            f"chat/completions/chatcmpl-Far{n}/messages": [
                {"id": f"chatcmpl-Far{n}-0", "role": "user", "content": f"Hello {n}", "content_parts": None}
            ]
            for n in range(3)
        },
        "evals": [_eval()],
        "evals/eval_Far1/runs": [_run("evalrun_Far1"), _run("evalrun_Far2", "failed")],
        "evals/eval_Far1/runs/evalrun_Far1/output_items": [_item(number) for number in range(3)],
        "batches": [],
        "models": [{"id": name, "object": "model", "created": 1, "owned_by": "acme"} for name in (BASE, TUNED)],
    }  # fmt: skip


@dataclass
class OpenAIServer:
    """The server, on a thread of its own. `has_batches` may be false, `throttled` counts answers 429 to come."""

    key: str = "sk-far-away"
    has_batches: bool = True
    throttled: int = 0
    looks: int = 1  # at a batch until it is complete
    lists: dict[str, list[Object]] = field(default_factory=_lists)
    requests: list[str] = field(default_factory=list)
    answered: int = 0
    on_request: Callable[[str], None] = lambda _request: None

    def __enter__(self) -> Self:
        self.contents = {"file-Train1": jsonl(rows(0, 6)), "file-Valid1": jsonl(rows(100, 4)),
                         "file-Steps1": b"step,train_loss\n1,0.7\n"}  # fmt: skip
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def posts(self) -> list[str]:
        return [request for request in self.requests if not request.startswith("GET ")]

    # ── what it answers: a status, and a body ──

    def get(self, path: str, query: dict[str, str]) -> tuple[int, Object | bytes]:
        if path.startswith("batches") and not self.has_batches:
            return _not_found(path)
        if path == "vector_stores/vs_Far1/files/file-Manual/content":
            return 200, {"object": "list", "data": [{"type": "text", "text": MANUAL}], "has_more": False}
        if path in self.lists:
            return 200, _page(self.lists[path], query)
        parent, _, name = path.rpartition("/")
        if name == "content":
            return self._content(parent.removeprefix("files/"))
        row = next((row for row in self.lists.get(parent, []) if row["id"] == name), None)
        if row is not None and parent == "batches":
            self._advance(row)
        return (200, row) if row is not None else _not_found(path)

    def post(self, path: str, body: Object) -> tuple[int, Object]:
        if path == "files":
            file = _file(f"file-New{len(self.contents)}", "batch", body["filename"])
            self.contents[file["id"]] = body["content"]
            self.lists["files"].append(file)
            return 200, file
        if path == "batches" and self.has_batches:
            batch = {"id": f"batch_{len(self.lists['batches'])}", "object": "batch", "status": "validating",
                     "looks": 0, "output_file_id": None, **body}  # fmt: skip
            self.lists["batches"].insert(0, batch)
            self.answered += len(self.contents[body["input_file_id"]].splitlines())
            return 200, batch
        if path == "chat/completions":
            self.answered += 1
            return 200, _answer(body)
        return _not_found(path)

    def _content(self, file_id: str) -> tuple[int, Object | bytes]:
        if file_id in self.contents:
            return 200, self.contents[file_id]
        file = next((file for file in self.lists["files"] if file["id"] == file_id), None)
        if file is not None and file["purpose"] == "assistants":
            return 400, _error("Not allowed to download files of purpose: assistants")
        return 404, _error(f"No such File object: {file_id}")

    def _advance(self, batch: Object) -> None:
        batch["looks"] += 1
        batch["status"] = "completed" if batch["looks"] > self.looks else "in_progress"
        if batch["status"] == "completed" and batch["output_file_id"] is None:
            batch["output_file_id"] = f"{batch['input_file_id']}-out"
            lines = map(json.loads, self.contents[batch["input_file_id"]].splitlines())
            answers = [
                {"id": "r", "custom_id": line["custom_id"], "error": None,
                 "response": {"status_code": 200, "request_id": "q", "body": _answer(line["body"])}}
                for line in lines
            ]  # fmt: skip
            self.contents[batch["output_file_id"]] = jsonl(answers[::-1])  # in any order


def _answer(body: Object) -> Object:
    question = str(body["messages"][-1]["content"])
    return completion(
        "chatcmpl-new", body["model"], question.replace("Where is order", "Order").replace("?", " is late.")
    )


def _page(entries: list[Object], query: dict[str, str]) -> Object:
    names = [entry["id"] for entry in entries]
    start = names.index(query["after"]) + 1 if "after" in query else 0
    data = entries[start : start + _PAGE]
    return {"object": "list", "data": data, "has_more": start + _PAGE < len(entries)}


def _error(message: str) -> Object:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def _not_found(path: str) -> tuple[int, Object]:
    return 404, _error(f"Invalid URL (/v1/{path})")


class _Handler(BaseHTTPRequestHandler):
    owner: OpenAIServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self._respond("GET", lambda path: self.owner.get(path, query))

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self._respond("POST", lambda path: self.owner.post(path, self._body(raw)))

    def _body(self, raw: bytes) -> Object:
        kind = self.headers["Content-Type"]
        if not kind.startswith("multipart/"):
            body: Object = json.loads(raw)
            return body
        form = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + raw)
        part = next(part for part in form.get_payload() if part.get_filename())  # type: ignore[union-attr]
        return {"filename": part.get_filename(), "content": part.get_payload(decode=True)}  # type: ignore[union-attr]

    def _respond(self, method: str, answer: Callable[[str], tuple[int, Object | bytes]]) -> None:
        path = urlsplit(self.path).path.removeprefix("/v1/")
        self.owner.requests.append(f"{method} /v1/{path}")
        self.owner.on_request(f"{method} /v1/{path}")
        headers: dict[str, str] = {}
        if self.headers["Authorization"] != f"Bearer {self.owner.key}":
            status, body = 401, _error("Incorrect API key provided")
        elif self.owner.throttled:
            self.owner.throttled -= 1
            status, body, headers = 429, _error("Rate limit reached"), {"Retry-After": "0.01"}
        else:
            status, body = answer(path)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Write nothing: requests are recorded."""

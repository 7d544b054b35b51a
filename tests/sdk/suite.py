"""Use a running server through an SDK, one line of JSON a check: plain Python for every version of the SDK.

    python suite.py '{"url": …}'         the facts are those of tests.sdk.deployment

A line is `{"check", "ok", "detail", "raw"}`. `raw` names what this version has no method for, and was done through the
SDK's `post`, `get` and `delete` instead. `node/suite.mjs` has the same checks.
"""

import asyncio
import base64
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import openai
from checking import (
    FACTS,
    MODEL,
    check,
    client,
    ended,
    facts_of,
    fresh,
    input_file,
    lines_of,
    raised,
    raw,
    run_checks,
    same,
    through,
    told,
    until,
)

CHAT = "/v1/chat/completions"
EVENT_TYPES = {"batch.completed", "batch.failed", "batch.expired", "batch.cancelled"}
DATA = b'{"custom_id":"1"}\n' * 50_000
PIECES = [bytes([65 + n]) * (20_000 + n) for n in range(12)]


def chat(custom_id: str, prompt: Any, url: str = CHAT, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    body = {"model": MODEL, "messages": messages, **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def submit(lines: list[dict[str, Any]], **more: Any) -> Any:
    return client.batches.create(input_file_id=input_file(lines), endpoint=CHAT, completion_window="24h", **more)


def batches_of(mark: str) -> list[str]:
    """Return the batches that carry this mark."""
    return [batch.id for batch in client.batches.list(limit=100) if (batch.metadata or {}).get("mark") == mark]


def usage_of(batch: Any) -> Any:
    if not isinstance(batch.usage, dict):
        return batch.usage
    raw("batch.usage")
    return SimpleNamespace(**batch.usage)


class RawWebhooks:
    """Do what `client.webhooks` does in newer versions, through the SDK's `post`, `get` and `delete`."""

    def __init__(self) -> None:
        self.event_types = SimpleNamespace(list=lambda: self._get("/webhook_event_types"))

    def create(self, **body: Any) -> Any:
        return self._post("/webhook_endpoints", body)

    def retrieve(self, endpoint: str) -> Any:
        return self._get(f"/webhook_endpoints/{endpoint}")

    def update(self, endpoint: str, **body: Any) -> Any:
        return self._post(f"/webhook_endpoints/{endpoint}", body)

    def list(self, limit: int) -> Iterator[Any]:
        after: dict[str, str] = {}
        while True:
            page = self._get("/webhook_endpoints", {"limit": limit, **after})
            yield from page.data
            if not page.has_more:
                return
            after = {"after": page.data[-1].id}

    def delete(self, endpoint: str) -> Any:
        return self._shown(client.delete(f"/webhook_endpoints/{endpoint}", cast_to=object))

    def rotate_secret(self, endpoint: str, **body: Any) -> Any:
        return self._post(f"/webhook_endpoints/{endpoint}/rotate_secret", body)

    def test(self, endpoint: str, **body: Any) -> Any:
        return self._post(f"/webhook_endpoints/{endpoint}/test", body)

    def _get(self, path: str, query: dict[str, Any] | None = None) -> Any:
        return self._shown(client.get(path, cast_to=object, options={"params": query or {}}))

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._shown(client.post(path, cast_to=object, body=body))

    @staticmethod
    def _shown(answer: object) -> Any:
        return json.loads(json.dumps(answer), object_hook=lambda fields: SimpleNamespace(**fields))


def webhooks() -> Any:
    if hasattr(client.webhooks, "create"):
        return client.webhooks
    raw("webhooks.create")
    return RawWebhooks()


def endpoint_at(name: str, *event_types: str) -> Any:
    return webhooks().create(name=name, url=f"{FACTS['receiver']}/{name}", event_types=list(event_types))


def delivery(name: str) -> tuple[str, dict[str, str]]:
    """Return the body and the headers of the first request that came."""
    first = until(lambda: told(f"inbox/{name}"), "a delivery")[0]
    return first["body"], first["headers"]


@check("a file is created, retrieved and read")
def _() -> None:
    file = client.files.create(
        file=("data.jsonl", DATA), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )

    same((file.object, file.filename, file.bytes, file.purpose), ("file", "data.jsonl", len(DATA), "user_data"))
    same(file.expires_at, file.created_at + 3600)
    same(client.files.retrieve(file.id), file)
    same(client.files.wait_for_processing(file.id).status, "processed")
    same(client.files.content(file.id).read() == DATA, True)


@check("a file's content is streamed")
def _() -> None:
    file = client.files.create(file=("data.jsonl", DATA), purpose="user_data")

    with client.files.with_streaming_response.content(file.id) as answer:
        same(int(answer.headers["content-length"]), len(DATA))
        pieces = list(answer.iter_bytes(100_000))

    assert len(pieces) > 1, "it came in one piece"
    same(b"".join(pieces) == DATA, True)


@check("files are listed page by page")
def _() -> None:
    made = [client.files.create(file=("a", b"x"), purpose="evals").id for _ in range(5)]

    pages = [[file.id for file in page.data] for page in client.files.list(purpose="evals", limit=2).iter_pages()]
    same(pages, [[made[4], made[3]], [made[2], made[1]], [made[0]]])
    same([file.id for file in client.files.list(purpose="evals", limit=2, order="asc")], made)
    same([file.id for file in client.files.list(purpose="evals", after=made[3])], made[2::-1])


@check("a deleted file is gone")
def _() -> None:
    file = client.files.create(file=("a", b"x"), purpose="vision")

    same([one.id for one in client.files.list(purpose="vision")], [file.id])
    same(client.files.delete(file.id).deleted, True)
    same([one.id for one in client.files.list(purpose="vision")], [])
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        raised(openai.NotFoundError, call, file.id)


@check("parts sent in any order are put together in the order that is listed")
def _() -> None:
    size = sum(map(len, PIECES))
    upload = client.uploads.create(bytes=size, filename="a.txt", mime_type="text/plain", purpose="user_data")
    same((upload.object, upload.status, upload.bytes), ("upload", "pending", size))
    sent, listed = (random.Random(seed).sample(range(len(PIECES)), len(PIECES)) for seed in (1, 2))
    parts = {n: client.uploads.parts.create(upload.id, data=io.BytesIO(PIECES[n])) for n in sent}
    same({(part.object, part.upload_id) for part in parts.values()}, {("upload.part", upload.id)})

    some = raised(openai.BadRequestError, client.uploads.complete, upload.id, part_ids=[parts[0].id])
    same((some.status_code, some.type), (400, "invalid_request_error"))
    done = client.uploads.complete(upload.id, part_ids=[parts[n].id for n in listed])

    same((done.status, done.file.filename, done.file.bytes), ("completed", "a.txt", size))
    same(client.files.content(done.file.id).read() == b"".join(PIECES[n] for n in listed), True)


@check("a file is uploaded in chunks")
def _() -> None:
    done = client.uploads.upload_file_chunked(
        file=DATA,
        filename="large.jsonl",
        bytes=len(DATA),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=100_000,
        md5=hashlib.md5(DATA).hexdigest(),
    )

    same((done.status, done.file.filename, done.file.purpose), ("completed", "large.jsonl", "batch"))
    same(client.files.content(done.file.id).read() == DATA, True)


@check("a cancelled upload takes no more parts")
def _() -> None:
    upload = client.uploads.create(bytes=1, filename="a", mime_type="text/plain", purpose="batch")

    same(client.uploads.cancel(upload.id).status, "cancelled")
    raised(openai.ConflictError, client.uploads.parts.create, upload.id, data=b"x")


@check("a batch runs to its output")
def _() -> None:
    prompts = {f"c{n}": f"question {n}" for n in range(40)}
    made = submit(
        [chat(name, prompt) for name, prompt in prompts.items()],
        metadata={"mark": "whole"},
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    same((made.object, made.status, made.endpoint, made.metadata), ("batch", "validating", CHAT, {"mark": "whole"}))

    batch = ended(made)
    counts, usage = batch.request_counts, usage_of(batch)
    same((batch.status, batch.errors, batch.error_file_id), ("completed", None, None))
    same((counts.total, counts.completed, counts.failed), (40, 40, 0))
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at < batch.expires_at

    output = lines_of(batch.output_file_id)
    bodies = {name: line["response"]["body"] for name, line in output.items()}
    answers = {name: body["choices"][0]["message"]["content"] for name, body in bodies.items()}
    same(answers, {name: f"echo {hashlib.sha256(text.encode()).hexdigest()[:16]}" for name, text in prompts.items()})
    same({(line["response"]["status_code"], line["error"]) for line in output.values()}, {(200, None)})
    same(usage.total_tokens, sum(body["usage"]["total_tokens"] for body in bodies.values()))
    same(usage.input_tokens + usage.output_tokens, usage.total_tokens)
    file = client.files.retrieve(batch.output_file_id)
    same((file.purpose, file.expires_at), ("batch_output", file.created_at + 7200))


@check("lines that fail are in the error file")
def _() -> None:
    lines = [chat("good", "fine"), chat("bad", "!500")]
    batch = ended(submit(lines))

    same((batch.status, batch.request_counts.completed, batch.request_counts.failed), ("completed", 1, 1))
    same(set(lines_of(batch.output_file_id)), {"good"})
    errors = lines_of(batch.error_file_id)
    same(set(errors), {"bad"})
    same((errors["bad"]["response"]["status_code"], errors["bad"]["error"]), (500, None))


@check("a batch of a bad file says which line")
def _() -> None:
    batch = ended(submit([chat("a", "x"), chat("b", "y", url="/v1/embeddings")]))

    same((batch.status, batch.output_file_id), ("failed", None))
    same([(one.code, one.line, one.param) for one in batch.errors.data], [("invalid_url", 2, "url")])


@check("more than 250 batches are listed")
def _() -> None:
    with openai.OpenAI(api_key=FACTS["past_key"], base_url=f"{FACTS['url']}/v1") as reader:
        wanted = FACTS["past"][::-1]
        assert len(wanted) > 250

        pages = [[batch.id for batch in page.data] for page in reader.batches.list(limit=100).iter_pages()]
        same([len(page) for page in pages], [100, 100, len(wanted) - 200])
        same([name for page in pages for name in page], wanted)
        same([batch.id for batch in reader.batches.list()], wanted)
        same([batch.id for batch in reader.batches.list(after=wanted[254])], wanted[255:])
        same(set(FACTS["past"]) & {batch.id for batch in client.batches.list(limit=100)}, set())


@check("a cancelled batch keeps what is finished")
def _() -> None:
    names = {f"c{n}" for n in range(80)}  # ten shards of two seconds, two at once
    made = submit([chat(name, f"!slow {name}" if int(name[1:]) else "quick") for name in sorted(names)])
    until(lambda: client.batches.retrieve(made.id).request_counts.completed > 0, "the first result")

    same(client.batches.cancel(made.id).status, "cancelling")
    batch = ended(made)

    same(batch.status, "cancelled")
    assert batch.cancelling_at <= batch.cancelled_at
    output, errors = lines_of(batch.output_file_id), lines_of(batch.error_file_id)
    same((set(output) | set(errors), set(output) & set(errors)), (names, set()))
    same({line["error"]["code"] for line in errors.values()}, {"batch_cancelled"})
    same(client.batches.cancel(made.id).status, "cancelled")


@check("our own fields travel with the SDK's")
def _() -> None:
    name, secret = fresh("own"), "whsec_" + base64.b64encode(bytes(32)).decode()
    url = f"{FACTS['receiver']}/{name}"
    batch = ended(submit([chat("a", "x")], extra_body={"priority": 5, "webhook": {"url": url, "secret": secret}}))

    job: Any = client.get(f"/jobs/{batch.id}", cast_to=object)
    same((job["id"], job["priority"], job["webhook"]), (batch.id, 5, {"url": url}))
    same(client.webhooks.unwrap(*delivery(name), secret=secret).data.id, batch.id)


@check("webhook endpoints are managed")
def _() -> None:
    hooks, name = webhooks(), fresh("managed")
    made = [endpoint_at(f"{name}-{n}", "batch.completed") for n in range(3)]
    first = made[0]

    same((first.object, first.name, first.event_types), ("webhook_endpoint", f"{name}-0", ["batch.completed"]))
    assert first.signing_secret.startswith("whsec_"), first.signing_secret
    shown = hooks.retrieve(first.id)
    same((shown.id, shown.url), (first.id, f"{FACTS['receiver']}/{name}-0"))
    same(getattr(shown, "signing_secret", None), None)
    changed = hooks.update(first.id, name="other", event_types=["batch.failed", "batch.expired"])
    same((changed.name, changed.event_types), ("other", ["batch.failed", "batch.expired"]))
    same(hooks.retrieve(first.id).name, "other")
    ids = {one.id for one in made}
    same([one.id for one in hooks.list(limit=1) if one.id in ids], [one.id for one in reversed(made)])
    assert set(hooks.event_types.list().data) >= EVENT_TYPES
    for one in made:
        gone = hooks.delete(one.id)
        same((gone.id, gone.deleted), (one.id, True))
        raised(openai.NotFoundError, hooks.retrieve, one.id)


@check("a test event is sent at once")
def _() -> None:
    name = fresh("tested")
    made = endpoint_at(name, "batch.failed")

    result = webhooks().test(made.id, event_type="batch.failed")

    same((result.webhook_endpoint_id, result.status_code, result.success), (made.id, 200, True))
    event = client.webhooks.unwrap(*delivery(name), secret=made.signing_secret)
    same((event.type, event.object), ("batch.failed", "event"))
    webhooks().delete(made.id)


@check("a webhook's secret is rotated")
def _() -> None:
    name = fresh("rotated")
    made = endpoint_at(name, "batch.failed")

    kept = webhooks().rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    webhooks().test(made.id, event_type="batch.failed")
    only = webhooks().rotate_secret(made.id, keep_old_secret_active_for_24_hours=False)
    webhooks().test(made.id, event_type="batch.failed")

    both, last = [(one["body"], one["headers"]) for one in told(f"inbox/{name}")]
    same(len({made.signing_secret, kept.signing_secret, only.signing_secret}), 3)
    for secret in (made.signing_secret, kept.signing_secret):
        same(client.webhooks.unwrap(*both, secret=secret).type, "batch.failed")
        raised(openai.InvalidWebhookSignatureError, client.webhooks.unwrap, *last, secret=secret)
    same(client.webhooks.unwrap(*last, secret=only.signing_secret).type, "batch.failed")
    webhooks().delete(made.id)


@check("the event of a batch is delivered and unwrapped")
def _() -> None:
    name = fresh("told")
    made = endpoint_at(name, "batch.completed")
    batch = ended(submit([chat("a", "x")]))

    body, headers = delivery(name)
    event = client.webhooks.unwrap(body, headers, secret=made.signing_secret)

    webhooks().delete(made.id)
    same((event.object, event.type), ("event", "batch.completed"))
    same(event.data.id, batch.id)
    assert event.id.startswith("evt_"), event.id
    assert client.webhooks.verify_signature(body, headers, secret=made.signing_secret) is None


@check("a forged event is refused")
def _() -> None:
    name = fresh("forged")
    made, other = endpoint_at(name, "batch.failed"), endpoint_at(f"{name}-other", "batch.failed")
    webhooks().test(made.id, event_type="batch.failed")
    body, headers = delivery(name)
    old = {**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) - 301)}

    same(client.webhooks.unwrap(body, headers, secret=made.signing_secret).type, "batch.failed")
    for forged in (
        (body.replace("batch.failed", "batch.completed"), headers, made.signing_secret),
        (body, {**headers, "webhook-id": "wh_other"}, made.signing_secret),
        (body, headers, other.signing_secret),
        (body, old, made.signing_secret),
    ):
        raised(openai.InvalidWebhookSignatureError, client.webhooks.unwrap, *forged[:2], secret=forged[2])
    for one in (made, other):
        webhooks().delete(one.id)


@check("models are listed and retrieved")
def _() -> None:
    listed = {model.id: model for model in client.models.list()}

    assert {MODEL, FACTS["alias"]} <= set(listed), sorted(listed)
    for name in (MODEL, FACTS["alias"]):
        same(client.models.retrieve(name), listed[name])
        same(listed[name].object, "model")
    error = raised(openai.NotFoundError, client.models.retrieve, "acme/none")
    same(facts_of(error), (404, "invalid_request_error", "model_not_found", "model"))


@check("an interactive client is answered, whole and as a stream")
def _() -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "wait for it"}]}
    whole = client.chat.completions.create(**asked)
    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))

    text = f"echo {hashlib.sha256(b'wait for it').hexdigest()[:16]}"
    same((whole.choices[0].message.content, whole.choices[0].finish_reason), (text, "stop"))
    same("".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices), text)
    same(pieces[-1].usage, whole.usage)
    error = raised(openai.NotFoundError, client.chat.completions.create, **{**asked, "model": "acme/none"})
    same(facts_of(error), (404, "invalid_request_error", "model_not_found", "model"))


@check("a chat is stored, whole and as a stream")
def _() -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "wait for it"}], "store": True}
    whole = client.chat.completions.create(**asked, metadata={"mark": "stored"})
    pieces = list(client.chat.completions.create(**asked, metadata={"mark": "stored"}, stream=True))

    made = [whole.id, pieces[0].id]
    listed = list(client.chat.completions.list(metadata={"mark": "stored"}, limit=1))
    same([one.id for one in listed], made)
    same({one.choices[0].message.content for one in listed}, {whole.choices[0].message.content})
    same([one.id for one in client.chat.completions.list(model=MODEL, order="desc")], made[::-1])
    same([one.content for one in client.chat.completions.messages.list(whole.id, limit=1)], ["wait for it"])
    same(client.chat.completions.update(whole.id, metadata={"mark": "other"}).metadata, {"mark": "other"})
    same(client.chat.completions.retrieve(whole.id).metadata, {"mark": "other"})
    same([client.chat.completions.delete(one).deleted for one in made], [True, True])
    error = raised(openai.NotFoundError, client.chat.completions.retrieve, whole.id)
    same(facts_of(error), (404, "invalid_request_error", "not_found", "completion_id"))


@check("a response is answered, whole and as a stream, and kept")
def _() -> None:
    first = client.responses.create(model=MODEL, input="wait for it", metadata={"mark": "first"})
    events = list(client.responses.create(model=MODEL, input="wait for it", stream=True))

    text = f"echo {hashlib.sha256(b'wait for it').hexdigest()[:16]}"
    same((first.status, first.output_text, first.metadata), ("completed", text, {"mark": "first"}))
    same("".join(event.delta for event in events if event.type == "response.output_text.delta"), text)
    same((events[0].type, events[-1].type), ("response.created", "response.completed"))
    for made in (first, events[-1].response):
        same(client.responses.retrieve(made.id).output_text, text)
    second = client.responses.create(model=MODEL, input="and on", previous_response_id=first.id)
    same(second.previous_response_id, first.id)
    if hasattr(client.responses, "connect"):
        with client.responses.connect() as connection:
            begun = ask_on(connection, input="wait for it", store=False)
            same(begun.output_text, text)
            same(ask_on(connection, input="and on", previous_response_id=begun.id).output_text, second.output_text)
    items = list(client.responses.input_items.list(second.id, limit=1, order="asc"))
    same([item.content[0].text for item in items], ["wait for it", text, "and on"])
    client.responses.delete(first.id)
    error = raised(openai.NotFoundError, client.responses.retrieve, first.id)
    same(facts_of(error)[0], 404)


def ask_on(connection: Any, **asked: Any) -> Any:
    """Return the response to a request over WebSocket."""
    connection.response.create(model=MODEL, **asked)
    return next(event.response for event in connection if event.type == "response.completed")


def counted(**asked: Any) -> Any:
    if hasattr(client.responses, "input_tokens"):
        return client.responses.input_tokens.count(**asked).to_dict()
    raw("responses.input_tokens")
    return client.post("/responses/input_tokens", cast_to=object, body=asked)


@check("an input is counted before it is asked for")
def _() -> None:
    first = client.responses.create(model=MODEL, input="one two")

    asked: dict[str, Any] = {"model": MODEL, "input": "and on", "previous_response_id": first.id}
    if not FACTS.get("counts", True):  # a model behind a URL: there would be but an estimate
        error = raised(openai.BadRequestError, counted, **asked)
        same(facts_of(error)[0], 400)
        return
    words = f"one two {first.output_text} and on".split()
    same(counted(**asked), {"object": "response.input_tokens", "input_tokens": len(words)})


def compacted(**asked: Any) -> Any:
    if hasattr(client.responses, "compact"):
        return client.responses.compact(**asked).to_dict(warnings=False)
    raw("responses.compact")
    return client.post("/responses/compact", cast_to=object, body=asked)


@check("a conversation is compacted, and gone on from")
def _() -> None:
    first = client.responses.create(model=MODEL, input="one two")

    made = compacted(model=MODEL, input="and on", previous_response_id=first.id)
    same(made["object"], "response.compaction")
    same([item["type"] for item in made["output"]], ["message", "message", "compaction"])
    same([item["content"][0]["text"] for item in made["output"][:2]], ["one two", "and on"])
    said = client.responses.create(model=MODEL, input=[*made["output"], {"role": "user", "content": "more"}])
    same(said.status, "completed")
    items = list(client.responses.input_items.list(said.id, order="asc"))
    same([item.type for item in items], ["message", "message", "compaction", "message"])


@check("a conversation keeps what was said")
def _() -> None:
    made = client.conversations.create(
        items=[{"type": "message", "role": "user", "content": "I say"}], metadata={"mark": "talk"}
    )
    said = client.responses.create(model=MODEL, input="and more", conversation=made.id)

    same((made.object, made.metadata), ("conversation", {"mark": "talk"}))
    items = list(client.conversations.items.list(made.id, order="asc", limit=2))
    same([item.content[0].text for item in items], ["I say", "and more", said.output_text])
    same(said.output_text, f"echo {hashlib.sha256(chr(10).join(['I say', 'and more']).encode()).hexdigest()[:16]}")
    same(client.conversations.items.delete(items[0].id, conversation_id=made.id).id, made.id)
    same(client.conversations.delete(made.id).deleted, True)
    same(facts_of(raised(openai.NotFoundError, client.conversations.retrieve, made.id))[0], 404)


@check("a response in the background is polled, and cancelled")
def _() -> None:
    made = client.responses.create(model=MODEL, input="take your time", background=True)

    def look() -> Any:
        now = client.responses.retrieve(made.id)
        return None if now.status in {"queued", "in_progress"} else now

    made = until(look, f"the end of {made.id}")
    same((made.status, made.output_text), ("completed", f"echo {hashlib.sha256(b'take your time').hexdigest()[:16]}"))
    same(client.responses.cancel(made.id).status, "completed")
    error = raised(openai.BadRequestError, client.responses.cancel, client.responses.create(model=MODEL, input="x").id)
    same(facts_of(error)[0], 400)


@check("embeddings are answered at once")
def _() -> None:
    made = client.embeddings.create(model=FACTS["embed_model"], input=["one", "two"])  # base64 on the wire
    plain = client.embeddings.create(model=FACTS["embed_model"], input=["one", "two"], encoding_format="float")

    same([one.index for one in made.data], [0, 1])
    for one, other in zip(made.data, plain.data):  # noqa: B905 (they are two)
        assert len(one.embedding) > 4
        assert all(abs(a - b) < 1e-6 for a, b in zip(one.embedding, other.embedding))  # noqa: B905
    same(made.usage.prompt_tokens, made.usage.total_tokens)


@check("400 is a BadRequestError")
def _() -> None:
    error = raised(
        openai.BadRequestError,
        client.batches.create,
        input_file_id="f",
        endpoint="/v1/nothing",
        completion_window="24h",
    )

    same(facts_of(error), (400, "invalid_request_error", "invalid_value", "endpoint"))
    assert CHAT in error.message, error.message
    nothing = raised(openai.BadRequestError, client.files.create, file=("a", b"x"), purpose="nonsense")
    same(facts_of(nothing), (400, "invalid_request_error", "invalid_value", "purpose"))


@check("401 is an AuthenticationError")
def _() -> None:
    with openai.OpenAI(api_key="wrong", base_url=f"{FACTS['url']}/v1") as stranger:
        error = raised(openai.AuthenticationError, stranger.files.list)

    same(facts_of(error), (401, "invalid_request_error", "invalid_api_key", None))


@check("403 is a PermissionDeniedError")
def _() -> None:
    error = raised(openai.PermissionDeniedError, client.models.delete, MODEL)

    same(facts_of(error), (403, "invalid_request_error", "model_not_deletable", None))


@check("404 is a NotFoundError")
def _() -> None:
    batch = raised(openai.NotFoundError, client.batches.retrieve, "batch_none")
    same(facts_of(batch), (404, "invalid_request_error", "not_found", "batch_id"))
    assert "batch_none" in batch.message, batch.message
    file = raised(openai.NotFoundError, client.files.retrieve, FACTS["past"][0])
    same(file.status_code, 404)
    url = raised(openai.NotFoundError, client.get, "/nothing", cast_to=object)
    same(facts_of(url), (404, "invalid_request_error", "unknown_url", None))


@check("409 is a ConflictError, and is not tried again")
def _() -> None:
    batch, name = ended(submit([chat("a", "x")])), fresh("conflict")

    with through("plain", name) as counted:
        error = raised(openai.ConflictError, counted.batches.cancel, batch.id)

    same(facts_of(error), (409, "invalid_request_error", "invalid_state", None))
    assert "Cannot cancel a batch with status 'completed'" in error.message, error.message
    same([one["status"] for one in told(f"seen/{name}")], [409])


@check("422 is an UnprocessableEntityError: one key, two bodies")
def _() -> None:
    key, file = fresh("key"), input_file([chat("a", "x")])
    wanted: dict[str, Any] = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    wanted["extra_headers"] = {"Idempotency-Key": key}
    client.batches.create(**wanted, metadata={"mark": key})

    error = raised(openai.UnprocessableEntityError, client.batches.create, **wanted, metadata={"mark": "other"})

    same(facts_of(error), (422, "invalid_request_error", "idempotency_key_mismatch", None))
    same(len(batches_of(key)), 1)


@check("413 is an APIStatusError")
def _() -> None:
    error = raised(openai.APIStatusError, client.post, "/batches", cast_to=object, body={"x": "y" * (5 << 20)})

    same(facts_of(error), (413, "invalid_request_error", "request_too_large", None))


@check("429 is a RateLimitError, and says when to come again")
def _() -> None:
    with through("apart", fresh("wrong"), api_key="wrong", max_retries=0) as stranger:
        for _ in range(FACTS["wrong_keys"]):
            raised(openai.AuthenticationError, stranger.files.list)
        error = raised(openai.RateLimitError, stranger.files.list)

    same(facts_of(error), (429, "rate_limit_error", "rate_limit_exceeded", None))
    same(error.response.headers["retry-after"], "5")


@check("503 is an InternalServerError, and is tried again")
def _() -> None:
    name, asked = fresh("asleep"), {"model": FACTS["asleep"], "messages": [{"role": "user", "content": "hello"}]}
    with through("plain", name, max_retries=1) as patient:
        error = raised(openai.InternalServerError, patient.chat.completions.create, **asked)

    same(facts_of(error), (503, "server_error", "no_worker", None))
    same([one["status"] for one in told(f"seen/{name}")], [503, 503])


def spoiled_once(kind: str, wanted: type[Exception], **patience: Any) -> None:
    """Create an object, lose the answer, and create it again with the same key, which must return the first one."""
    key, file_id = fresh("key"), input_file([chat("a", "x")])
    headers = {"Idempotency-Key": key}
    with through(kind, key, max_retries=0) as spoiled:
        raised(wanted, make_batch, spoiled.with_options(**patience), headers, key, file_id)
        answer = make_batch(spoiled, headers, key, file_id)

    same(answer.headers["idempotency-replayed"], "true")
    same(batches_of(key), [answer.parse().id])


@check("a server that gives no answer is an APIConnectionError, and the key finds what it made")
def _() -> None:
    spoiled_once("lost", openai.APIConnectionError)


@check("an answer that comes too late is an APITimeoutError, and the key finds what was made")
def _() -> None:
    spoiled_once("late", openai.APITimeoutError, timeout=0.5)


def retried(kind: str, make: Callable[[openai.OpenAI, dict[str, str], str], Any]) -> tuple[Any, str]:
    """Make something through a front that spoils the first answer, with one key; the object, and the key."""
    key = fresh("key")
    with through(kind, key) as spoiled:
        answer = make(spoiled, {"Idempotency-Key": key}, key)
    asked = told(f"seen/{key}")
    same([(one["method"], one["key"], one["status"]) for one in asked], [("POST", key, 200)] * 2)
    same(answer.headers["idempotency-replayed"], "true")
    return answer.parse(), key


def make_batch(spoiled: openai.OpenAI, headers: dict[str, str], mark: str, file_id: str = "") -> Any:
    return spoiled.batches.with_raw_response.create(
        input_file_id=file_id or input_file([chat("a", "x")]),
        endpoint=CHAT,
        completion_window="24h",
        metadata={"mark": mark},
        extra_headers=headers,
    )


@check("a create whose answer is lost is repeated with its key and makes one batch")
def _() -> None:
    batch, key = retried("lost", make_batch)

    same(batches_of(key), [batch.id])
    same(ended(batch).status, "completed")


@check("a create whose answer is broken is repeated with its key and makes one batch")
def _() -> None:
    batch, key = retried("broken", make_batch)

    same(batches_of(key), [batch.id])


@check("an upload whose answer is lost is repeated with its key and makes one file")
def _() -> None:
    def make(spoiled: openai.OpenAI, headers: dict[str, str], mark: str) -> Any:
        return spoiled.files.with_raw_response.create(file=(mark, DATA), purpose="user_data", extra_headers=headers)

    file, key = retried("lost", make)

    same([one.id for one in client.files.list(purpose="user_data") if one.filename == key], [file.id])
    same(client.files.content(file.id).read() == DATA, True)


@check("without a key a repeated create makes two batches")
def _() -> None:
    name = fresh("twice")

    with through("lost", name) as spoiled:
        make_batch(spoiled, {}, name)

    same([one["key"] for one in told(f"seen/{name}")], [None, None])
    same(len(batches_of(name)), 2)


@check("many calls at once are answered")
def _() -> None:
    async def many() -> list[str]:
        async with openai.AsyncOpenAI(api_key=FACTS["key"], base_url=f"{FACTS['url']}/v1") as eager:
            made = await asyncio.gather(
                *(eager.files.create(file=(f"a{n}", b"%d" % n), purpose="assistants") for n in range(20))
            )
            contents = await asyncio.gather(*(eager.files.content(file.id) for file in made))
            same([content.read() for content in contents], [b"%d" % n for n in range(20)])
            listed = [file.id async for file in eager.files.list(purpose="assistants", limit=7)]
            same(sorted(listed), sorted(file.id for file in made))
            return listed

    same(len(set(asyncio.run(many()))), 20)


if __name__ == "__main__":
    import evals_suite  # noqa: F401 (its checks come after those above)
    import stores  # noqa: F401

    if "tuned" in FACTS:
        import tuning  # noqa: F401 (and these last)

    run_checks(openai.__version__)

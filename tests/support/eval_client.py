"""A client that evaluates: the real API, dispatcher and workers over a fake engine, and a judge with set verdicts."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from openai import OpenAI
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.evals import runs
from jobs.ledger.tables import Job
from jobs.webhooks.tables import Event
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL, InlineDeployment, running
from tests.support.web import make_key, running_app, serve
from workers.engines.port import Answer, Request, Usage

JUDGE = "judge"
SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
}
SAME = {
    "type": "string_check",
    "name": "same",
    "input": "{{ sample.output_text }}",
    "operation": "eq",
    "reference": "{{ item.answer }}",
}
SCORE = {
    "type": "score_model",
    "name": "score",
    "model": JUDGE,
    "input": [{"role": "user", "content": "How good is '{{ sample.output_text }}'?"}],
    "range": [0, 10],
    "pass_threshold": 5,
}
TEMPLATE = {"type": "template", "template": [{"role": "user", "content": "{{ item.question }}"}]}


def echo(question: str) -> str:
    """Return what the fake engine answers to a question."""
    return f"echo {sha256(question.encode()).hexdigest()[:16]}"


def items(*questions: str, right: bool = True) -> list[dict[str, Any]]:
    return [{"item": {"question": text, "answer": echo(text) if right else "no"}} for text in questions]


def judged(result: float | str) -> Answer:
    """Return the answer of a judge: a score, or a label."""
    text = json.dumps({"steps": [], "result": result})
    choice = {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": JUDGE, "choices": [choice], "usage": usage}
    return Answer(200, msgspec.json.encode(body), Usage(7, 0, 3, 0))


#: A score, an answer in the place of a score, or a function that returns the score.
Verdict = Answer | float | Callable[[], float]


@dataclass
class World:
    """A client, the workers, and what the judge gives as a score or answers instead."""

    inline: InlineDeployment
    client: OpenAI
    verdicts: list[Verdict]
    asked: list[Request]
    schema: dict[str, Any]

    def eval(self, *criteria: dict[str, Any], **fields: Any) -> str:
        config: Any = {"type": "custom", "item_schema": self.schema, "include_sample_schema": True}
        graders: Any = list(criteria)
        made = self.client.evals.create(name="e", data_source_config=config, testing_criteria=graders, **fields)
        return made.id

    def run(self, eval_id: str, content: list[Any], kind: str = "completions", **source: Any) -> Any:
        given = {"type": kind, "source": {"type": "file_content", "content": content}}
        if kind in ("completions", "responses"):
            given |= {"model": MODEL, "input_messages": TEMPLATE}
        return self.client.evals.runs.create(eval_id, name="r", data_source=given | source)  # type: ignore[arg-type]

    def ended(self, run: Any) -> Any:
        self.inline.drain(run.id, timeout=180)
        return self.client.evals.runs.retrieve(run.id, eval_id=run.eval_id)

    def output(self, run: Any, **query: Any) -> list[Any]:
        return list(self.client.evals.runs.output_items.list(run.id, eval_id=run.eval_id, **query))

    def steps(self, run_id: str) -> list[Job]:
        with self.inline.db.read() as session:
            return runs.steps_of(session, [run_id])[run_id]

    def told(self, job_id: str) -> list[str]:
        with self.inline.db.read() as session:
            told = session.scalars(select(Event.type).where(Event.subject_id == job_id).order_by(Event.seq)).all()
        return [kind for kind in told if not kind.startswith("job.")]


def judge(asked: list[Request], verdicts: list[Verdict], request: Request) -> Answer | None:
    """Answer in the judge's place: with the next verdict, the last one again and again."""
    asked.append(request)
    if request.body.get("model") != JUDGE:
        return None
    verdict = verdicts.pop(0) if len(verdicts) > 1 else verdicts[0]
    verdict = verdict() if callable(verdict) else verdict
    return verdict if isinstance(verdict, Answer) else judged(verdict)


@contextmanager
def evaluating(db: Database, folder: Path, schema: dict[str, Any] = SCHEMA, **settings: Any) -> Iterator[World]:
    """Run a world over an empty database."""
    asked: list[Request] = []
    verdicts: list[Verdict] = [8.0]
    engine = FakeEngine((MODEL, JUDGE), fault=partial(judge, asked, verdicts))
    with (
        running(db, folder, engine, **settings) as inline,
        running_app(folder, db.url, **settings) as app,
        serve(app) as url,
        OpenAI(base_url=f"{url}/v1", api_key=make_key(app), max_retries=0) as client,
    ):
        yield World(inline, client, verdicts, asked, schema)

"""The project that the pictures of the console show: a support team that sorts its tickets with models.

Batches, evaluations and files are made through the API and run by real workers, whose engine answers as a model of
average quality would. History, trainings and deliveries, which take days, are rows.
"""

import csv
import io
import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, cast

import msgspec
from sqlalchemy import delete, select

from jobs.clock import now
from jobs.finetuning import training_events
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetuneCheckpoint, FinetunePlan, FinetuneStep
from jobs.fleet import workers
from jobs.fleet.tables import Pause, Worker
from jobs.inference import request_counts
from jobs.inference.request_counts import RequestKey
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Segment
from jobs.monitoring import monitors
from jobs.monitoring.tables import DriftCheck, DriftMonitor
from jobs.queues import Queue
from jobs.registry import models
from jobs.security.keys import create_key, ensure_project
from jobs.webhooks.tables import Attempt, Delivery, Event, WebhookEndpoint
from tests.support import worker_steps
from tests.support.console import Deployment
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import jsonl
from workers.engines.port import Answer, Request, Usage

CHAT_MODEL: Final = "qwen2.5-7b-instruct"
SMALL_MODEL: Final = "smollm2-135m-instruct"
MODELS: Final = (CHAT_MODEL, SMALL_MODEL)
CATEGORIES: Final = ("billing", "delivery", "account", "returns", "product")
#: Text, category, urgency, and the answer of the team.
TICKETS: Final = (
    ("I was charged twice for order 48213. Please send one of the payments back.", "billing", "high",
     "We are sorry about the double charge. The second payment is on its way back to your card."),
    ("My parcel has been in Leipzig for six days. Is it lost?", "delivery", "normal",
     "Your parcel was held for an address check. It leaves today and arrives on Thursday."),
    ("The link for a new password has expired before I could use it.", "account", "normal",
     "Here is a new link. It works for 24 hours."),
    ("The left earphone is silent after two weeks. I would like a replacement.", "returns", "normal",
     "A replacement is free within two years. The label for the return is attached."),
    ("Does the lamp fit an E14 bulb?", "product", "low", "Yes, the lamp takes E14 bulbs of up to 40 W."),
    ("Cancel my subscription at once, nobody answers my calls!", "account", "high",
     "Your subscription ends today, and nothing more is charged."),
    ("I need an invoice with our VAT number for the order of 3 November.", "billing", "normal",
     "The invoice with your VAT number is attached."),
    ("The courier left the parcel in the rain and the box is soaked.", "delivery", "high",
     "We send the order again tomorrow. You need not return the wet one."),
    ("Can I still return shoes that I bought 35 days ago?", "returns", "low",
     "Returns are free for 30 days, so we can offer you a voucher instead."),
    ("How long does the battery of the speaker last?", "product", "low", "About 14 hours at medium volume."),
    ("My card was declined, but the bank says everything is in order.", "billing", "normal",
     "Please try again: the check of the card was down for an hour this morning."),
    ("I moved. Please send order 48377 to the new address.", "delivery", "high",
     "The address of order 48377 is changed. It has not left the warehouse yet."),
)  # fmt: skip
HELP_CENTRE: Final = {
    "returns.md": "# Returns\n\nReturns are free for 30 days. Send the article with the label from your account. "
    "The money is on your account within five working days after the parcel has arrived.\n",
    "delivery.md": "# Delivery\n\nStandard delivery takes two to four working days, express delivery one. "
    "A parcel that does not move for five days counts as lost and is sent again.\n",
    "invoices.md": "# Invoices\n\nEvery order has an invoice in your account. For an invoice with a VAT number, enter "
    "the number under Billing before you order, or write to us within 30 days.\n",
    "warranty.md": "# Warranty\n\nElectronic articles have a warranty of two years. Within it a broken article is "
    "replaced free of charge.\n",
    "account.md": "# Account\n\nA link for a new password works for 24 hours. A subscription can be cancelled at any "
    "time and ends on the day of the cancellation.\n",
}
PROMPT: Final = "Sort the ticket by its topic and its urgency, and answer it in one sentence.\n\n{{ticket}}"
PROPERTIES: Final = {
    "category": {"type": "string", "enum": list(CATEGORIES)},
    "urgency": {"type": "string", "enum": ["low", "normal", "high"]},
    "reply": {"type": "string"},
}
_FORMAT: Final = {
    "type": "json_schema", "name": "ticket", "strict": True,
    "schema": {"type": "object", "properties": PROPERTIES, "required": [*PROPERTIES], "additionalProperties": False},
}  # fmt: skip
_SORTING: Final = {
    "model": CHAT_MODEL,
    "instructions": "You sort the tickets of a shop by their topic and their urgency.\n"
    "Answer the customer in one sentence.",
    "messages": [{"role": "user", "content": "{{ticket}}"}],
    "parameters": {"temperature": 0},
    "text": {"format": _FORMAT},
}
#: The name of each prompt, its labels, and the contents of its versions. The last prompt has changed most often.
PROMPTS: Final[tuple[tuple[str, dict[str, str], tuple[dict[str, Any], ...]], ...]] = (
    ("Weekly digest", {"production": "1"}, ({
        "model": SMALL_MODEL,
        "instructions": "Sum up the tickets of week {{week}} for the team in five lines.",
        "messages": [{"role": "user", "content": "{{tickets}}"}],
        "variables": [{"name": "week", "type": "number"}, {"name": "tickets"}],
    },)),
    ("Translate a reply", {"production": "2"}, (
        {"model": CHAT_MODEL, "instructions": "Translate the reply into {{language}}.",
         "messages": [{"role": "user", "content": "{{reply}}"}]},
        {"model": CHAT_MODEL, "instructions": "Translate the reply into {{language}}. Keep names and order numbers.",
         "messages": [{"role": "user", "content": "{{reply}}"}],
         "variables": [{"name": "language", "default": "German"}]},
    )),
    ("Sort and answer a ticket", {"production": "2", "next": "3"}, (
        _SORTING | {"instructions": "You sort the tickets of a shop.\nAnswer the customer in one sentence."},
        _SORTING,
        _SORTING | {
            "instructions": "You sort the tickets of a shop by their topic and their urgency.\n"
            "A ticket is urgent where money or a parcel is lost.\n"
            "Answer {{customer}} by name in two sentences.",
            "parameters": {"temperature": 0, "max_output_tokens": 200},
            "variables": [{"name": "ticket"}, {"name": "customer", "default": "the customer"}],
        },
    )),
)  # fmt: skip
_TRAINED: Final = {"batch_size": 8, "rows": 1_200, "validation_rows": 120, "tokens": 184_000, "steps": 60}


def support_engine() -> FakeEngine:
    """Return an engine that answers tickets: the large model always rightly, the small one three times out of four."""
    return FakeEngine(MODELS, fault=_answer)


def _answer(request: Request) -> Answer | None:
    prompt = json.dumps(request.body.get("messages", ""))
    number, ticket = next(((n, row) for n, row in enumerate(TICKETS) if row[0] in prompt), (0, None))
    if ticket is None:
        return None
    _, category, urgency, reply = ticket
    if request.body["model"] == SMALL_MODEL and number % 4 == 1:
        category = CATEGORIES[(CATEGORIES.index(category) + 1) % len(CATEGORIES)]
    fields = {"category": category, "urgency": urgency, "reply": reply}
    text = json.dumps(fields) if request.body.get("response_format") else category
    choice = {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 64, "completion_tokens": 38, "total_tokens": 102}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": request.body["model"], "choices": [choice]}
    return Answer(200, msgspec.json.encode(body | {"usage": usage}), Usage(64, 0, 38, 0))


def tickets_csv() -> bytes:
    """Return the tickets as the table that the team exports from its ticket system."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["ticket", "customer"])
    table.writerows([row[0], f"C-{1_204 + 37 * number}"] for number, row in enumerate(TICKETS))
    return text.getvalue().encode()


def _embedding_lines() -> bytes:
    body = {"model": "all-minilm-l6-v2"}
    line = {"method": "POST", "url": "/v1/embeddings"}
    return jsonl([{**line, "custom_id": f"t{n}", "body": {**body, "input": row[0]}} for n, row in enumerate(TICKETS)])


@dataclass
class SupportTeam:
    """Fills the project of a deployment with what a support team makes."""

    deployment: Deployment
    items: str = field(init=False)  # the id of the file of the evaluation

    def make(self) -> dict[str, str]:
        """Fill the project; return the ids that the addresses of the pages hold."""
        ids = self._make_batches() | self._make_evaluation() | self._make_trainings()
        ids |= self._make_dataset() | self._make_releases(ids["eval"], ids["tuned"])
        spread_jobs(self.deployment)
        ids |= self._make_live_batches()
        ids["prompt"] = self._make_prompts()
        self._add_history()
        self._add_requests()
        self._add_workers()
        ids["monitor"] = self._add_monitors()
        self._add_schedules(ids["file"])
        ids["endpoint"] = self._add_webhook(ids["table"])
        with self.deployment.inline.db.write() as session:
            create_key(session, "default")
            create_key(session, "default", manages=True)
        return ids

    def _file(self, name: str, content: bytes, purpose: Any = "batch") -> str:
        return self.deployment.client.files.create(file=(name, content), purpose=purpose).id

    def _lines(self, tickets: Iterable[tuple[str, ...]], model: str) -> bytes:
        schema = {
            "type": "object",
            "properties": PROPERTIES,
            "required": list(PROPERTIES),
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "row", "strict": True, "schema": schema}}
        lines = []
        for number, (text, *_) in enumerate(tickets, 1):
            messages = [{"role": "user", "content": PROMPT.replace("{{ticket}}", text)}]
            body = {"model": model, "messages": messages, "response_format": form, "temperature": 0}
            row = {"ticket": text, "customer": f"C-{1_167 + 37 * number}"}
            line = {"custom_id": f"row-{number}", "row": row, "method": "POST", "url": "/v1/chat/completions"}
            lines.append({**line, "body": body})
        return jsonl(lines)

    def _batch(self, name: str, content: bytes, **fields: Any) -> str:
        file_id = self._file(f"{name.lower().replace(' ', '-')}.jsonl", content)
        batch = self.deployment.client.batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h",
            metadata={"name": name, "team": "support"}, extra_body=fields,
        )  # fmt: skip
        return batch.id

    def _make_batches(self) -> dict[str, str]:
        inline = self.deployment.inline
        table = self._batch("Tickets of November", self._lines(TICKETS, CHAT_MODEL))
        weekly = self._batch("Weekly digest", self._lines(TICKETS[:6], SMALL_MODEL))
        inline.drain(table, weekly, timeout=60)
        self._file("tickets-2026-11.csv", tickets_csv(), "user_data")
        inline.wait_until_idle()
        return {"table": table, "file": self.deployment.client.batches.retrieve(table).input_file_id}

    def _make_live_batches(self) -> dict[str, str]:
        """Make a batch that runs and one that waits for the embedding model, which nobody serves."""
        inline = self.deployment.inline
        waiting = inline.submit(_embedding_lines(), endpoint="/v1/embeddings", metadata_={"name": "Similar tickets"})
        inline.until(lambda: inline.job(waiting).waiting_for is not None, 60)
        inline.wait_until_idle()
        running = self._batch("Backlog 2026", self._lines(TICKETS * 20, CHAT_MODEL))
        worker_steps.plan(inline.db, running, 240, CHAT_MODEL)
        worker_steps.answer(inline.db, inline.storage, worker_steps.take(inline.db, running), range(97))
        return {"running": running, "waiting": waiting}

    def _make_evaluation(self) -> dict[str, str]:
        client, inline = self.deployment.client, self.deployment.inline
        properties = {"ticket": {"type": "string"}, "category": {"type": "string"}}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        config: Any = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
        criteria: Any = [{
            "type": "string_check", "name": "right category", "operation": "eq",
            "input": "{{ sample.output_text }}", "reference": "{{ item.category }}",
        }]  # fmt: skip
        made = client.evals.create(name="Topic of a ticket", data_source_config=config, testing_criteria=criteria)
        items = [{"item": {"ticket": f"{text} ({n})", "category": row[0]}} for n in range(4) for text, *row in TICKETS]
        by_model = {}
        for model in (SMALL_MODEL, CHAT_MODEL):
            template = [{"role": "user", "content": "Name the topic of this ticket in one word: {{ item.ticket }}"}]
            source: Any = {
                "type": "completions", "model": model, "source": {"type": "file_content", "content": items},
                "input_messages": {"type": "template", "template": template},
            }  # fmt: skip
            by_model[model] = client.evals.runs.create(made.id, name=model, data_source=source).id
            inline.drain(by_model[model], timeout=120)
        self.items = self._file("items-2026.jsonl", jsonl([{"item": item["item"]} for item in items]), "evals")
        return {"eval": made.id, "run": by_model[SMALL_MODEL], "better": by_model[CHAT_MODEL]}

    def _make_trainings(self) -> dict[str, str]:
        rows = [
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]}
            for text, _, _, reply in TICKETS
        ]
        file_id = self._file("replies-2026.jsonl", jsonl(rows), "fine-tune")
        first = self._training(file_id, "replies-a", 2, 1.0, 60)
        second = self._training(file_id, "replies-b", 2, 2.0, 45)
        with self.deployment.inline.db.read() as session:
            tuned = FineTuning.model_validate(session.get_one(Job, first).payload).result
        return {"baseline": first, "tuning": second, "tuned": tuned}

    def _make_dataset(self) -> dict[str, str]:
        """Make a dataset with two versions."""
        parts = [{"name": "train", "fraction": 0.8}, {"name": "test", "fraction": 0.2}]
        fields = {"description": "Sorted tickets, without names", "split": {"type": "random", "parts": parts}}
        dataset = self._post("/datasets", {"name": "tickets", **fields})["id"]
        for days in (7, 30):
            rows = [{"ticket": text, "category": row[0], "day": day} for day in range(days) for text, *row in TICKETS]
            sources = [{"type": "file_id", "id": self._file(f"tickets-{days}-days.jsonl", jsonl(rows), "user_data")}]
            version = self._post(f"/datasets/{dataset}/versions", {"sources": sources})["id"]
            self.deployment.inline.drain(version, timeout=120)
        return {"dataset": dataset}

    def _gate(self, eval_id: str, model: str, rule: dict[str, Any]) -> dict[str, Any]:
        return {"eval_id": eval_id, "data_source": self._question(model), "rule": rule}

    def _question(self, model: str) -> dict[str, Any]:
        template = [{"role": "user", "content": "Name the topic of this ticket in one word: {{ item.ticket }}"}]
        return {
            "type": "completions", "model": model, "source": {"type": "file_id", "id": self.items},
            "input_messages": {"type": "template", "template": template},
        }  # fmt: skip

    def _make_releases(self, eval_id: str, tuned: str) -> dict[str, str]:
        """Make aliases, promotions that ended in different ways, and a pipeline that promotes."""
        inline = self.deployment.inline
        with inline.db.write() as session:
            workers.store_models(session, dict.fromkeys(MODELS, False), Queue.GENERATE)
        for name, model in (("triage", SMALL_MODEL), ("digest", SMALL_MODEL), ("replies", CHAT_MODEL)):
            self._post("/aliases", {"id": name, "model": model})
        rule, made = {"type": "not_worse_than_incumbent", "margin": 2}, []
        for name, model, reason in (
            ("replies", SMALL_MODEL, "half the time of an answer"),
            ("triage", CHAT_MODEL, "too many tickets in the wrong queue"),
        ):
            target = {"type": "alias", "id": name, "model": model}
            body = {"target": target, "gates": [self._gate(eval_id, name, rule)], "reason": reason}
            made.append(str(self._post("/promotions", body)["id"]))
            inline.drain(made[-1], timeout=240)
        forced = {"type": "stage", "id": tuned}
        body = {"target": forced, "force": True, "reason": "the former version repeats names of customers"}
        inline.drain(str(self._post("/promotions", body)["id"]), timeout=60)
        target = {"type": "alias", "id": "digest", "model": CHAT_MODEL}
        gate = self._gate(eval_id, "digest", {"type": "minimum", "score": 0.9})
        batch = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        lines = self._file("week-48.jsonl", self._lines(TICKETS, CHAT_MODEL))
        steps = [
            {"name": "sort", "kind": "batch", "request": {"input_file_id": lines, **batch}},
            {
                "name": "check", "kind": "eval_run",
                "request": {"eval_id": eval_id, "name": "week 48", "data_source": self._question(CHAT_MODEL)},
            },
            {
                "name": "promote", "kind": "promotion", "after": ["sort", "check"],
                "request": {"target": target, "gates": [gate]},
            },
            {
                "name": "digest", "kind": "batch", "after": ["promote"],
                "request": {"input_file_id": self._file("digest.jsonl", self._lines(TICKETS[:6], CHAT_MODEL)), **batch},
            },
        ]  # fmt: skip
        pipeline = str(self._post("/pipelines", {"name": "Week 48", "steps": steps})["id"])
        inline.drain(pipeline, timeout=240)
        inline.wait_until_idle()
        targets = [{"model": CHAT_MODEL, "weight": 80}, {"model": SMALL_MODEL, "weight": 20}]
        self._post("/aliases/triage", {"targets": targets, "sticky": True, "reason": "how cheap can it be?"})
        self._post("/aliases", {"id": "support-bot", "model": tuned})
        return {"promotion": made[-1], "pipeline": pipeline}

    def _add_monitors(self) -> str:
        """Add two monitors with a check a day, and return the id of the one whose last checks found drift."""
        draw, at = random.Random(5), now()
        names = (("embedding", "energy_distance", 0.06), ("length", "psi", 0.12), ("language", "psi", 0.05))
        with self.deployment.inline.db.write() as session:
            project_id = ensure_project(session, "default").id
            for name, growth in (("Replies", 0.0), ("Questions", 0.06)):
                monitor = DriftMonitor(
                    id=f"driftmon_{name.lower()}", project_id=project_id, name=name, window_seconds=86_400,
                    sample=1_000, source={"type": "responses", "model": "support-bot"},
                    embedding_model="all-minilm-l6-v2", baseline_id=f"driftcheck_{name.lower()}_0",
                    created_at=at - 86_400 * 15,
                )  # fmt: skip
                session.add(monitor)
                for day in range(15):
                    own = {"id": f"driftcheck_{name.lower()}_{day}", "project_id": project_id}
                    own |= {"created_at": at - 86_400 * (14 - day) - 600}
                    ended = {"state": JobState.SUCCEEDED, "completed_at": own["created_at"] + 41}
                    session.add(Job(**own, kind=monitors.NAME, payload={}, **ended))
                    features = [
                        {
                            "name": feature, "measure": measure, "value": value, "limit": limit,
                            "is_drift": value > limit, "baseline_texts": 1_000, "current_texts": 1_000,
                        }
                        for feature, measure, limit in names
                        for value in [limit * (draw.uniform(0.3, 0.7) + (feature != "length") * growth * day)]
                    ]  # fmt: skip
                    if day > 0:  # the first job made the baseline
                        is_drift = any(feature["is_drift"] for feature in features)
                        check = DriftCheck(**own, monitor_id=monitor.id, is_drift=is_drift, features=features)
                        session.add(check)
        return monitor.id

    def _training(self, file_id: str, suffix: str, epochs: int, rate: float, done: int) -> str:
        """Create a fine-tuning job, and record `done` of its steps as a training does."""
        client, draw = self.deployment.client, random.Random(suffix)
        numbers: Any = {"n_epochs": epochs, "learning_rate_multiplier": rate, "batch_size": 8}
        job_id = client.fine_tuning.jobs.create(
            model=SMALL_MODEL, training_file=file_id, suffix=suffix, hyperparameters=numbers
        ).id
        client.fine_tuning.jobs.pause(job_id)
        at = now()
        with self.deployment.inline.db.write() as session:
            row = session.get_one(Job, job_id)
            plan = _TRAINED | {"n_epochs": epochs, "learning_rate_multiplier": rate}
            session.add(FinetunePlan(job_id=job_id, seconds=1_240.0, device_seconds=1_180.0, **plan))
            for step in range(1, done + 1):
                loss = 0.55 + 1.7 * math.exp(-rate * step / 18) + draw.gauss(0, 0.04)
                valid = 0.68 + 1.6 * math.exp(-rate * step / 18) if step % 10 == 0 else None
                facts = {"epoch": step / 30, "learning_rate": 1e-4 * rate, "created_at": at - 20 * (done - step)}
                accuracy = min(0.9, 0.45 + step / 120)
                losses = {"train_loss": loss, "valid_loss": valid, "train_accuracy": accuracy}
                session.add(FinetuneStep(job_id=job_id, step=step, **losses, **facts))
            for step in range(30, done + 1, 30):
                metrics = {"train_loss": 0.61, "full_valid_loss": 0.74}
                session.add(
                    FinetuneCheckpoint(
                        id=f"ftckpt_{suffix}_{step}", job_id=job_id, step=step, location=f"training/{job_id}/{step}",
                        sha256="0" * 64, bytes=4_900_000, metrics=metrics, keeps_optimizer=True, created_at=at,
                    )
                )  # fmt: skip
            training_events.record(session, job_id, "Created checkpoint at step 30.")
            if done == _TRAINED["steps"]:
                session.execute(delete(Pause).where(Pause.name == job_id))
                row.state, row.completed_at = JobState.SUCCEEDED, at
                models.register(
                    session, name=FineTuning.model_validate(row.payload).result, project_id=row.project_id,
                    base=SMALL_MODEL, job_id=job_id, method="lora", location=f"training/{job_id}", sha256="0" * 64,
                    manifest={},
                )  # fmt: skip
            else:
                row.state, row.in_progress_at, row.waiting_for = JobState.RUNNING, at - 900, None
        return job_id

    def _add_history(self) -> None:
        """Add the segments of a week of work, more of them by day than by night."""
        draw, at = random.Random(7), now()
        with self.deployment.inline.db.write() as session:
            job_id = session.scalars(select(Job.id).where(Job.model == CHAT_MODEL).limit(1)).one()
            for hour in range(1, 24 * 7 * 2):
                moment = at - hour * 1_800
                by_day = 1 + math.sin((moment % 86_400) / 86_400 * 2 * math.pi - 1.6)
                lines = int(120 + 700 * by_day * draw.uniform(0.7, 1.2))
                tokens = {"input_tokens": 64 * lines, "output_tokens": 38 * lines, "cached_tokens": 0}
                empty = {"path": "", "length": 0, "covered": b"", "good": b""}
                failed = int(lines * draw.uniform(0, 0.02))
                counts = {"done": lines, "failed": failed}
                row = Segment(
                    job_id=job_id, n=10_000 + hour, epoch=1, seq=0, created_at=moment, **tokens, **empty, **counts
                )
                session.add(row)

    def _make_prompts(self) -> str:
        """Make three prompts, and return the id of the one that has changed most often."""
        prompt_ids = []
        for name, labels, contents in PROMPTS:
            prompt = self._post("/prompts", {"name": name, **contents[0]})
            for content in contents[1:]:
                self._post(f"/prompts/{prompt['id']}/versions", content)
            self._post(f"/prompts/{prompt['id']}", {"labels": labels, "default_version": labels["production"]})
            prompt_ids.append(str(prompt["id"]))
        return prompt_ids[-1]

    def _add_requests(self) -> None:
        """Add what interactive clients have asked both models in a day."""
        draw, at, counts = random.Random(11), int(now()), request_counts.Counts()
        with self.deployment.inline.db.write() as session:
            project_id = ensure_project(session, "default").id
            for minute in range(at - at % 60 - 86_400, at, 600):
                for model, speed in ((CHAT_MODEL, 42.0), (SMALL_MODEL, 140.0)):
                    for _ in range(draw.randint(2, 9)):
                        output = draw.randint(30, 90)
                        first = draw.uniform(5.0, 9.0) / speed
                        values = {"first_token": first, "duration": first + output / speed, "speed": speed}
                        for measure, value in values.items():
                            spread = value * draw.uniform(0.8, 1.3)
                            bucket = request_counts.bucket_of(measure, spread)
                            key = RequestKey(project_id, minute, model, measure, bucket)
                            request_counts.add(counts, key, (1, spread))
                        for kind, tokens in (("input", draw.randint(90, 240)), ("output", output)):
                            key = RequestKey(project_id, minute, model, request_counts.TOKENS, kind)
                            request_counts.add(counts, key, (tokens, tokens))
            request_counts.write(session, counts)

    def _post(self, path: str, body: Any) -> dict[str, Any]:
        return cast("dict[str, Any]", self.deployment.client.post(path, body=body, cast_to=object))

    def _add_workers(self) -> None:
        at = now()
        ready = {"state": "ready", "created_at": at - 86_400, "seen_at": at + 3_600, "started": 1}
        with self.deployment.inline.db.write() as session:
            for number in (1, 2):
                row = Worker(
                    id=f"gpu-{number}", pool="gpu", host=f"node-{number}", pid=400 + number, slots=2,
                    models=list(MODELS), queues=[Queue.GENERATE.value], **ready,
                )  # fmt: skip
                workers.register(session, row)

    def _add_schedules(self, file_id: str) -> None:
        for cron in ("0 3 * * mon-fri", "30 6 * * sun"):
            batch = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            self._post("/schedules", {"cron": cron, "timezone": "Europe/Zurich", "batch": batch})

    def _add_webhook(self, batch_id: str) -> str:
        """Add an endpoint with two deliveries, of which one did not arrive at first."""
        at = now()
        with self.deployment.inline.db.write() as session:
            project_id = ensure_project(session, "default").id
            endpoint = WebhookEndpoint(
                id="we_helpdesk", project_id=project_id, name="Ticket system", url="https://helpdesk.example.com/hooks/nightmill",
                event_types=["batch.completed", "batch.failed"], secret="whsec_example", created_at=at - 86_400,
            )  # fmt: skip
            session.add(endpoint)
            for number, statuses in enumerate(((200,), (503, 200))):
                event = Event(
                    subject_id=f"batch_{number}", seq=1, id=f"evt_{number}", project_id=project_id,
                    type="batch.completed", data={"id": batch_id}, created_at=at - 3_600 * number,
                )  # fmt: skip
                delivery = Delivery(
                    id=f"whd_{number}", project_id=project_id, event_id=event.id, endpoint_id=endpoint.id,
                    state="delivered", attempts=len(statuses), due_at=at, created_at=at - 3_600 * number,
                    status_code=200, delivered_at=at - 3_500 * number,
                )  # fmt: skip
                session.add_all([event, delivery])
                for n, status in enumerate(statuses, 1):
                    error = None if status == 200 else "status 503 Service Unavailable"
                    session.add(
                        Attempt(delivery_id=delivery.id, n=n, at=at, seconds=0.18, status_code=status, error=error)
                    )
        return endpoint.id


def spread_jobs(deployment: Deployment) -> None:
    """Move ended jobs into the past, so that a list looks like that of a working day."""
    with deployment.inline.db.write() as session:
        ended = session.scalars(select(Job).where(Job.completed_at.is_not(None)).order_by(Job.created_at)).all()
        for number, job in enumerate(ended):
            for column in ("created_at", "in_progress_at", "finalizing_at", "completed_at"):
                if (at := getattr(job, column)) is not None:
                    setattr(job, column, at - 3_500.0 * (len(ended) - number))

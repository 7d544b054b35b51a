"""One batch of the demo: written to a file, uploaded, created, asked after, downloaded."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from openai import OpenAI

Endpoint = Literal["/v1/chat/completions", "/v1/embeddings"]
LIVE = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
_MARK = {"made_by": "nightmill demo"}


@dataclass(slots=True)
class DemoBatch:
    """What was asked, and what is known of it: `job` is the server's own view, `outputs` the downloaded lines.

    `seconds` is how long it was worked on, without the time that it waited for its model.
    """

    title: str
    id: str
    requests: dict[str, dict[str, Any]]
    folder: Path
    job: dict[str, Any] = field(default_factory=dict)
    began: float | None = None
    seconds: float = 0.0
    outputs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return bool(self.job) and self.job["status"] not in LIVE

    def look(self, client: OpenAI) -> None:
        """Ask how far it is."""
        self.job = cast("dict[str, Any]", client.get(f"/jobs/{self.id}", cast_to=object))
        if self.job["waiting_for"] or self.job["status"] == "validating":
            self.began = None
        elif self.began is None:
            self.began = time.monotonic()
        if self.began and not (self.ended and self.seconds):
            self.seconds = time.monotonic() - self.began

    def download(self, client: OpenAI) -> None:
        """Fetch the output and the error file, whichever there are."""
        for name in ("output", "error"):
            file_id = self.job[f"{name}_file_id"]
            if file_id:
                data = client.files.content(file_id).content
                (self.folder / f"{self.title}-{name}.jsonl").write_bytes(data)
                self.outputs += [json.loads(line) for line in data.splitlines()]

    def bodies(self) -> dict[str, dict[str, Any]]:
        """The answers by custom_id, of the lines that have one."""
        return {one["custom_id"]: one["response"]["body"] for one in self.outputs if one["response"]}


def submit(client: OpenAI, title: str, endpoint: Endpoint, lines: Sequence[dict[str, Any]], folder: Path) -> DemoBatch:
    """Upload the lines and create the batch, as any user of the SDK does."""
    path = folder / f"{title}.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with path.open("rb") as handle:
        file = client.files.create(file=handle, purpose="batch")
    once = {"Idempotency-Key": str(uuid.uuid4())}
    batch = client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata=_MARK, extra_headers=once
    )
    return DemoBatch(title, batch.id, {line["custom_id"]: line for line in lines}, folder)


def cancel_live(client: OpenAI) -> None:
    """A demo that was interrupted has left batches behind."""
    for batch in client.batches.list(limit=100):
        if batch.status in LIVE and (batch.metadata or {}) == _MARK:
            client.batches.cancel(batch.id)

"""`nightmill migrate openai --from`: what a server with OpenAI's shapes has comes over once, and the rest is named."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.client.server import Server
from cli.main import app
from jobs.db.engine import Database
from tests.support.background_thread import beside
from tests.support.eval_client import World, evaluating
from tests.support.openai_server import BASE, MANUAL, OpenAIServer


@pytest.fixture
def here(sqlite: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(sqlite, tmp_path) as world:
        yield world


@pytest.fixture
def far() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


def migrate(world: World, far: OpenAIServer, *words: str, key: str = "") -> Result:
    url = str(world.client.base_url).removesuffix("/v1/")
    command = ["migrate", "openai", "--from", far.url, "--key-env", "FAR_KEY", *words, "--url", url]
    with beside(lambda stop: _tick(world, stop)):
        return CliRunner().invoke(
            app, [*command, "--api-key", world.client.api_key], env={"FAR_KEY": key or far.key, "COLUMNS": "400"}
        )


def _tick(world: World, stop: threading.Event) -> None:
    while not stop.wait(0.01):
        world.inline.dispatcher.tick()


def rows(result: Result) -> dict[str, dict[str, Any]]:
    """Return the rows of a report by the ids elsewhere."""
    assert result.stdout.startswith(("[", "{")), result.output
    return {row["origin_id"]: row for row in map(json.loads, result.stdout.splitlines())}


def outcomes(result: Result) -> dict[str, str]:
    return {name: row["outcome"] for name, row in rows(result).items()}


EXPECTED = {
    "file-Train1": "different",
    "file-Valid1": "different",
    "file-Steps1": "different",
    "file-Manual": "different",
    "file-Secret": "lost",
    "file-Gone01": "lost",
    "eval_Far1": "same",
    "evalrun_Far1": "same",
    "evalrun_Far2": "lost",
    "vs_Far1": "different",
    "vs_Old1": "lost",
    "ftjob-Far1": "different",
    "ftjob-Failed": "lost",
    "ftjob-Rft1": "lost",
    "chatcmpl-Far0": "same",
    "chatcmpl-Far1": "same",
    "chatcmpl-Far2": "same",
    "/prompts": "lost",
}


def test_dry_run_sends_only_gets_and_names_losses(here: World, far: OpenAIServer) -> None:
    far.throttled = 2

    done = migrate(here, far, "--json")

    assert done.exit_code == 0, done.output
    assert outcomes(done) == EXPECTED
    assert far.posts == []
    assert list(here.client.files.list()) == []
    reasons = {name: row["reason"] for name, row in rows(done).items()}
    assert "Not allowed to download" in reasons["file-Secret"]
    assert "No such File object" in reasons["file-Gone01"]
    assert "text, as the vector store vs_Far1 has it" in reasons["file-Manual"]
    assert "1 of its files do not come over" in reasons["vs_Far1"]
    assert "reinforcement is not trained here" in reasons["ftjob-Rft1"]
    assert "--train" in reasons["ftjob-Far1"]
    assert far.key not in done.output


def test_applied_objects_are_listed_and_applying_twice_adds_nothing(here: World, far: OpenAIServer) -> None:
    first = migrate(here, far, "--apply", "--json")
    second = migrate(here, far, "--apply", "--json")

    assert first.exit_code == second.exit_code == 0, first.output + second.output
    assert outcomes(first) == EXPECTED
    present = {name: "present" if word != "lost" else word for name, word in EXPECTED.items()}
    assert outcomes(second) == present | {"ftjob-Far1": "different"}
    assert far.posts == []
    check_stored(here, far)


def check_stored(here: World, far: OpenAIServer) -> None:
    """Check through the SDK that each object is here once, with its content."""
    client = here.client
    files = {file.filename: file.id for file in client.files.list() if file.purpose != "user_data"}
    assert sorted(files) == ["file-Manual.manual.pdf.txt", "file-Train1.train.jsonl", "file-Valid1.valid.jsonl"]
    assert client.files.content(files["file-Train1.train.jsonl"]).content == far.contents["file-Train1"]
    assert client.files.content(files["file-Manual.manual.pdf.txt"]).text == MANUAL
    (store,) = client.vector_stores.list()
    assert (store.name, store.metadata) == ("manuals", {"imported_from": "vs_Far1"})
    (attached,) = client.vector_stores.files.list(store.id)
    assert (attached.id, attached.attributes) == (files["file-Manual.manual.pdf.txt"], {"language": "en"})
    chats = list(client.chat.completions.list())
    assert [chat.choices[0].message.content for chat in chats] == ["Hi 0", "Hi 1", "Hi 2"]
    assert {(chat.model, str(chat.metadata)) for chat in chats} == {(BASE, "{'team': 'support'}")}
    (message,) = client.chat.completions.messages.list("chatcmpl-Far1")
    assert message.content == "Hello 1"
    (run,) = client.evals.runs.list("eval_Far1")
    assert (run.status, run.result_counts.passed) == ("completed", 3)


class Killed(BaseException):
    """The end of the process at some line: no handler of errors sees it."""


@contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Die at the write of this number to any server: an even one has come through, an odd one was not sent."""
    count = 0

    def dying(send: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == number and number % 2:
                raise Killed
            answer = send(*arguments)
            if count == number:
                raise Killed
            return answer

        return write

    with monkeypatch.context() as patch:
        for name in ("post", "post_once", "upload", "delete"):
            patch.setattr(Server, name, dying(getattr(Server, name)))
        yield


@pytest.mark.parametrize("number", range(1, 11))
def test_migration_killed_at_any_write_goes_on(
    here: World, far: OpenAIServer, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with killed_at(number, monkeypatch), pytest.raises(Killed):
        migrate(here, far, "--apply")

    done = migrate(here, far, "--apply", "--json")

    assert done.exit_code == 0, done.output
    assert far.posts == []
    check_stored(here, far)


@pytest.mark.parametrize("has_batches", [True, False])
def test_captured_answers_become_a_graded_run_and_are_paid_once(
    here: World, far: OpenAIServer, monkeypatch: pytest.MonkeyPatch, has_batches: bool
) -> None:
    far.has_batches = has_batches
    words = ("--capture", "3", "--distill", "--apply", "--json")
    before = migrate(here, far, "--capture", "3", "--json")
    assert (far.answered, outcomes(before)["ftjob-Far1.capture-3"]) == (0, "different")
    migrate(here, far, "--apply")

    for number in (2, 3, 1, 2, 3, 2):  # each run of the command goes on from the one that died before it
        with killed_at(number, monkeypatch), suppress(Killed):
            migrate(here, far, *words)
    migrate(here, far, *words)
    again = migrate(here, far, *words)

    assert again.exit_code == 0, again.output
    names = ("ftjob-Far1.capture-3", "ftjob-Far1.capture-3.distill")
    assert [outcomes(again)[name] for name in names] == ["present", "present"]
    (run,) = here.client.evals.runs.list("ftjob-Far1.capture")
    run = here.ended(run)
    assert (run.status, run.result_counts.total) == ("completed", 3)
    output = sorted(item.sample.output[0].content or "" for item in here.output(run))
    assert output == [f"Order {number} is late." for number in range(100, 103)]
    files = {file.filename: file.id for file in here.client.files.list()}
    rows_ = here.client.files.content(files["ftjob-Far1.capture-3.distill.jsonl"]).text.splitlines()
    assert [json.loads(row)["messages"][-1]["content"] for row in rows_] == output
    assert far.answered == 6  # by two tuned models


def test_train_starts_a_single_job_on_the_migrated_files(here: World, far: OpenAIServer) -> None:
    unmapped = migrate(here, far, "--train", "--json")
    words = ("--train", "--map", "gpt-4o-mini=smollm2-135m-instruct", "--apply", "--json")
    first, second = migrate(here, far, *words), migrate(here, far, *words)

    assert "--map gpt-4o-mini-2024-07-18=MODEL" in rows(unmapped)["ftjob-Far1"]["reason"]
    assert first.exit_code == 0, first.output
    assert [outcomes(result)["ftjob-Far1"] for result in (first, second)] == ["different", "present"]
    (job,) = here.client.fine_tuning.jobs.list()
    files = {file.id: file.filename for file in here.client.files.list()}
    assert files[job.training_file] == "file-Train1.train.jsonl"
    assert files[job.validation_file or ""] == "file-Valid1.valid.jsonl"
    assert job.metadata == {"team": "support", "imported_from": "ftjob-Far1"}
    assert (job.hyperparameters.n_epochs, job.hyperparameters.learning_rate_multiplier) == (3, 1.8)


def test_refused_key_and_url_are_named_without_the_key(here: World, far: OpenAIServer) -> None:
    refused = migrate(here, far, "--json", key="sk-wrong")

    assert refused.exit_code == 1
    assert "does not accept this key" in str(refused.output) + str(refused.exception)
    assert "sk-wrong" not in refused.output + str(refused.exception)

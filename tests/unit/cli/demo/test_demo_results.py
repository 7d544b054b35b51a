"""The demo's checks find what is missing, and its text is the standard library's."""

import signal
from pathlib import Path
from typing import Any, NoReturn

import pytest
from openai import OpenAI
from typer.testing import CliRunner

from cli.demo import corpus, system
from cli.demo.batch import DemoBatch, faults, nearest
from cli.demo.inbox import Inbox
from cli.main import app


def _output(name: str, text: str = "yes") -> dict[str, Any]:
    body = {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    return {"custom_id": name, "response": {"status_code": 200, "body": body}, "error": None}


@pytest.fixture
def batch(tmp_path: Path) -> DemoBatch:
    """Two requests, both answered."""
    whole = DemoBatch("chats", "batch_1", {"a": {}, "b": {}}, tmp_path)
    whole.outputs = [_output("a"), _output("b")]
    whole.job = {
        "status": "completed",
        "errors": None,
        "progress": {"total": 2, "completed": 2, "failed": 0},
        "usage": {"input_tokens": 6, "output_tokens": 4},
    }
    return whole


@pytest.fixture
def inbox() -> Inbox:
    mail = Inbox(OpenAI(api_key="none", base_url="http://127.0.0.1:9"))
    mail.events["batch_1"] = "batch.completed"
    return mail


def test_complete_batch_has_no_fault(batch: DemoBatch, inbox: Inbox) -> None:
    assert list(faults([batch], inbox)) == []


def test_each_missing_thing_is_a_fault(batch: DemoBatch, inbox: Inbox) -> None:
    batch.outputs.pop()
    inbox.events.clear()

    told = "\n".join(faults([batch], inbox))

    assert "1 requests have no result, b for one" in told
    assert "its lines used" in told
    assert "no verified webhook batch.completed came (none)" in told


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (_output("a"), "1 results are there twice or were not asked for, a for one"),
        (_output("c"), "1 results are there twice or were not asked for, c for one"),
        ({"custom_id": "b", "response": None, "error": {"code": "batch_expired"}}, "1 requests failed"),
    ],
)
def test_results_that_should_not_be_there_are_faults(
    batch: DemoBatch, inbox: Inbox, extra: dict[str, Any], words: str
) -> None:
    batch.outputs.append(extra)

    assert words in "\n".join(faults([batch], inbox))


def test_empty_answer_and_refused_webhook_are_faults(batch: DemoBatch, inbox: Inbox) -> None:
    batch.outputs[1] = _output("b", text=" ")
    inbox.use("whsec_" + "A" * 32)

    assert inbox.receive(b"{}", {"webhook-id": "1"}) == 400
    assert list(faults([batch], inbox)) == [
        "chats: 1 answers are empty, b for one",
        "1 webhooks could not be verified",
    ]


def test_nearest_is_the_vector_that_points_the_same_way() -> None:
    among = {"east": [2.0, 0.0], "north": [0.0, 1.0], "west": [-1.0, 0.0]}

    assert nearest([1.0, 0.1], among, 2)[0][1] == "east"
    assert [name for _, name in nearest([1.0, 0.1], among, 3)] == ["east", "north", "west"]


@pytest.mark.verify
def test_docstrings_are_many_and_each_of_its_own() -> None:
    found = corpus.docstrings(600)

    assert len({one.name for one in found}) == 600
    assert {"csv.Sniffer", "statistics.mean"} <= {one.name for one in found}
    assert corpus.docstrings(600) == found


def test_lines_have_what_a_batch_needs() -> None:
    lines = corpus.embeddings(corpus.docstrings(20), "m")

    assert len({line["custom_id"] for line in lines}) == len(lines) == 20 + len(corpus.TOPICS) + len(corpus.QUESTIONS)
    assert all(line["url"] == "/v1/embeddings" and line["body"]["model"] == "m" for line in lines)


@pytest.mark.verify
def test_the_demo_answers_to_openais_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def running(_path: Path, options: list[str], _environment: dict[str, str], _port: int) -> NoReturn:
        asked.extend(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(system, "running", running)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    done = CliRunner().invoke(app, ["demo", "--data-dir", str(tmp_path), "--no-vllm"])

    assert asked == ["--no-vllm", "--openai-aliases"], done.output

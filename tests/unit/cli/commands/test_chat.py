"""`nightmill chat` against a server that streams what it is told to."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner, Result

from cli.main import app

PHASES = ("importing vLLM", "importing vLLM", "reading the weights")


class Chat(BaseHTTPRequestHandler):
    """Answers every chat with three words, and ends it as the model's name says."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        if body["model"] == "slow" and len(self.asked) <= len(PHASES):
            message = f"The model 'slow' is loading ({PHASES[len(self.asked) - 1]}), {len(self.asked)} s so far."
            error = {"message": f"{message} Ask again in a moment.", "code": "model_loading"}
            self._answer(503, "application/json", json.dumps({"error": error}).encode())
        elif body["model"] == "unknown":
            self._answer(404, "application/json", json.dumps({"error": {"message": "There is no model."}}).encode())
        elif body.get("stream"):
            self._answer(200, "text/event-stream", b"".join(_events(body["model"])))
        else:
            message = {"role": "assistant", "content": "one two three"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            whole = {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice]}
            self._answer(200, "application/json", json.dumps(whole).encode())

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, *_: object) -> None:
        """Print nothing."""


def _events(reason: str) -> Iterator[bytes]:
    for word, ended in (("one ", None), ("two ", None), ("three", None), ("", reason)):
        choice = {"index": 0, "delta": {"content": word}, "finish_reason": ended}
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


@pytest.fixture
def url() -> Iterator[str]:
    Chat.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Chat) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ask(url: str, *words: str, given: str = "") -> Result:
    return CliRunner().invoke(app, ["chat", *words, "--url", url, "--api-key", "k"], input=given)


def test_an_answer_is_printed_as_it_streams(url: str) -> None:
    done = ask(url, "Count to three.", "-m", "stop", "--system", "Be brief.", "--max-tokens", "9")

    assert (done.exit_code, done.stdout) == (0, "one two three\n")
    [asked] = Chat.asked
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    assert (asked["stream"], asked["max_completion_tokens"], "temperature" in asked) == (True, 9, False)


def test_a_question_is_read_from_standard_input(url: str) -> None:
    assert ask(url, "-", "-m", "stop", given="Count.").exit_code == 0
    assert Chat.asked[0]["messages"][-1]["content"] == "Count."


def test_json_is_the_whole_completion(url: str) -> None:
    done = ask(url, "Count.", "-m", "stop", "--json")

    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "one two three"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_chat_waits_for_loading_model_and_prints_each_phase_once(url: str, options: tuple[str, ...]) -> None:
    done = ask(url, "Count.", "-m", "slow", *options)

    assert done.exit_code == 0, done.stderr
    assert "one two three" in done.stdout
    assert done.stderr.splitlines() == [
        "The model 'slow' is loading (importing vLLM); the answer follows",
        "The model 'slow' is loading (reading the weights); the answer follows",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("Count.", "-m", "length"), "cut off at the token limit"),
        (("Count.", "-m", "unknown"), "There is no model."),
        ((" ", "-m", "stop"), "the prompt is empty"),
    ],
)
def test_failure_exits_with_error_message(url: str, words: tuple[str, ...], told: str) -> None:
    done = ask(url, *words)

    assert done.exit_code == 1
    assert told in str(done.exception)

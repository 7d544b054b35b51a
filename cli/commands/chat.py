"""`nightmill chat PROMPT`: ask a model one question."""

import sys
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Annotated, Any, TypeVar

import typer

from cli.client.server import ModelStillLoading, Server
from cli.errors import CliError
from cli.options import ServerOptions
from cli.terminal import say, show_json, text_output

T = TypeVar("T")


def chat(
    options: ServerOptions,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The question; - reads it from standard input.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model to ask.")],
    system: Annotated[str, typer.Option(help="Instructions that come before the question.")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="End the answer after this many tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 gives the likeliest answer.")] = None,
) -> None:
    """Ask a model one question and print the answer while it is written. With --json: the whole completion."""
    question = sys.stdin.read() if prompt == "-" else prompt
    if not question.strip():
        raise CliError("the prompt is empty")
    messages = [{"role": "system", "content": system}] if system else []
    given = {"max_completion_tokens": max_tokens, "temperature": temperature}
    body: dict[str, Any] = {"model": model, "messages": [*messages, {"role": "user", "content": question}]}
    body |= {name: value for name, value in given.items() if value is not None}
    server = options.server
    if options.as_json:
        show_json(_ask_until_loaded(server, lambda: server.complete(body)))
        return
    out, reason = text_output(), None
    for text, ended in _ask_until_loaded(server, lambda: _await_first(server.chat(body))):
        out.write(text)
        sys.stdout.flush()
        reason = ended or reason
    out.write("\n")
    if reason == "length":
        raise CliError("the answer was cut off at the token limit; allow more with --max-tokens")


def _await_first(pieces: Iterator[T]) -> Iterator[T]:
    """Return `pieces` when the first of them has arrived."""
    first = next(pieces, None)
    return pieces if first is None else chain([first], pieces)


def _ask_until_loaded(server: Server, ask: Callable[[], T]) -> T:
    """Return what `ask` returns. While the model loads, print each phase to standard error and ask again."""
    shown = ""
    while True:
        try:
            return ask()
        except ModelStillLoading as loading:
            phase = str(loading).rpartition(",")[0]  # without the seconds
            if phase != shown:
                shown = phase
                say(f"{phase}; the answer follows", err=True)
            threading.Event().wait(server.timings.follow_look)

"""Measure how much a project that floods the embedding model delays another one's clients; part of `bench fairness`.

The small project requests the vector of two words, and searches its vector store, alone; then again while the large
project always has three requests of 1,000 inputs in flight. A request of the small project has to wait for the end of a
forward pass of the large one, so its least delay is a few passes.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from openai import OpenAI, OpenAIError
from rich.console import Console

from bench.deployment import Deployment
from bench.vector_store import embedding_deployment
from workers.engines.model_folders import MINILM

_INPUTS, _AT_ONCE = 1000, 3
_WORDS = 150  # words of an input, about 200 tokens
_BEGIN_SECONDS = 10.0  # seconds until the flood has filled every queue

Ask = Callable[[int], object]


def measure(console: Console, asks: int, patience: float) -> None:
    """Show how long `asks` requests of each kind take; each is cancelled after `patience` seconds."""
    with tempfile.TemporaryDirectory() as name, embedding_deployment(Path(name)) as inline:
        small, big = inline.project("small").with_options(timeout=patience, max_retries=0), inline.project("big")
        kinds = {"two words": _vector_of(small), "a search": _search_of(inline, small)}
        numbers = count()  # no text twice: the second would be cached
        alone = {kind: _seconds(ask, asks, numbers, patience) for kind, ask in kinds.items()}
        with _flooded(big):
            beside = {kind: _seconds(ask, asks, numbers, patience) for kind, ask in kinds.items()}
    for kind in kinds:
        first, then = alone[kind], beside[kind]
        ratio = statistics.median(then) / statistics.median(first)
        console.print(
            f"{kind:<10} alone {statistics.median(first):6.2f} s (worst {max(first):.2f}), beside "
            f"{_AT_ONCE} x {_INPUTS} inputs {statistics.median(then):6.2f} s (worst {max(then):.2f}): {ratio:.1f} times"
        )


def _vector_of(client: OpenAI) -> Ask:
    return lambda n: client.embeddings.create(model=MINILM, input=f"word {n}")


def _search_of(inline: Deployment, client: OpenAI) -> Ask:
    store = client.vector_stores.create(name="bench", extra_body={"embedding_model": MINILM}).id
    file = client.files.create(file=("text.txt", b"A sentence that can be found."), purpose="user_data").id
    client.vector_stores.files.create(store, file_id=file)
    while client.vector_stores.files.retrieve(file, vector_store_id=store).status == "in_progress":
        threading.Event().wait(0.1)
        inline.system.check()
    return lambda n: client.vector_stores.search(store, query=f"sentence {n}")


def _seconds(ask: Ask, times: int, numbers: Iterator[int], patience: float) -> list[float]:
    """Return the seconds of each request; `patience` for one without an answer."""
    found = []
    for _ in range(times):
        began = time.monotonic()
        try:
            ask(next(numbers))
            found.append(time.monotonic() - began)
        except OpenAIError:
            found.append(patience)
    return found


@contextmanager
def _flooded(client: OpenAI) -> Iterator[None]:
    over = threading.Event()

    def flood(number: int) -> None:
        for turn in count():
            words = [f"{number} {turn} {n} " + "river " * _WORDS for n in range(_INPUTS)]
            try:
                client.embeddings.create(model=MINILM, input=words, extra_body={"cache": False})
            except OpenAIError:
                if over.wait(1.0):
                    return

    threads = [threading.Thread(target=flood, args=(number,), daemon=True) for number in range(_AT_ONCE)]
    for thread in threads:
        thread.start()
    over.wait(_BEGIN_SECONDS)
    try:
        yield
    finally:
        over.set()  # the end of the deployment ends requests in flight

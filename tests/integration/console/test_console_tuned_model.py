"""The way of a newcomer with a browser only from a file of examples to a tuned model that is better than its base.

A real trainer trains a model of random weights, which learns nothing that can be asked for. So a fake engine serves
it: each answer of the tuned model begins with the word that the examples teach, where the base echoes.
"""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, Page, expect

from jobs.db.engine import Database
from jobs.queues import Queue
from tests.support.background_thread import beside
from tests.support.browsers import PATIENCE
from tests.support.console import Console, console_of, deployed
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import InlineDeployment
from tests.support.servers import Valkey
from tests.support.system import ROOT
from tests.support.training_thread import training
from workers.engines.port import Adapter, Answer, Request
from workers.inference.consumer import InteractiveConsumer

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

BASE: Final = "tiny"
TAUGHT: Final = "Bonjour"
#: Milliseconds for an examination and a training, each of which loads large libraries in a process of its own.
EXAMINED, TRAINED = 8 * PATIENCE, 20 * PATIENCE
EXAMPLES = [
    {"messages": [{"role": "user", "content": f"Greet {n}"}, {"role": "assistant", "content": f"{TAUGHT} {n}"}]}
    for n in range(24)
]
#: A tenth of the items wants an answer that the tuned model does not give.
ITEMS = [{"item": {"question": f"Greet guest {n}", "answer": TAUGHT if n else "Hola"}} for n in range(10)]


class TaughtEngine(FakeEngine):
    """A fake engine whose answers begin with the taught word where a trained adapter is asked for."""

    async def _load(self, adapter: Adapter) -> None:
        """Accept an adapter with weights. Its probes hold for a model that computes, which this one does not."""
        assert (adapter.folder / "adapter_model.safetensors").stat().st_size > 0
        self.loads.append(adapter.name)

    async def _answer(self, request: Request) -> Answer:
        adapter = request.adapter and replace(request.adapter, name=TAUGHT)
        return await super()._answer(replace(request, adapter=adapter))


@contextmanager
def answering(inline: InlineDeployment, url: str) -> Iterator[None]:
    """Answer interactive clients with the engine that runs the batches."""
    consumer = InteractiveConsumer(inline.host, url, Queue.GENERATE)
    inline.host.call(consumer.serve())
    try:
        yield
    finally:
        inline.host.call(consumer.close()).result(30)


def tick(inline: InlineDeployment, stop: threading.Event) -> None:
    while not stop.wait(0.02):
        inline.dispatcher.tick()


@pytest.fixture
def console(browser: Browser, sqlite: Database, tmp_path: Path) -> Iterator[Console]:
    """Return a tab of a deployment that can train one small model, and serve what was trained."""
    base, models = tmp_path / BASE, tmp_path / "models.yaml"
    subprocess.run([sys.executable, "-m", "tests.support.tiny_llama", str(base)], cwd=ROOT, check=True, timeout=300)
    engine = {"engine": "vllm", "queue": Queue.GENERATE, "engine_args": {"enable_lora": True}}
    models.write_text(json.dumps({"models": {BASE: {"source": {"path": str(base)}, **engine}}}))
    valkey = Valkey(tmp_path / "valkey")
    valkey.start()
    try:
        settings = {"models_file": str(models), "streams_url": valkey.url}
        with (
            deployed(sqlite, tmp_path, TaughtEngine((BASE,)), **settings) as deployment,
            training(deployment.inline),
            answering(deployment.inline, valkey.url),
            beside(lambda stop: tick(deployment.inline, stop)),
            console_of(browser, deployment) as console,
        ):
            yield console
            assert not deployment.inline.errors
    finally:
        valkey.close()


def dropped(name: str, rows: Sequence[Any]) -> Any:
    """Return a file of JSON lines as a browser is given it."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return {"name": name, "mimeType": "application/jsonl", "buffer": content}


def tune(console: Console, tab: Page) -> str:
    """Go from the overview to a tuned model, and return its name."""
    tab.get_by_role("link", name="Fine-tuning").click()
    tab.get_by_role("link", name="New fine-tuning job").first.click()
    tab.get_by_label("Model").select_option(BASE)
    tab.get_by_label("Suffix").fill("greeter")
    tab.locator("input[type=file]").set_input_files(dropped("greetings.jsonl", EXAMPLES))
    expect(tab.get_by_label("Training file")).to_contain_text("greetings.jsonl")
    tab.get_by_role("button", name="Examine the files").click()
    create = tab.get_by_role("button", name="Create the job")
    expect(create).to_be_enabled(timeout=EXAMINED)
    console.screenshot("newcomer-examined")
    create.click()

    expect(tab.get_by_role("heading", name="greeter")).to_be_visible()
    console.screenshot("newcomer-tuning")
    playground = tab.get_by_role("link", name=re.compile("^Open in the playground: ft:.*greeter:[a-z0-9]+$"))
    expect(playground).to_be_visible(timeout=TRAINED)
    expect(tab.get_by_role("img", name="Loss: training")).to_be_visible()
    expect(tab.get_by_role("table", name="Checkpoints")).to_be_visible()
    console.inspect("newcomer-tuned")
    return str(playground.get_attribute("aria-label")).removeprefix("Open in the playground: ")


def ask(console: Console, tab: Page) -> None:
    """Open the tuned model in the playground, and go back once it has answered."""
    tab.get_by_role("link", name=re.compile("^Open in the playground: ")).first.click()
    tab.get_by_label("Question").fill("Greet me")
    tab.get_by_label("Question").press("Enter")
    expect(tab.get_by_text(re.compile(f"^{TAUGHT} "))).to_be_visible()
    console.screenshot("newcomer-asked")
    tab.go_back()


def compare(console: Console, tab: Page, tuned: str) -> None:
    """Evaluate the tuned model and then its base, and compare both."""
    tab.get_by_role("link", name=f"Evaluate {tuned}", exact=True).click()
    expect(tab.get_by_label("Model", exact=True)).to_have_value(tuned)
    tab.get_by_label("Name of the evaluation").fill("greetings")
    tab.locator("input[type=file]").set_input_files(dropped("guests.jsonl", ITEMS))
    expect(tab.get_by_label("Items", exact=True)).to_contain_text("guests.jsonl")
    console.screenshot("newcomer-evaluation")
    tab.get_by_role("button", name="Create and run").click()
    expect(tab.get_by_role("table", name="Criteria")).to_contain_text("90 %", timeout=EXAMINED)
    console.screenshot("newcomer-run")

    tab.get_by_role("button", name="Run with another model").click()
    tab.get_by_role("dialog").get_by_label("Model").select_option(BASE)
    console.screenshot("newcomer-again")
    tab.get_by_role("dialog").get_by_role("button", name="Run", exact=True).click()
    expect(tab).to_have_url(re.compile("baseline="))
    expect(tab.get_by_role("table", name="Criteria")).to_contain_text(re.compile(r"\D0 %"), timeout=EXAMINED)
    tab.get_by_role("tab", name="Comparison").click()
    expect(tab.get_by_label("Compare with").locator("option:checked")).to_contain_text(tuned)
    row = tab.get_by_role("table", name="Comparison by criterion").get_by_role("row").nth(1)
    expect(row).to_contain_text("-0.900")
    expect(row).to_contain_text(re.compile(r"-1\.000 to -0\.\d{3}"))
    console.inspect("newcomer-comparison")


def test_newcomer_trains_a_model_asks_it_and_compares_it_with_its_base(console: Console) -> None:
    tab = console.open("/")
    tuned = tune(console, tab)
    ask(console, tab)
    compare(console, tab, tuned)

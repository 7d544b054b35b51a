"""An engine that never comes up, and one that is killed with its worker again and again, in a whole deployment."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from openai import OpenAI

from tests.support import tiny_bert
from tests.support.system import StubEngine, System, eventually

pytestmark = [pytest.mark.verify, pytest.mark.timeout(400)]

GOOD, BAD = "good", "bad"
DEATHS = 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models, of which one lacks all of its files."""
    models = {}
    for name in (GOOD, BAD):
        (tmp_path / name).mkdir()
        models[name] = {"source": {"path": name}, "engine": "embed", "engine_args": {"dtype": "float32"}}
    tiny_bert.write(tmp_path / GOOD)
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
    return tmp_path


@pytest.fixture
def system(folder: Path) -> Iterator[System]:
    with StubEngine(folder, "stub-model") as chat:
        given = {
            "NIGHTMILL_VLLM_ENABLED": "false",
            "NIGHTMILL_ENGINE_URLS": chat.url,
            "NIGHTMILL_ENGINE_DEATHS": str(DEATHS),
            "NIGHTMILL_MODELS_FILE": str(folder / "models.yaml"),
        }
        system = System(folder, **given)
        try:
            system.start()
            yield system
        finally:
            system.destroy()


def served(system: System) -> set[str]:
    """Return the models that the embedding workers report to serve."""
    rows = json.loads(system.cli("workers", "--json").stdout or '{"workers": []}')["workers"]
    return {model for row in rows if row["pool"] == "embed" and row["state"] == "ready" for model in row["models"]}


def quarantined(system: System) -> list[dict[str, Any]]:
    return list(json.loads(system.cli("workers", "--json").stdout)["quarantined"])


def submit(client: OpenAI, model: str) -> str:
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/embeddings", "body": {"model": model, "input": "a bird"}}
        for n in range(3)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h").id


def test_an_engine_that_never_comes_up_is_left_alone_and_the_worker_serves_the_others(
    system: System, folder: Path
) -> None:
    eventually(lambda: served(system) == {GOOD}, 200, "the worker lives without it", every=1.0)
    starts = system.table()["embed"]["restarts"]

    with OpenAI(base_url=f"{system.url}/v1", api_key=system.api_key, timeout=60) as client:
        good, bad = submit(client, GOOD), submit(client, BAD)
        eventually(lambda: client.batches.retrieve(good).status == "completed", 60, "the other model answers")
        job = f"{system.url}/v1/jobs/{bad}"
        key = {"Authorization": f"Bearer {system.api_key}"}
        waits = lambda: httpx2.get(job, headers=key).json()["waiting_for"] == "waiting_for_model"  # noqa: E731
        eventually(waits, 60, "the job says what it waits for")

        (row,) = quarantined(system)
        explained = system.cli("explain", bad).stdout
        doctor = system.cli("doctor").stdout
        metrics = httpx2.get(f"{system.url}/metrics").text
        assert (row["model"], row["deaths"], row["trial"]) == (BAD, DEATHS, None)
        assert row["lines"], "the last lines of its log"
        for told in (explained, doctor):
            assert f"model {BAD} is quarantined until" in told
            assert f"its engine died {DEATHS} times" in told
            assert f"nightmill resume model {BAD}" in told
            assert "its log: " in told
        assert f'model="{BAD}"' in metrics
        assert starts == system.table()["embed"]["restarts"] == DEATHS - 1, "the worker is not started again for it"

        tiny_bert.write(folder / BAD)
        assert "is no longer quarantined" in system.cli("resume", "model", BAD).stdout
        eventually(lambda: client.batches.retrieve(bad).status == "completed", 90, "the job goes on")

    assert served(system) == {GOOD, BAD}
    assert quarantined(system) == []
    assert system.table()["embed"]["restarts"] == DEATHS - 1
    assert system.stop() == 0


@pytest.mark.soak
def test_repeated_worker_kills_quarantine_models_and_stops_do_not(system: System, folder: Path) -> None:
    tiny_bert.write(folder / BAD)
    system.cli("resume", "model", BAD)
    eventually(lambda: served(system) == {GOOD, BAD}, 200, "both are there", every=1.0)

    ended(system, signal.SIGKILL)
    eventually(lambda: served(system) == {GOOD, BAD}, 120, "both are there again", every=1.0)
    ended(system, signal.SIGTERM)  # as it is told: no death
    eventually(lambda: served(system) == {GOOD, BAD}, 120, "both are there again", every=1.0)
    assert quarantined(system) == []

    ended(system, signal.SIGKILL)

    eventually(lambda: len(quarantined(system)) == 2, 60, "nobody knows which of them it was")
    assert {(row["model"], row["deaths"]) for row in quarantined(system)} == {(GOOD, DEATHS), (BAD, DEATHS)}
    assert system.stop() == 0


def ended(system: System, number: int) -> None:
    """End the embedding worker, which is started again."""
    pid = system.pid("embed")
    psutil.Process(pid).send_signal(number)
    eventually(lambda: system.table().get("embed", {}).get("pid") not in (None, pid), 60, "it is started again")

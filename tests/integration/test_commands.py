"""The commands of a user, against a whole deployment with a stub engine."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from cli.errors import CliError
from cli.main import app
from cli.up import procfile
from jobs.errors import NightmillError
from jobs.webhooks.sending import new_secret
from tests.support.receiver import Receiver
from tests.support.system import MODEL, ROOT, StubEngine, System, eventually

Cli = Callable[..., "Done"]
pytestmark = [pytest.mark.verify, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("commands")
    with StubEngine(folder, MODEL, delay_ms=1) as engine:
        system = System(folder, engine_url=engine.url, embed_url=engine.url)
        try:
            system.start()
            yield system
        finally:
            system.destroy()


@dataclass(frozen=True, slots=True)
class Done:
    """Hold the output of a command and its exit code."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def cli(system: System) -> Callable[..., Done]:
    """Run a command in this process, which is faster: the SDK is imported once."""

    def run(*words: str, given: bytes = b"") -> Done:
        done = CliRunner().invoke(app, [*words, "--data-dir", str(system.data)], input=given)
        if isinstance(done.exception, CliError | NightmillError):
            return Done(1, done.stdout, f"{done.stderr}nightmill: {done.exception}\n")
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return Done(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def requests(tmp_path: Path) -> Callable[..., Path]:
    def write(*prompts: str, **body: Any) -> Path:
        path = tmp_path / "requests.jsonl"
        with path.open("w") as handle:
            for number, prompt in enumerate(prompts):
                messages = [{"role": "user", "content": prompt}]
                line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions"}
                print(json.dumps({**line, "body": {"model": MODEL, "messages": messages, **body}}), file=handle)
        return path

    return write


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_submitted_file_becomes_batch_with_answers_in_same_folder(cli: Cli, requests: Callable[..., Path]) -> None:
    source = requests("one", "two", "three")

    done = cli("submit", str(source))

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("batch_")
    assert f"3 requests for {MODEL}" in done.stderr
    answers = _lines(source.with_name("requests.output.jsonl"))
    assert {line["custom_id"] for line in answers} == {"r0", "r1", "r2"}


def test_requests_from_standard_input_become_a_batch_and_json_is_the_job_that_ended(
    cli: Cli, requests: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    done = cli("submit", "-", "--json", given=requests("one", "two").read_bytes())

    job = json.loads(done.stdout)
    assert (job["state"], job["progress"]["completed"]) == ("succeeded", 2)
    assert {line["custom_id"] for line in _lines(tmp_path / "stdin.output.jsonl")} == {"r0", "r1"}
    [watched] = [json.loads(cli("watch", job["id"], "--json").stdout)]
    assert watched["id"] == job["id"]
    assert json.loads(cli("explain", job["id"], "--json").stdout)["job"]["id"] == job["id"]
    assert json.loads(cli("graph", job["id"], "--json").stdout)["job_id"] == job["id"]


def test_a_question_is_answered_at_once(cli: Cli) -> None:
    streamed, whole = cli("chat", "hello", "-m", MODEL), cli("chat", "hello", "-m", MODEL, "--json")

    assert streamed.returncode == 0, streamed.stderr
    assert streamed.stdout.strip() == json.loads(whole.stdout)["choices"][0]["message"]["content"]


def test_jobs_are_filtered_by_batch_metadata(cli: Cli, requests: Callable[..., Path]) -> None:
    done = cli("submit", str(requests("one")), "--metadata", "run=seven", "--priority", "5", "--window", "90m")

    job = json.loads(cli("jobs", "--metadata", "run=seven", "--json").stdout)

    assert job["id"] == done.stdout.strip()
    assert (job["priority"], job["completion_window"], job["state"]) == (5, "90m", "succeeded")
    assert job["id"] in cli("jobs", "--state", "succeeded", "--kind", "generation").stdout
    assert job["id"] not in cli("jobs", "--metadata", "run=eight").stdout


def test_a_file_that_would_fail_creates_nothing(cli: Cli, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n')

    done = cli("submit", str(bad), "--metadata", "run=bad")

    assert done.returncode == 1
    assert "line 1: " in done.stderr
    assert "nothing was created" in done.stderr
    assert cli("jobs", "--metadata", "run=bad", "--json").stdout == ""


def test_failed_lines_are_written_separately_and_can_be_retried(cli: Cli, requests: Callable[..., Path]) -> None:
    source = requests("one", "two !500")

    done = cli("submit", str(source), "--output", str(source.with_name("out.jsonl")))
    override = {"messages": [{"role": "user", "content": "mended"}]}
    again = cli("retry", done.stdout.strip(), "--override", json.dumps(override))
    watched = cli("watch", again.stdout.strip(), "--output", str(source.with_name("again.jsonl")))

    assert "1 completed, 1 failed of 2" in done.stderr
    assert [line["custom_id"] for line in _lines(source.with_name("out.errors.jsonl"))] == ["r1"]
    assert watched.returncode == 0, watched.stderr
    assert [line["custom_id"] for line in _lines(source.with_name("again.jsonl"))] == ["r1"]


def test_watch_of_cancelled_job_exits_with_code_1(cli: Cli, requests: Callable[..., Path]) -> None:
    job = cli("submit", str(requests(*["!slow"] * 400)), "--no-wait").stdout.strip()

    cancelled = cli("cancel", job)
    watched = cli("watch", job)
    twice = cli("cancel", job)

    assert cancelled.stdout.split()[0] == job
    assert watched.returncode == 1
    assert f"nightmill: {job} cancelled" in watched.stderr
    assert twice.returncode in {0, 1}


def test_ctrl_c_ends_the_watching_and_not_the_job(system: System, cli: Cli, requests: Callable[..., Path]) -> None:
    job = cli("submit", str(requests(*["!slow"] * 65)), "--no-wait", "--window", "2h").stdout.strip()
    command = [sys.executable, "-m", "cli", "watch", job, "--data-dir", str(system.data)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stderr is not None
        first = watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        rest = watching.stderr.read()

    assert job in first
    assert watching.returncode == 130
    assert f"{job} goes on: " in rest
    assert cli("watch", job).returncode == 0


def test_listener_forwards_events_of_fresh_deployment(
    system: System, cli: Cli, requests: Callable[..., Path], tmp_path: Path
) -> None:
    """No endpoint is registered, and the server may connect to no private address."""
    output, secret = tmp_path / "heard", new_secret()
    command = [sys.executable, "-u", "-m", "cli", "webhooks", "listen", "--count", "1", "--secret", secret]
    with Receiver() as receiver, output.open("w") as heard:
        command += ["--forward-to", receiver.url("ok"), "--data-dir", str(system.data)]
        listener = subprocess.Popen(command, cwd=ROOT, stdout=heard, stderr=heard)
        eventually(lambda: "listening to the events" in output.read_text(), 30, "the listener listens")

        job = cli("submit", str(requests("one")), "--no-wait").stdout.strip()

        assert listener.wait(60) == 0
        (received,) = receiver.of("ok")
    assert received.verify(secret)["data"] == {"id": job}
    assert f"batch.completed {job} " in output.read_text()
    assert secret not in output.read_text(), "it is known to who gave it, and what is printed may be a log"


def test_a_new_key_opens_the_server_until_it_is_revoked(cli: Cli) -> None:
    key = cli("keys", "create", "--project", "blue").stdout.strip()
    listed = map(json.loads, cli("keys", "list", "--json").stdout.splitlines())
    (mine,) = (one for one in listed if one["project"] == "blue")

    before = cli("jobs", "--api-key", key)
    cli("keys", "revoke", mine["id"])

    assert before.returncode == 0
    eventually(lambda: "does not accept this key" in cli("jobs", "--api-key", key).stderr, 6, "the key is refused")


def test_the_doctor_finds_a_running_deployment_sound(cli: Cli) -> None:
    done = cli("doctor", "--json")

    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one for one in findings if one["health"] == "broken"] == []
    assert {f"process {line.name}" for line in _services()} <= {one["check"] for one in findings}


def test_the_process_table_is_the_procfile_and_the_broker(system: System) -> None:
    assert [*system.table()] == ["broker", *(line.name for line in _services())]


def test_the_audit_log_of_all_this_is_intact(cli: Cli) -> None:
    done = cli("audit", "verify")

    assert done.returncode == 0, done.stdout
    assert "the audit log is intact" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("watch", "batch_none"), "No job found"),
        (("cancel", "batch_none"), "No job found"),
        (("retry", "batch_none"), "No job found"),
        (("jobs", "--state", "bogus"), "Invalid value"),
        (("jobs", "--url", "http://127.0.0.1:9", "--api-key", "nm_other"), "no server answers"),
        (("jobs", "--url", "http://127.0.0.1:9"), "is the URL right?"),
        (("submit", "/nowhere.jsonl"), "cannot read /nowhere.jsonl"),
        (("submit", os.devnull), "is empty"),
        (("jobs", "--metadata", "run"), "write it as name=value"),
        (("retry", "batch_none", "--override", "{"), "no JSON"),
    ],
)
def test_command_error_is_reported_on_stderr(cli: Cli, words: tuple[str, ...], told: str) -> None:
    done = cli(*words)

    assert done.returncode == 1
    assert told in done.stderr


def test_command_error_is_single_line_without_traceback(system: System) -> None:
    done = system.cli("watch", "batch_none")

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "nightmill: No job found with id 'batch_none'. (job_id)\n"


def _services() -> list[procfile.Line]:
    return [line for line in procfile.load(procfile.PACKAGED) if line.name != procfile.RELEASE]


def test_joined_results_carry_their_inputs(cli: Cli, requests: Callable[..., Path], tmp_path: Path) -> None:
    job = cli("submit", str(requests("one", "!500 two", "three"))).stdout.strip()
    table = tmp_path / "table.csv"

    raw = cli("results", job)
    joined = cli("results", job, "--join")
    done = cli("results", job, "--format", "csv", "--output", str(table))

    assert raw.returncode == joined.returncode == done.returncode == 0, done.stderr
    assert {json.loads(line)["custom_id"] for line in raw.stdout.splitlines()} == {"r0", "r1", "r2"}
    rows = [json.loads(line) for line in joined.stdout.splitlines()]
    assert [(row["custom_id"], row["prompt"]) for row in rows] == [("r0", "one"), ("r1", "!500 two"), ("r2", "three")]
    assert [row["answer"] is None for row in rows] == [False, True, False]
    assert len(list(csv.reader(table.read_text().splitlines()))) == 4


def test_embeddings_in_a_table_are_vectors(cli: Cli, tmp_path: Path) -> None:
    source, table = tmp_path / "requests.jsonl", tmp_path / "table.parquet"
    line = {"custom_id": "r0", "method": "POST", "url": "/v1/embeddings", "body": {"model": MODEL, "input": "cat"}}
    source.write_text(json.dumps(line) + "\n")
    job = cli("submit", str(source)).stdout.strip()

    done = cli("results", job, "--format", "parquet", "--output", str(table))

    assert done.returncode == 0, done.stderr
    assert len(parquet.read_table(table)["answer"].to_pylist()[0]) == 8


def test_a_job_explains_itself(cli: Cli, requests: Callable[..., Path]) -> None:
    job = cli("submit", str(requests("one", "!500 two", "!500 three"))).stdout.strip()

    told = cli("explain", job).stdout

    assert "succeeded, 3 of 3 done" in told
    assert "answers ended by stop (1)" in told
    assert re.search(r"2 x \w+", told), told
    assert "r1: The stub answers 500, as it was asked to." in told
    assert f"nightmill retry {job}" in told


def test_a_rejected_file_is_explained_by_line(cli: Cli, requests: Callable[..., Path]) -> None:
    job = cli("submit", str(requests("one", stream=True)), "--no-check").stdout.strip()

    told = cli("explain", job).stdout

    assert "failed" in told
    assert "1 x streaming_unsupported" in told
    assert "line 1: " in told


def test_sample_estimates_duration_of_whole_batch(cli: Cli, requests: Callable[..., Path]) -> None:
    done = cli("submit", str(requests(*(f"number {n}" for n in range(50)))), "--sample", "5")

    assert done.returncode == 0, done.stderr
    assert "all 50 requests, going by these 5: about " in done.stdout


def test_run_batch_writes_single_file_in_input_order(cli: Cli, requests: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    paths = "-i", str(requests("one", "!500 two", "three")), "-o", str(out)
    done = cli("run-batch", *paths, "--model", MODEL)
    refused = cli("run-batch", *paths, "--model", MODEL, "--enforce-eager")
    unknown = cli("run-batch", *paths, "--model", "nobody")

    assert done.returncode == 0, done.stderr
    assert [line["custom_id"] for line in _lines(out)] == ["r0", "r1", "r2"]
    assert "--enforce-eager: the deployment has its engines already" in refused.stderr
    assert f"asks for the model '{MODEL}', not for 'nobody'" in unknown.stderr


def test_a_schedule_is_made_shown_and_removed(cli: Cli, requests: Callable[..., Path]) -> None:
    made = cli("submit", str(requests("one")), "--every", "0 3 * * *", "--timezone", "Europe/Zurich").stdout.strip()

    shown = cli("schedules", "list").stdout
    paused, resumed = cli("schedules", "pause", made).stdout, cli("schedules", "resume", made).stdout
    gone = cli("schedules", "remove", made)

    assert made in shown
    assert "0 3 * * * Europe/Zurich" in shown
    assert (f"{made} paused" in paused, f"{made} active" in resumed) == (True, True)
    assert gone.returncode == 0
    assert made not in cli("schedules", "list").stdout


def test_a_batch_that_begins_later_waits_and_says_so(cli: Cli, requests: Callable[..., Path]) -> None:
    job = cli("submit", str(requests("one")), "--at", "2100-01-01T00:00", "--no-wait")

    assert job.returncode == 1
    assert "begins within" in job.stderr


def test_the_workers_leave_the_processor_to_the_api_first(system: System) -> None:
    ours = os.nice(0)
    names = ("web", "dispatcher", "cpu", "gpu")

    found = {name: {process.nice() for process in system.tree(name)} for name in names}

    nicer = min(ours + 10, 19)
    assert found == {"web": {ours}, "dispatcher": {ours}, "cpu": {nicer}, "gpu": {nicer}}

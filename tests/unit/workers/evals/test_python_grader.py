"""Python graders in their sandbox: what the code may do, and each class of escape that it may try."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from jobs.evals.availability import deployment_of
from jobs.evals.graders import parse_grader
from jobs.evals.grading import GradingError, Ports, grade
from jobs.evals.samples import sample_from_text
from jobs.fleet.models_file import Registry
from jobs.settings import Settings
from jobs.timings import Timings
from workers.evals.python_grader import PythonSandbox, look_for_sandbox
from workers.runtime.context import Standing, build
from workers.sandbox.confinement import FORK_PARTS
from workers.tasks import CPU_POOL

ITEM = {"answer": 42, "nested": {"list": [1, 2]}}
SAMPLE = {"output_text": "forty-two", "choices": []}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[PythonSandbox]:
    made = PythonSandbox(Timings(python_grader=60.0))
    yield made
    made.close()


def body(code: str) -> str:
    """Return a source whose `grade` runs the code, which sees `sample` and `item`."""
    return "import ctypes, os, signal, socket, sys\ndef grade(sample, item):\n" + indent(code, "    ")


def error_of(sandbox: PythonSandbox, source: str) -> str:
    with pytest.raises(GradingError) as raised:
        sandbox.run("proj_1", source, ITEM, SAMPLE)
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


def test_nothing_of_one_item_is_there_for_the_next(sandbox: PythonSandbox) -> None:
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


def test_a_schema_that_is_none_or_leads_elsewhere_is_an_error(sandbox: PythonSandbox) -> None:
    ports = Ports(run_python=partial(sandbox.run, "proj_1"))
    for schema in ({"type": "nothing"}, {"$ref": "http://127.0.0.1:9/schema"}):
        definition = {"type": "json_schema", "name": "valid", "input": "{{ sample.output_text }}", "schema": schema}
        result = grade(parse_grader(definition), {}, sample_from_text("{}"), {}, ports)
        assert result.error is not None
        assert (result.score, result.error.code) == (None, "other_error")


# Escapes, a class each: what is tried, and the error that it meets.

PERMISSION = "PermissionError"
#: Calls the kernel past Python's own checks; the call fails with EPERM.
RAW = (
    "libc = ctypes.CDLL(None, use_errno=True)\nresult = libc.syscall({call})\n"
    "raise OSError(ctypes.get_errno(), 'no') if result < 0 else SystemError('done')"
)
ESCAPES: dict[str, tuple[str, str]] = {
    # files
    "read a file of the host": ("open('/etc/passwd').read()", PERMISSION),
    "read the data folder": ("open({key!r}).read()", "FileNotFoundError"),
    "list the root folder": ("os.listdir('/')", PERMISSION),
    "list a home folder": ("os.listdir('/root')", PERMISSION),
    "write beside its own folder": ("open('/var/tmp/x', 'w')", PERMISSION),
    "write into the installed packages": ("open(os.__file__, 'a')", PERMISSION),
    "remove a file of the host": ("os.unlink({key!r})", "FileNotFoundError"),
    "link to a file of the host": ("os.symlink({key!r}, '/tmp/l')\nopen('/tmp/l').read()", "FileNotFoundError"),
    "make a device": ("os.mknod('/tmp/d', 0o20666, os.makedev(1, 1))", PERMISSION),
    "change the mode of a file": ("os.chmod(os.__file__, 0o777)", PERMISSION),
    "reach open descriptors": ("assert sum(not is_closed(n) for n in range(64)) <= 6", "done score"),
    "climb out with chroot": ("os.chroot('/tmp')", PERMISSION),
    # /proc and other processes
    "read its own memory by /proc": ("open('/proc/self/mem', 'rb')", PERMISSION),
    "read the environment of its parent": ("open('/proc/1/environ').read()", PERMISSION),
    "list processes": ("os.listdir('/proc')", PERMISSION),
    "signal its parent": ("os.kill(os.getppid(), signal.SIGKILL)", PERMISSION),
    "signal everybody": ("os.kill(-1, signal.SIGKILL)", PERMISSION),
    "signal its process group": ("os.killpg(0, signal.SIGKILL)", PERMISSION),
    "signal a process of the host": ("os.kill({victim}, signal.SIGKILL)", PERMISSION),
    "trace its parent": (RAW.format(call="101, 16, os.getppid(), 0, 0"), PERMISSION),
    "read the memory of its parent": (RAW.format(call="310, os.getppid(), 0, 0, 0, 0, 0"), PERMISSION),
    "open its parent": ("os.pidfd_open(os.getppid())", PERMISSION),
    "limit its parent": ("import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CORE)", PERMISSION),
    "raise its own limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "ValueError|PermissionError",
    ),
    # new processes and programs
    "fork": ("os.fork()", PERMISSION),
    "fork past Python": (RAW.format(call="57"), PERMISSION),
    "start a program": ("import subprocess\nsubprocess.run(['/bin/true'])", PERMISSION),
    "become a program": ("os.execv('/bin/true', ['true'])", PERMISSION),
    "run a program that it wrote": (
        "open('/tmp/p', 'w').write('#!/bin/sh')\nos.execv('/tmp/p', ['p'])", PERMISSION,
    ),
    "run a program from memory": (RAW.format(call="319, b'x', 0"), PERMISSION),
    "use processes of multiprocessing": (
        "import multiprocessing\nmultiprocessing.Process(target=int).start()", PERMISSION,
    ),
    "start more threads than it may": (
        "import threading as t\nw = t.Event()\nfor n in range(100): t.Thread(target=w.wait, daemon=True).start()",
        "RuntimeError",
    ),
    # the network
    "connect to this host": ("socket.create_connection(('127.0.0.1', {port}))", PERMISSION),
    "connect by IPv6": ("socket.socket(socket.AF_INET6)", PERMISSION),
    "connect to a Unix socket": ("socket.socket(socket.AF_UNIX).connect({socket!r})", PERMISSION),
    "send packets": ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", PERMISSION),
    "look up a name": ("socket.getaddrinfo('example.com', 80)", "gaierror|PermissionError"),
    "ask the kernel by netlink": ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", PERMISSION),
    # namespaces and mounts
    "enter new namespaces": (RAW.format(call="272, 0x10000000"), PERMISSION),
    "mount a file system": (RAW.format(call="165, b'tmpfs', b'/tmp', b'tmpfs', 0, 0"), PERMISSION),
    "unmount its own folder": (RAW.format(call="166, b'/tmp', 0"), PERMISSION),
    # the kernel
    "use io_uring": (RAW.format(call="425, 8, 0"), PERMISSION),
    "load a BPF program": (RAW.format(call="321, 0, 0, 0"), PERMISSION),
    "read the keys of the kernel": (RAW.format(call="250, 0, 0, 0, 0, 0"), PERMISSION),
    "set the clock": ("import time\ntime.clock_settime(time.CLOCK_REALTIME, 0)", PERMISSION),
    "attach shared memory of others": (RAW.format(call="29, 1, 4096, 0o1666"), PERMISSION),
    "become root": ("os.setuid(0)", "PermissionError|Invalid argument"),
    # memory, disk and time
    "take more memory than it may": ("bytearray(3 << 30)", "MemoryError"),
    "fill its disk": (
        "with open('/tmp/f', 'wb') as f:\n    while True: f.write(bytes(1 << 20))", "OSError",
    ),
    "make files without end": (
        "n = 0\nwhile True:\n    open(f'/tmp/{{n}}', 'w').close()\n    n += 1", "OSError",
    ),
    "open files without end": ("held = [open('/tmp/f', 'w') for _ in range(100)]", "OSError"),
    "end without a score": ("os._exit(0)", "ended without a score"),
    "crash": ("ctypes.string_at(0)", "SIGSEGV"),
    "kill itself": ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
}  # fmt: skip


class Scene:
    """Hold what an escape could reach on this host: a secret, a process, a port and a socket."""

    def __init__(self, folder: Path) -> None:
        self.key = folder / "operator.key"
        self.key.write_text("secret")
        self.victim = subprocess.Popen(["sleep", "600"])
        self.tcp, self.unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
        self.unix.bind(str(folder / "s"))
        self.unix.listen()
        self.facts = {
            "key": str(self.key), "victim": self.victim.pid, "port": self.tcp.getsockname()[1],
            "socket": str(folder / "s"),
        }  # fmt: skip

    def close(self) -> None:
        self.tcp.close()
        self.unix.close()
        self.victim.kill()
        self.victim.wait()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("scene"))
    yield made
    made.close()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are those of x86_64")
@pytest.mark.parametrize("name", ESCAPES)
def test_an_escape_is_refused(sandbox: PythonSandbox, scene: Scene, name: str) -> None:
    code, expected = ESCAPES[name]
    helper = "import os\ndef is_closed(n):\n    try: os.fstat(n)\n    except OSError: return True\n"
    source = helper + body(code.format(**scene.facts) + "\nraise SystemError('done score')")
    error = error_of(sandbox, source)
    assert any(words in error for words in expected.split("|")), error
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
        hidden = "os.closerange(3, 64)\nimport time\ntime.sleep(600)"
        assert "SIGKILL" in error_of(sandbox, body(hidden))
    finally:
        sandbox.close()


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

        def begin(self) -> tuple[str, ...]:
            return ("landlock",)

        def end(self) -> None: ...

    monkeypatch.setattr("workers.evals.python_grader.Child", Incomplete)
    with pytest.raises(GradingError, match="landlock") as raised:
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
    context = build(config, CPU_POOL)
    try:
        for look, runs in ((False, False), (True, True)):
            if look:
                look_for_sandbox(context.standing)
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
    standing = Standing()
    look_for_sandbox(standing)
    assert standing.sandbox_lacks == lacks
    assert "grader_sandbox_unavailable" in caplog.text

"""The child process: the real one, and one that misbehaves in every way."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from jobs.retrieval.documents import Document
from jobs.settings import Settings
from tests.unit.workers.retrieval.parsing import samples
from workers.retrieval.parsing import parser as parsing
from workers.retrieval.parsing.parser import STARTS, Cutting, FileRefused, Interrupted, Parser, ParserLimits, limits_of
from workers.sandbox import child as process
from workers.sandbox.child import Child
from workers.sandbox.confinement import Policy

HERE = Path(__file__)
TESTS = HERE.parents[4]
ROGUE = Policy("tests.unit.workers.retrieval.parsing.rogue", readable=(str(TESTS),))
LIMITS = ParserLimits(seconds=20, cpu_seconds=10, memory_bytes=256 << 20)


@pytest.fixture
def cutting() -> Cutting:
    return Cutting(samples.word_piece(), 100, 20)


@pytest.fixture
def real() -> Iterator[Parser]:
    yield from closing(Parser(LIMITS))


@pytest.fixture
def rogue() -> Iterator[Parser]:
    yield from closing(Parser(LIMITS, ROGUE))


def closing(parser: Parser) -> Iterator[Parser]:
    """Close a parser, and check that no process, no zombie and no pipe is left."""
    pipes, children = open_files(), psutil.Process().children()
    yield parser
    parser.close()
    assert psutil.Process().children() == children
    assert open_files() == pipes


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (it counts itself both times)


def refused(parser: Parser, name: str, cutting: Cutting) -> FileRefused:
    with pytest.raises(FileRefused) as no:
        parser.parse(HERE, name, cutting)
    return no.value


def pid(parser: Parser, cutting: Cutting) -> str | None:
    return parser.parse(HERE, "good", cutting).title


# The real child


def test_single_child_parses_files_of_all_formats(real: Parser, cutting: Cutting, tmp_path: Path) -> None:
    files = {
        "a.pdf": samples.pdf([["Page one."], ["Page two."]]),
        "a.html": b"<html><body><h1>Head</h1><p>Text.</p>",
        "a.md": b"# Head\n\nText.",
        "a.txt": "שלום 😀 text".encode("utf-16"),
    }
    found: dict[str, Document] = {}
    for name, data in files.items():
        (tmp_path / "stored").write_bytes(data)
        found[name] = real.parse(tmp_path / "stored", name, cutting)

    assert found["a.pdf"].chunks[0].page == 1
    assert found["a.html"].piece(0) == "Head\n\nText."
    assert found["a.md"].chunks[0].section == ("Head",)
    assert found["a.txt"].piece(0) == "שלום 😀 text"


@pytest.mark.usefixtures("kreuzberg")
def test_library_of_office_works_within_the_limits(real: Parser, cutting: Cutting, tmp_path: Path) -> None:
    (tmp_path / "stored").write_bytes(samples.docx(samples.paragraph("Word &amp; more.")))

    assert [real.parse(tmp_path / "stored", "a", cutting).text for _ in range(2)] == ["Word & more."] * 2


def test_the_real_child_is_confined(real: Parser, cutting: Cutting, tmp_path: Path) -> None:
    (tmp_path / "stored").write_text("Text.")
    before = set(psutil.Process().children())
    real.parse(tmp_path / "stored", "a.txt", cutting)
    [child] = [one for one in set(psutil.Process().children()) - before if "workers.sandbox" in one.cmdline()]
    status = Path(f"/proc/{child.pid}/status").read_text()

    assert {"NoNewPrivs:\t1", "Seccomp:\t2", "CapPrm:\t0000000000000000"} <= set(status.splitlines())


def test_refusal_says_nothing_of_path_or_content(real: Parser, cutting: Cutting, tmp_path: Path) -> None:
    (tmp_path / "stored").write_bytes(b"%PDF-1.4 secret")

    with pytest.raises(FileRefused) as no:
        real.parse(tmp_path / "stored", "a.pdf", cutting)

    assert no.value.code == "invalid_file"
    assert "secret" not in no.value.message
    assert str(tmp_path) not in no.value.message


def test_file_or_tokenizer_that_is_missing_is_the_servers_fault(real: Parser, cutting: Cutting, tmp_path: Path) -> None:
    with pytest.raises(FileRefused) as no:
        real.parse(tmp_path / "none", "a.txt", cutting)
    assert no.value.code == "server_error"
    assert "file" in no.value.message
    (tmp_path / "stored").write_bytes(b"text")
    with pytest.raises(FileRefused) as no:
        real.parse(tmp_path / "stored", "a.txt", replace(cutting, tokenizer=tmp_path / "none.json"))
    assert no.value.code == "server_error"
    assert "tokenizer" in no.value.message


def test_memory_that_a_file_needs_is_bounded(cutting: Cutting, tmp_path: Path) -> None:
    (tmp_path / "stored").write_bytes(b"word " * 8_000_000)
    for parser in closing(Parser(replace(LIMITS, memory_bytes=48 << 20))):
        with pytest.raises(FileRefused) as no:
            parser.parse(tmp_path / "stored", "a.txt", cutting)

    assert no.value.code == "invalid_file"
    assert "48 MiB of memory" in no.value.message


def test_too_many_tokens_are_refused(cutting: Cutting, tmp_path: Path) -> None:
    (tmp_path / "stored").write_bytes(b"word " * 9_000)
    for parser in closing(Parser(replace(LIMITS, tokens=5000))):
        with pytest.raises(FileRefused, match="more than 5000 tokens"):
            parser.parse(tmp_path / "stored", "a.txt", cutting)


# One that misbehaves


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("eat", "256 MiB of memory"),
        ("crash", "256 MiB of memory and 10 seconds of CPU time"),
        ("leave", "256 MiB of memory and 10 seconds of CPU time"),
    ],
)
def test_child_that_dies_refuses_its_file_and_not_the_next(
    rogue: Parser, cutting: Cutting, name: str, limit: str
) -> None:
    no = refused(rogue, name, cutting)

    assert no.code == "invalid_file"
    assert limit in no.message
    assert rogue.parse(HERE, "good", cutting).text == "good text"


def test_child_that_hangs_is_killed_in_time(cutting: Cutting) -> None:
    for parser in closing(Parser(replace(LIMITS, seconds=0.5), ROGUE)):
        no = refused(parser, "hang", cutting)

        assert "limits of 0.5 seconds" in no.message
        assert pid(parser, cutting)


def test_time_is_a_setting() -> None:
    assert limits_of(Settings(parse_seconds=600.5)) == ParserLimits(600.5, cpu_seconds=601)
    assert limits_of(Settings()) == ParserLimits(120, cpu_seconds=120)


def test_child_that_computes_for_ever_meets_the_limit_of_cpu_time_each_time(cutting: Cutting) -> None:
    for parser in closing(Parser(replace(LIMITS, cpu_seconds=1), ROGUE)):
        assert "1 seconds of CPU time" in refused(parser, "spin", cutting).message
        assert pid(parser, cutting)


def test_child_is_reused_after_good_file_and_replaced_after_bad_file(rogue: Parser, cutting: Cutting) -> None:
    first, second = pid(rogue, cutting), pid(rogue, cutting)
    refused(rogue, "leave", cutting)

    assert first == second
    assert pid(rogue, cutting) != first


def test_child_is_replaced_after_file_limit_or_memory_growth(
    rogue: Parser, cutting: Cutting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsing, "FILES", 2)
    pids = [pid(rogue, cutting) for _ in range(4)]
    rogue.parse(HERE, "grown", cutting)

    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert pid(rogue, cutting) not in pids


@pytest.mark.parametrize("name", ["bad offsets", "babble", "begins again"])
def test_answer_that_makes_no_sense_is_the_servers_fault(rogue: Parser, cutting: Cutting, name: str) -> None:
    assert refused(rogue, name, cutting).code == "server_error"
    assert pid(rogue, cutting)


def test_library_output_is_not_mistaken_for_answer(rogue: Parser, cutting: Cutting) -> None:
    assert rogue.parse(HERE, "chatter", cutting).text == "good text"


def test_child_sees_no_secret(rogue: Parser, cutting: Cutting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_SECRET", "secret")

    assert set(process.environment()) <= {*process.INHERITED_VARIABLES, *process.FIXED, "PYTHONPATH"}
    assert rogue.parse(HERE, "$NIGHTMILL_SECRET", cutting).text == "unset"


def test_child_that_is_killed_once_fails_no_file(rogue: Parser, cutting: Cutting) -> None:
    """The kernel that has no memory left kills it again; who takes down a worker, child by child, does not."""
    assert rogue.parse(HERE, "killed", cutting).text == "good text"

    assert refused(rogue, "always killed", cutting).code == "invalid_file"


@pytest.mark.parametrize(("kills", "said"), [(STARTS - 1, "good text"), (STARTS, "The parser could not be started.")])
def test_child_that_is_killed_as_it_starts_fails_no_file(
    rogue: Parser, cutting: Cutting, monkeypatch: pytest.MonkeyPatch, kills: int, said: str
) -> None:
    made: list[Child] = []

    def start(policy: Policy, kept: Sequence[str]) -> Child:
        made.append(Child(policy, kept))
        if len(made) <= kills:
            made[-1].kill()
        return made[-1]

    monkeypatch.setattr(parsing, "Child", start)

    if kills < STARTS:
        assert rogue.parse(HERE, "good", cutting).text == said
    else:
        assert refused(rogue, "good", cutting).message == said


def test_child_writes_no_file(rogue: Parser, cutting: Cutting, tmp_path: Path) -> None:
    refused(rogue, f"write:{tmp_path / 'file'}", cutting)

    assert not (tmp_path / "file").exists() or (tmp_path / "file").read_bytes() == b""


def test_child_has_no_network(rogue: Parser, cutting: Cutting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        refused(rogue, f"call:{server.getsockname()[1]}", cutting)
        with pytest.raises(TimeoutError):
            server.accept()


def test_missing_sandbox_features_are_logged(cutting: Cutting, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(process._incomplete, "warn", lambda **fields: told.append(fields))
    policy = Policy("tests.unit.workers.retrieval.parsing.networked", readable=(str(TESTS),))

    for parser in closing(Parser(LIMITS, policy)):
        assert pid(parser, cutting)

    assert told == [{"child": policy.module, "missing": ["network_namespace"]}]


def test_program_that_can_not_start_is_the_servers_fault(cutting: Cutting) -> None:
    for parser in closing(Parser(LIMITS, Policy("no.such.module"))):
        assert refused(parser, "a", cutting).code == "server_error"


# Interrupted


def test_interrupt_ends_running_parse_and_not_next_parse(rogue: Parser, cutting: Cutting) -> None:
    for _ in range(2):
        pid(rogue, cutting)
        later(rogue.interrupt)
        with pytest.raises(Interrupted):
            rogue.parse(HERE, "hang", cutting)
    rogue.interrupt()

    assert pid(rogue, cutting)


def test_interrupt_while_the_child_starts(cutting: Cutting) -> None:
    for parser in closing(Parser(LIMITS, ROGUE)):
        threading.Timer(0.01, parser.interrupt).start()
        with pytest.raises(Interrupted):
            parser.parse(HERE, "hang", cutting)


def test_interrupt_that_comes_as_the_child_starts_is_heard_by_it(
    monkeypatch: pytest.MonkeyPatch, cutting: Cutting
) -> None:
    """The interrupter finds no child to kill yet."""

    class Late(Child):
        def __init__(self, policy: Policy, kept: Sequence[str]) -> None:
            super().__init__(policy, kept)
            parser.interrupt()

    for parser in closing(Parser(LIMITS, ROGUE)):
        with monkeypatch.context() as patch:
            patch.setattr(parsing, "Child", Late)
            with pytest.raises(Interrupted):
                parser.parse(HERE, "hang", cutting)
        assert pid(parser, cutting)


def test_ended_child_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill nothing: the number of the child may be that of another process by now."""
    killed: list[int] = []
    child = Child(ROGUE)
    child.end()
    monkeypatch.setattr(os, "killpg", lambda number, _signal: killed.append(number))

    child.kill()

    assert killed == []


def later(work: Callable[[], None]) -> None:
    threading.Timer(0.2, work).start()


def test_child_dies_with_its_parent() -> None:
    script = (
        "from pathlib import Path; from workers.retrieval.parsing.parser import *\n"
        "from workers.sandbox.confinement import Policy\n"
        f"p = Parser(ParserLimits(), Policy({ROGUE.module!r}, {ROGUE.readable!r})); x = Path({str(HERE)!r})\n"
        "c = Cutting(x, 10, 0)\n"
        "print(p.parse(x, 'good', c).title, flush=True); p.parse(x, 'hang', c)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)

    assert psutil.wait_procs([child], timeout=30)[1] == []

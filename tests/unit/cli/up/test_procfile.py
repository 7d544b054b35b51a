"""The Procfile's grammar, and that ours holds the processes that the documentation names."""

import sys
from pathlib import Path

import pytest

from cli.errors import CliError
from cli.up import procfile
from jobs.fleet.models_file import PACKAGED_FILE, Registry


def _load(tmp_path: Path, text: str) -> list[procfile.Line]:
    path = tmp_path / "Procfile"
    path.write_text(text)
    return procfile.load(path)


def test_a_line_is_a_name_a_program_and_its_arguments(tmp_path: Path) -> None:
    (line,) = _load(tmp_path, "web: serve --port 1 'two words'\n")

    assert line == procfile.Line("web", ("serve", "--port", "1", "two words"), {})


def test_comments_and_empty_lines_are_skipped(tmp_path: Path) -> None:
    lines = _load(tmp_path, "# nothing\n\nweb: serve  # the API\n")

    assert [line.program for line in lines] == [("serve",)]


def test_leading_assignments_go_to_the_environment(tmp_path: Path) -> None:
    (line,) = _load(tmp_path, "web: A=1 B='x y' serve C=3\n")

    assert line.environment == {"A": "1", "B": "x y"}
    assert line.program == ("serve", "C=3")


@pytest.mark.parametrize("word", ["python", "python3"])
def test_python_is_the_interpreter_that_runs_the_command(tmp_path: Path, word: str) -> None:
    (line,) = _load(tmp_path, f"web: {word} -m api\n")

    assert line.program == (sys.executable, "-m", "api")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web serve", "line 1: expected 'name: command'"),
        ("ok: fine\nweb:", "line 2: expected 'name: command'"),
        ("web: A=1", "'web' has no program"),
        ("web: serve 'open", "No closing quotation"),
        ("web: serve | tee log", "no shell runs this line"),
        ("web: serve\nweb: serve", "names 'web' more than once"),
    ],
)
def test_a_line_that_is_no_process_is_refused_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(CliError, match=expected):
        _load(tmp_path, text)


def test_missing_procfile_is_reported_in_single_line(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"cannot read .*No such file"):
        procfile.load(tmp_path / "Procfile")


def test_ours_names_every_process_type_once_and_starts_with_the_release() -> None:
    names = [line.name for line in procfile.load(procfile.PACKAGED)]

    assert names == ["release", "web", "dispatcher", "cpu", "evaluate", "gpu", "embed", "finetune", "io", "flower"]


def test_an_optional_line_runs_where_it_is_named(tmp_path: Path) -> None:
    text = "web: serve\n# a comment about optional things: none\n#optional extra: python extra.py --all\n"
    _load(tmp_path, text)

    assert [line.name for line in _load(tmp_path, text)] == ["web"]
    extra = procfile.load(tmp_path / "Procfile", ["extra", "extra"])[-1]
    assert extra == procfile.Line("extra", (sys.executable, "extra.py", "--all"), {})
    with pytest.raises(CliError, match="has no optional line 'other'; it has: extra"):
        procfile.load(tmp_path / "Procfile", ["other"])


def test_ours_has_an_optional_line_for_whole_tuned_models() -> None:
    assert procfile.load(procfile.PACKAGED, ["tuned"])[-1].program == (sys.executable, "-m", "workers", "tuned")


def test_unserved_queues_of_models_file_get_procfile_lines(tmp_path: Path) -> None:
    source = "source: {path: weights}, engine: vllm"
    file = tmp_path / "models.yaml"
    file.write_text(
        f"models:\n  a: {{{source}}}\n  b: {{{source}, queue: gpu.large}}\n  c: {{{source}, queue: gpu.fast}}\n"
        "  e: {source: {path: weights}, engine: embed}\n"
        "  f: {source: {path: weights}, engine: embed, queue: gpu.code}\n"
    )
    lines = _load(
        tmp_path, "gpu: python -m workers gpu\nfast: A=1 python -m workers gpu gpu.fast\nweb: python -m api\n"
    )

    added = procfile.lines_for(Registry.read(file).models.values(), lines)

    assert added == [
        procfile.Line("gpu.large", (sys.executable, "-m", "workers", "gpu", "gpu.large")),
        procfile.Line("gpu.embed", (sys.executable, "-m", "workers", "embed")),
        procfile.Line("gpu.code", (sys.executable, "-m", "workers", "embed", "gpu.code")),
    ]
    assert procfile.lines_for(Registry.read(file).models.values(), [*lines, *added]) == []


def test_every_queue_of_the_packaged_models_has_a_line() -> None:
    models = Registry.read(PACKAGED_FILE).models.values()

    assert procfile.lines_for(models, procfile.load(procfile.PACKAGED)) == []

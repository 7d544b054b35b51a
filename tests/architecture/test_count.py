"""`make count` counts the files and lines of a product of four modules."""

from pathlib import Path

from tests.architecture.count import Tree

LONG = "def long():\n" + "    pass\n" * 50
SOURCES = {
    "api/routes.py": "from jobs import clock\nimport jobs.ids\ntry:\n    clock\nexcept Exception:\n    pass\n",
    "api/errors.py": "import jobs.ids\ntry:\n    1\nexcept (KeyError, BaseException):\n    pass\n",
    "jobs/clock.py": "def read(job):\n    return job.kind == 'ingestion'\n",
    "jobs/ids.py": LONG,
    "tests/test_clock.py": 'patch.setattr(clock, "JUMP_SECONDS", 1)\npatch.setattr(clock, "LOOKS", 1)\n',
}


def test_each_figure_is_counted(tmp_path: Path) -> None:
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    figures = Tree(tmp_path).figures()

    assert (figures["files"], figures["lines"]) == (4, 64)
    assert (figures["files of api"], figures["lines of api"], figures["files of cli"]) == (2, 11, 0)
    assert figures["modules below 80 lines with one importer"] == 1  # the clock
    assert figures["functions over 50 lines"] == 1
    assert figures["excepts that take every error"] == 2
    assert figures["patches of a constant of time in tests"] == 1
    assert figures["tests of a job's kind"] == 1
    assert figures["modules in jobs/"] == 2

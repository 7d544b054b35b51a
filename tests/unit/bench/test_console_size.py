"""The benchmark of the console counts what a browser loads."""

from pathlib import Path

import pytest
from rich.console import Console

from bench import console


def test_size_is_that_of_the_compressed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text('<script src="/console/assets/main-1.js"></script>')
    for path, size in {"index.html.br": 1_000, "assets/main-1.js.br": 9_000, "assets/jobs-2.js.br": 350_000}.items():
        (tmp_path / path).write_bytes(b"x" * size)
    (tmp_path / "assets" / "main-1.js").write_bytes(b"x" * 90_000)
    monkeypatch.setattr(console, "BUILD", tmp_path)

    console._measure_size(Console(width=200))

    line = capsys.readouterr().out
    assert "3 files, 360 kB compressed (beyond the aim of 350 kB); 10 kB for the first page" in line

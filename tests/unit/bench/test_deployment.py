"""The options that benchmarks share."""

import argparse
from pathlib import Path

from bench.deployment import make_folder


def test_folder_of_an_option_is_made(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=make_folder)

    for _ in range(2):
        options = parser.parse_args(["--folder", str(tmp_path / "a" / "b")])

    assert options.folder == tmp_path / "a" / "b"
    assert options.folder.is_dir()

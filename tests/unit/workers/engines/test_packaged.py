"""Packaged models: found, converted once, and complete as soon as they are there."""

import importlib.util
from pathlib import Path

import pytest

from workers.engines import model_folders
from workers.engines.model_folders import MINILM, SMOLLM2, ModelUnavailable, materialise


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The conversion itself is replaced: it takes half a minute, and the engine's contract test does it for real."""
    calls: list[Path] = []

    def convert(package: Path, scratch: Path) -> None:
        assert list(package.glob("*.gguf"))
        calls.append(scratch)
        (scratch / "config.json").write_text("{}")

    monkeypatch.setattr(model_folders, "_convert", convert)
    return calls


def test_the_embedding_model_is_used_where_it_lies(tmp_path: Path) -> None:
    folder = materialise(MINILM, tmp_path)

    assert (folder / "model.safetensors").is_file()
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / SMOLLM2).mkdir()

    assert materialise(SMOLLM2, tmp_path) == tmp_path / SMOLLM2


def test_who_comes_second_finds_the_folder(tmp_path: Path, converted: list[Path]) -> None:
    model_folders.make_packaged(SMOLLM2, str(tmp_path))
    model_folders.make_packaged(SMOLLM2, str(tmp_path))

    assert len(converted) == 1
    assert (tmp_path / SMOLLM2 / "config.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [SMOLLM2]


def test_what_a_killed_conversion_left_is_cleared(tmp_path: Path, converted: list[Path]) -> None:
    (tmp_path / f".{SMOLLM2}-old").mkdir()

    model_folders.make_packaged(SMOLLM2, str(tmp_path))

    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [SMOLLM2]


def test_a_conversion_that_fails_leaves_no_model_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")

    with pytest.raises(ModelUnavailable, match="models"):
        materialise(SMOLLM2, tmp_path / "models")


def test_an_unknown_name_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=SMOLLM2):
        materialise("gpt-oss-120b", tmp_path)


@pytest.mark.parametrize("name", [MINILM, SMOLLM2])
def test_a_model_whose_package_is_not_installed_names_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _module: None)

    with pytest.raises(ModelUnavailable, match=r"the package \w+ is not installed; the extra `embed` brings it"):
        materialise(name, tmp_path)
    assert list(tmp_path.iterdir()) == []

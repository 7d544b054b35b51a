"""A file and the words of the command line are checked before anything is sent."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.client.submission import guess_endpoint, output_paths, parse_pairs
from cli.errors import CliError
from cli.main import app
from jobs.batches.lines import MAX_LINE_BYTES


def _file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_the_endpoint_is_the_first_lines_url(tmp_path: Path, start: bytes) -> None:
    path = _file(tmp_path, start + b'{"url": "/v1/embeddings"}\r\n{"url": "/v1/other"}\n')

    assert guess_endpoint(path) == "/v1/embeddings"


def test_a_first_line_is_as_long_as_its_picture(tmp_path: Path) -> None:
    line = {"body": {"image_url": "data:image/png;base64," + "A" * (2 << 20)}, "url": "/v1/chat/completions"}

    assert guess_endpoint(_file(tmp_path, json.dumps(line).encode())) == "/v1/chat/completions"


def test_too_long_first_line_is_refused(tmp_path: Path) -> None:
    line = b'{"url": "/v1/embeddings"}'

    assert guess_endpoint(_file(tmp_path, line.ljust(MAX_LINE_BYTES) + b"\n")) == "/v1/embeddings"
    with pytest.raises(CliError, match=f"line 1 has more than {MAX_LINE_BYTES} bytes"):
        guess_endpoint(_file(tmp_path, line.ljust(MAX_LINE_BYTES + 1) + b"\n"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"\n{}", "begins with an empty line"),
        (b"{oops\n", "line 1 is no JSON object"),
        (b"[1]\n", "line 1 has no 'url'"),
        (b'{"url": 3}\n', "line 1 has no 'url'"),
        (b"\xff\xfe\n", "line 1 is no JSON object"),
    ],
)
def test_first_line_without_valid_url_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    with pytest.raises(CliError, match=told):
        guess_endpoint(_file(tmp_path, content))


def test_metadata_is_split_at_the_first_equals_sign() -> None:
    assert parse_pairs(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}


@pytest.mark.parametrize("word", ["a", "=b"])
def test_metadata_without_name_or_value_is_refused(word: str) -> None:
    with pytest.raises(CliError, match="write it as name=value"):
        parse_pairs([word])


def test_output_paths_default_to_folder_of_input() -> None:
    source = Path("/data/in.jsonl")

    assert output_paths(source, None) == (Path("/data/in.output.jsonl"), Path("/data/in.output.errors.jsonl"))
    assert output_paths(source, Path("o.jsonl")) == (Path("o.jsonl"), Path("o.errors.jsonl"))


@pytest.mark.parametrize(
    ("option", "other"),
    [
        *((("--sample", "5"), other) for other in (
            ("--at", "2100-01-01"), ("--after", "batch_1"), ("--every", "0 3 * * *"), ("--output", "out.jsonl"),
            ("--no-wait",), ("--no-check",)
        )),
        *((("--every", "0 3 * * *"), other) for other in (
            ("--at", "2100-01-01"), ("--after", "batch_1"), ("--output", "out.jsonl")
        )),
        (("--no-wait",), ("--output", "out.jsonl")),
    ],
)  # fmt: skip
def test_of_two_options_none_is_ignored_without_a_word(
    tmp_path: Path, option: tuple[str, ...], other: tuple[str, ...]
) -> None:
    source = _file(tmp_path, b'{"url": "/v1/embeddings"}\n')

    done = CliRunner().invoke(app, ["submit", str(source), *other, *option, "--url", "http://127.0.0.1:9"])

    assert isinstance(done.exception, CliError)
    assert str(done.exception) == f"{other[0]} means nothing with {option[0]}: leave one of them out"


def test_timezone_without_every_is_refused(tmp_path: Path) -> None:
    source = _file(tmp_path, b'{"url": "/v1/embeddings"}\n')

    done = CliRunner().invoke(
        app, ["submit", str(source), "--timezone", "Europe/Zurich", "--url", "http://127.0.0.1:9"]
    )

    assert isinstance(done.exception, CliError)
    assert str(done.exception) == "--timezone means nothing without --every: leave it out"

"""`nightmill embed-eval` against a server that embeds by words: what it finds, what it asks, and what it refuses."""

import json
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.commands import embed_eval, embed_inputs
from cli.errors import CliError
from cli.main import app

CORPUS = {
    "kiwi": ("The kiwi is a bird that cannot fly", "en"),
    "emu": ("The emu is a tall bird of the plains", "en"),
    "lava": ("Lava flows from a volcano", "en"),
    "vogel": ("Ein Vogel singt im Wald", "de"),
    "berg": ("Ein Berg speit Lava", "de"),
}
QUERIES = {
    "q1": ("kiwi bird", "en"),
    "q2": ("volcano lava", "en"),
    "q3": ("Vogel im Wald", "de"),
    "q4": ("nobody", "en"),
}
QRELS = "q1 0 kiwi 2\nq1 0 emu 1\nq2 0 lava 1\nq3 0 vogel 1\nq3 0 berg 0\n"
FACTS = {"max_model_len": 16, "license": "mit", "training_data": ["mine"], "query_prompt": "q: "}


class Words(ThreadingHTTPServer):
    """Serve embedding models: `good`, whose vectors know words, and `bad`, with the same vector for every text.

    `strict` takes OpenAI's fields alone, `half` no truncation, `other` no `cache`; `odd` gives vectors of changing
    length; `long` refuses every passage.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: list[dict[str, Any]] = []

    def embed(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.asked.append(body)
        model, texts = body["model"], body["input"]
        ours = body.keys() & {"input_type", "truncate", "cache"}
        if (model == "strict" and ours) or (model == "half" and "truncate" in body):
            return refused(f"Unrecognized request argument supplied: {min(ours)}")
        if model == "other" and "cache" in body:
            return refused("Unrecognized request argument supplied: cache")
        if model == "long" and body.get("input_type") == "passage":
            return refused("This model's maximum context length is 2 tokens")
        width = 8 + len(self.asked) % 2 if model == "odd" else 64
        rows = [[1.0] * width if model in ("bad", "odd") else vector_of(text) for text in texts]
        data = [{"object": "embedding", "index": n, "embedding": row} for n, row in enumerate(rows)]
        tokens = sum(len(text.split()) for text in texts)
        told: dict[str, Any] = {"object": "list", "data": data, "model": model}
        told["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
        if "truncate" in body:
            told["truncated"] = [n for n, text in enumerate(texts) if "plains" in text]
        return 200, told


class Handler(BaseHTTPRequestHandler):
    server: Words

    def do_GET(self) -> None:
        name = self.path.removeprefix("/v1/models/")
        if name == "nobody":
            self.say(404, {"error": {"message": f"The model '{name}' does not exist.", "param": "model"}})
        else:
            facts = FACTS if name == "good" else {"cost_per_million_tokens": 0.5} if name == "bad" else {}
            self.say(200, {"id": name, "object": "model", "created": 1, "owned_by": "me", **facts})

    def do_POST(self) -> None:
        self.say(*self.server.embed(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

    def say(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def refused(message: str) -> tuple[int, dict[str, Any]]:
    return 400, {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def vector_of(text: str) -> list[float]:
    row = [0.0] * 512
    for word in text.lower().split():
        row[zlib.crc32(word.encode()) % 512] += 1.0
    return row


@pytest.fixture(scope="module")
def words() -> Iterator[Words]:
    with Words() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return written(tmp_path, CORPUS, QUERIES, QRELS)


def written(folder: Path, corpus: dict[str, Any], queries: dict[str, Any], qrels: str) -> dict[str, Path]:
    found = {name: folder / name for name in ("corpus", "queries", "qrels")}
    for name, many in (("corpus", corpus), ("queries", queries)):
        rows = [{"id": one, "text": text, "language": language} for one, (text, language) in many.items()]
        found[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    found["qrels"].write_text(qrels)
    return found


Run = Callable[..., str]


@pytest.fixture
def run(words: Words, tmp_path: Path) -> Run:
    words.asked.clear()

    def run(files: dict[str, Path], *more: str) -> str:
        where = ["--url", words.url, "--api-key", "sk-x", "--data-dir", str(tmp_path / "data")]
        done = CliRunner().invoke(app, ["embed-eval", *map(str, files.values()), *more, *where])
        if isinstance(done.exception, CliError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def test_models_are_compared_overall_and_by_language(run: Run, files: dict[str, Path]) -> None:
    told = json.loads(run(files, "-m", "good", "-m", "bad", "--k", "1", "--k", "2", "--json"))
    good, bad = told["models"]

    assert (told["texts"], told["queries"], told["queries_without_judgement"]) == (5, 3, 1)
    assert good["scores"] == pytest.approx({"recall@1": (0.5 + 1 + 1) / 3, "recall@2": 1, "nDCG@10": 1, "MRR@10": 1})
    assert good["by_language"]["en"]["recall@1"] == pytest.approx(0.75)
    assert good["by_language"]["de"]["recall@1"] == 1
    # Of equals the earlier comes first: kiwi, emu, lava, vogel, berg.
    assert bad["scores"]["MRR@10"] == pytest.approx((1 + 1 / 3 + 1 / 4) / 3)
    assert bad["by_language"]["de"]["MRR@10"] == pytest.approx(1 / 4)


def test_figures_are_measured_or_said_to_be_unknown(run: Run, files: dict[str, Path]) -> None:
    good, bad = json.loads(run(files, "-m", "good", "-m", "bad", "--hourly-cost", "2", "--json"))["models"]

    assert (good["dimensions"], good["max_tokens"], good["license"], good["training_data"]) == (
        512,
        16,
        "mit",
        ["mine"],
    )
    assert good["truncated_share"] == pytest.approx(1 / 8)  # emu, of five texts and three queries
    assert 0 < good["latency_p50_ms"] <= good["latency_p95_ms"]
    assert good["cost_per_million_tokens"] == pytest.approx(2 / (good["tokens_per_second"] * 3600) * 1e6, rel=0.01)
    assert (bad["max_tokens"], bad["license"], bad["training_data"]) == (None, None, None)
    assert bad["cost_per_million_tokens"] == 0.5  # its server's price
    assert (good["memory_bytes"], bad["memory_bytes"]) == (None, None)  # another deployment than this machine's


def test_passages_and_queries_are_asked_as_such_in_batches(run: Run, words: Words, tmp_path: Path) -> None:
    corpus = {f"t{n}": (f"text number {n}", None) for n in range(100)}
    run(written(tmp_path, corpus, {"q": ("number 7", None)}, "q 0 t7 1\n"), "-m", "good")

    queries = [body for body in words.asked if body["input_type"] == "query"]
    passages = [body for body in words.asked if body["input_type"] == "passage"]
    assert [body["input"] for body in queries] == [["number 7"]] * 2  # the first is not measured
    assert sorted(len(body["input"]) for body in passages) == [4, 32, 32, 32]
    assert all(body["truncate"] for body in words.asked)
    assert all(body["cache"] is False for body in words.asked)


def test_blocks_of_the_corpus_are_ranked_as_one(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_eval, "_BLOCK", 7)
    corpus = {f"t{n}": (f"text of word{n}", None) for n in range(50)}
    queries = {f"q{n}": (f"word{n}", None) for n in range(0, 50, 5)}
    qrels = "".join(f"q{n} 0 t{n} 1\n" for n in range(0, 50, 5))

    [good] = json.loads(run(written(tmp_path, corpus, queries, qrels), "-m", "good", "--json"))["models"]

    assert good["scores"]["recall@10"] == 1
    assert good["by_language"] == {}


def test_server_that_takes_openais_fields_alone_is_asked_with_those(run: Run, files: dict[str, Path]) -> None:
    [strict] = json.loads(run(files, "-m", "strict", "--json"))["models"]

    assert strict["scores"]["MRR@10"] == 1
    assert (strict["prompts_used"], strict["truncated_share"]) == (False, None)


def test_server_that_knows_of_no_cache_is_asked_for_all_else(run: Run, words: Words, files: dict[str, Path]) -> None:
    [other] = json.loads(run(files, "-m", "other", "--json"))["models"]

    assert (other["prompts_used"], other["truncated_share"]) == (True, pytest.approx(1 / 8))
    assert all("cache" not in body for body in words.asked[1:])


def test_server_that_cannot_cut_off_is_still_told_what_texts_are(
    run: Run, words: Words, files: dict[str, Path]
) -> None:
    [half] = json.loads(run(files, "-m", "half", "--json"))["models"]

    assert (half["prompts_used"], half["truncated_share"]) == (True, None)
    assert {body.get("input_type") for body in words.asked[1:]} == {"query", "passage"}


def test_table_has_a_column_for_each_model(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "table.txt"

    assert run(files, "-m", "good", "-m", "strict", "--output", str(output)) == ""
    told = output.read_text()

    rows = {cells[0]: cells[1:] for line in told.splitlines() if len(cells := line.strip().split("  ")) > 1}
    words = {name: [cell.strip() for cell in cells if cell.strip()] for name, cells in rows.items()}
    assert "5 texts, 3 queries, 1 without judgement left out" in told
    assert words["good"] == ["strict"]
    assert words["MRR@10"] == ["1.0000", "1.0000"]
    assert words["recall@10, de"] == ["1.0000", "1.0000"]
    assert words["licence"] == ["mit", "not stated"]
    assert words["truncated texts"] == ["12.5%", "not told"]
    assert words["query prompt"] == ["'q: '", "not taken by its server"]
    assert words["memory of its worker"] == ["not measured", "not measured"]
    assert words["cost per 1M tokens"] == ["-", "-"]


def test_the_same_model_named_twice_is_asked_once(run: Run, files: dict[str, Path]) -> None:
    assert len(json.loads(run(files, "-m", "good", "-m", "good", "--json"))["models"]) == 1


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("nobody", "The model 'nobody' does not exist"),
        ("odd", "odd gave vectors that cannot be compared"),
        ("long", "long: This model's maximum context length is 2 tokens"),
    ],
)
def test_model_that_cannot_be_used_ends_it(run: Run, files: dict[str, Path], model: str, told: str) -> None:
    with pytest.raises(CliError, match=told):
        run(files, "-m", "good", "-m", model)


def test_unknown_model_is_told_before_anything_is_embedded(run: Run, words: Words, files: dict[str, Path]) -> None:
    with pytest.raises(CliError):
        run(files, "-m", "good", "-m", "nobody")

    assert words.asked == []


def test_output_that_cannot_be_written_is_told(run: Run, words: Words, files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CliError, match="no such folder"):
        run(files, "-m", "good", "--output", str(tmp_path / "no" / "where"))
    assert words.asked == []  # nothing was embedded in vain
    with pytest.raises(CliError, match="is a folder"):
        run(files, "-m", "good", "--output", str(tmp_path))


def test_without_a_model_it_says_how_it_is_used(files: dict[str, Path]) -> None:
    done = CliRunner().invoke(app, ["embed-eval", *map(str, files.values())])

    assert done.exit_code == 2
    assert "--model" in done.stderr


GOOD = '{"id": "a", "text": "x"}\n'
TEXTS: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "is empty"),
    "blank lines": ("\n \n", "is empty"),
    "no JSON": (GOOD + "{", "line 2 is no JSON object"),
    "a list": ("[1]", "line 1 is no JSON object"),
    "no id": ('{"text": "x"}', "line 1 has no 'id'"),
    "an empty id": ('{"id": "", "text": "x"}', "line 1 has no 'id'"),
    "an id that is true": ('{"id": true, "text": "x"}', "line 1 has no 'id'"),
    "no text": ('{"id": "a"}', "line 1 has no 'text'"),
    "an empty text": ('{"id": "a", "text": " "}', "line 1: its text is empty"),
    "a title that is a number": ('{"id": "a", "text": "x", "title": 1}', "line 1: 'title' must be text"),
    "a language that is a number": ('{"id": "a", "text": "x", "language": 1}', "line 1: 'language' must be text"),
    "the same id twice": (GOOD + GOOD, "line 2: the id 'a' was there before"),
    "no UTF-8": (b'{"id": "a", "text": "\xff"}', "is not UTF-8"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_that_cannot_be_used_are_named_with_their_line(tmp_path: Path, case: str) -> None:
    content, told = TEXTS[case]
    (tmp_path / "x").write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(CliError, match=told):
        list(embed_inputs.texts(tmp_path / "x"))


def test_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"cannot read .*: No such file"):
        list(embed_inputs.texts(tmp_path / "x"))


def test_files_of_beir_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "c").write_text(
        '\ufeff{"_id": 1, "title": "Kiwi", "text": "A bird."}\n{"_id": "b c", "title": "", "text": "y"}\n'
    )
    (tmp_path / "q").write_text('{"_id": "q1", "text": "bird", "metadata": {}}\n')
    (tmp_path / "j").write_text("query-id\tcorpus-id\tscore\nq1\tb c\t1\nq1\t1\t2\n")

    found = embed_inputs.read(tmp_path / "c", tmp_path / "q", tmp_path / "j")

    assert [text.text for text in embed_inputs.texts(tmp_path / "c")] == ["Kiwi A bird.", "y"]
    assert found.judgements == {"q1": {"b c": 1, "1": 2}}


QREL_FILES: dict[str, tuple[str, str]] = {
    "nothing": ("", "has no judgements"),
    "a head alone": ("query-id\tcorpus-id\tscore\n", "has no judgements"),
    "two columns": ("q1 kiwi\n", "line 1 has 2 columns"),
    "five columns": ("q1 0 kiwi 1 x\n", "line 1 has 5 columns"),
    "a grade in words": ("q1 0 kiwi 1\nq1 0 emu good\n", "line 2: the grade 'good' is not an integer"),
    "judged twice": ("q1 0 kiwi 1\nq1 0 kiwi 0\n", "line 2: the text 'kiwi' was judged for the query 'q1' before"),
    "an unknown query": ("q9 0 kiwi 1\n", "judges a query that .*queries does not have: q9"),
    "unknown texts": (
        "".join(f"q1 0 x{n} 1\n" for n in range(9)),
        "judges a text that .*corpus does not have: x0, x1, x2 and 6 more",
    ),
    "nothing relevant": ("q1 0 kiwi 0\n", "names no text that answers a query"),
}


@pytest.mark.parametrize("case", QREL_FILES)
def test_judgements_that_cannot_be_used_are_told(run: Run, words: Words, tmp_path: Path, case: str) -> None:
    qrels, told = QREL_FILES[case]

    with pytest.raises(CliError, match=told):
        run(written(tmp_path, CORPUS, QUERIES, qrels), "-m", "good")

    assert words.asked == []

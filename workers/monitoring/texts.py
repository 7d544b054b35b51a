"""Sample the texts of a source: the same ones however often a job is planned, because hashes of their names choose.

stored answers ─▶ the newest 100,000 that match ─┐
lines of a file ─────────────────────────────────┴─▶ those with the least hashes ─▶ text, length, language, scores
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
from sqlalchemy import func, select

from jobs.batches import lines
from jobs.batches.lines import Bad, InputLine
from jobs.errors import NotFound
from jobs.evals.samples import text_of
from jobs.inference import responses, stored
from jobs.inference.stored import StoredAnswer
from jobs.ledger.tables import Job
from jobs.monitoring.monitors import AnswerSource, DriftSample, find_answers
from jobs.registry.tables import Feedback
from workers.monitoring import language_detection
from workers.runtime.context import Context

#: Characters of a text that are embedded.
MAX_CHARACTERS: Final = 2_000
_MAX_LINE: Final = 1 << 20
_MAX_SCORE: Final = 1_000_000
_MAX_ERRORS: Final = 100
_IDS_AT_ONCE: Final = 500
_decode = msgspec.json.Decoder(dict).decode


class TextFeatures(msgspec.Struct, frozen=True, omit_defaults=True):
    """Describe a text beside its words: a number is null where it has none, a language where it is unsure."""

    length: int
    language: str | None = None
    retrieval_score: float | None = None
    output_score: float | None = None


@dataclass(frozen=True, slots=True)
class SampledText:
    """A text of a sample, with its beginning."""

    beginning: str
    text: TextFeatures


def sample(context: Context, job: Job) -> Sequence[SampledText | Bad]:
    """Return the sampled texts of a job, with the errors of the lines of a file. Raises: ChildFailed."""
    payload = DriftSample.model_validate(job.payload)
    source = payload.source
    if isinstance(source, AnswerSource):
        with context.db.read() as session:
            matching = [name for name, _ in find_answers(session, job.project_id, source)]
        ids = _least(matching, payload.sample, job.id)
        texts: list[SampledText | Bad] = list(_texts_of_answers(context, job.project_id, source.type, ids))
    else:
        texts = _file_texts(context, payload.path or "", payload.sample, job.id)
    return _name_languages(texts)


def _least(names: Iterable[str], count: int, seed: str) -> list[str]:
    return heapq.nsmallest(count, names, key=lambda name: _hash(seed, name))


def _hash(seed: str, name: object) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


# ── stored answers ──


def _texts_of_answers(context: Context, project_id: str, kind: str, ids: Sequence[str]) -> Iterator[SampledText]:
    """Yield the texts of stored answers. One that was deleted meanwhile, or has no words, is left out."""
    path = stored.completion_path if kind == "stored_completions" else responses.path
    scores = _feedback_on(context, project_id, ids)
    for name in ids:
        try:
            with context.storage.reader(path(name)) as handle:
                answer = stored.decode(handle.read())
        except NotFound:
            continue
        words = _question_of(answer.request)
        if words.strip():
            text = TextFeatures(len(words), None, _retrieval_score(answer), scores.get(name))
            yield SampledText(words[:MAX_CHARACTERS], text)


def _question_of(request: Mapping[str, Any]) -> str:
    """Return what the user said last in the request of a stored answer."""
    messages = request.get("messages", request.get("input"))
    if isinstance(messages, str):
        return messages
    newest_first = (message for message in reversed(messages or ()) if isinstance(message, dict))
    return next((text_of(message.get("content")) for message in newest_first if message.get("role") == "user"), "")


def _retrieval_score(answer: StoredAnswer) -> float | None:
    """Return the score of the best result of the file searches of a response."""
    output = answer.response.get("output")
    calls = [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []
    results = [result for call in calls for result in call.get("results") or () if isinstance(result, dict)]
    return max(
        (float(score) for result in results if isinstance(score := result.get("score"), int | float)), default=None
    )


def _feedback_on(context: Context, project_id: str, ids: Sequence[str]) -> dict[str, float]:
    """Return the mean score of the feedback on each of these answers that has any."""
    scores = dict[str, float]()
    for start in range(0, len(ids), _IDS_AT_ONCE):
        own = Feedback.project_id == project_id, Feedback.target_id.in_(ids[start : start + _IDS_AT_ONCE])
        means = select(Feedback.target_id, func.avg(Feedback.score)).where(*own).group_by(Feedback.target_id)
        with context.db.read() as session:
            scores.update((name, float(score)) for name, score in session.execute(means))
    return scores


# ── files ──


def _file_texts(context: Context, path: str, count: int, seed: str) -> list[SampledText | Bad]:
    """Return the texts of some lines of a file, or the errors of its lines."""
    try:
        with context.storage.reader(path) as handle:
            errors = list[SampledText | Bad]()
            texts = _without_errors(map(_text_of_line, lines.read(handle, _MAX_LINE)), errors)
            chosen = heapq.nsmallest(count, enumerate(texts), key=lambda numbered: _hash(seed, numbered[0]))
    except NotFound:
        return [Bad("invalid_request", "The file of texts is gone.", None, "source.file_id")]
    return errors or [text for _, text in chosen]


def _without_errors(texts: Iterable[SampledText | Bad], errors: list[SampledText | Bad]) -> Iterator[SampledText]:
    for text in texts:
        if isinstance(text, SampledText):
            yield text
        else:
            errors.append(text)
            if len(errors) >= _MAX_ERRORS:
                return


def _text_of_line(line: InputLine) -> SampledText | Bad:
    """Return the text of a line, or why there is none."""
    if line.raw is None:
        return Bad("line_too_long", "This line is too long.", line.number)
    try:
        row = _decode(line.raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Bad("invalid_json_line", "This line is not parseable as a JSON object.", line.number)
    words = row.get("input")
    if not isinstance(words, str) or not words.strip():
        return Bad("invalid_type", "Invalid 'input': expected a text that is not empty.", line.number, "input")
    scores = {name: row.get(name) for name in ("retrieval_score", "output_score")}
    for name, score in scores.items():
        is_number = isinstance(score, int | float) and not isinstance(score, bool) and abs(score) <= _MAX_SCORE
        if score is not None and not is_number:
            message = f"Invalid '{name}': expected a number from -{_MAX_SCORE} to {_MAX_SCORE}."
            return Bad("invalid_value", message, line.number, name)
    return SampledText(words[:MAX_CHARACTERS], TextFeatures(len(words), None, **scores))


def _name_languages(texts: list[SampledText | Bad]) -> Sequence[SampledText | Bad]:
    """Return texts with their languages; errors as they are."""
    good = [text for text in texts if isinstance(text, SampledText)]
    if len(good) < len(texts):
        return texts
    names = language_detection.detect([text.beginning for text in good])
    return [
        replace(text, text=msgspec.structs.replace(text.text, language=name))
        for text, name in zip(good, names, strict=True)
    ]

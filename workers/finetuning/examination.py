"""Examine training and validation files: `python -m workers.finetuning.examination`, see `jobs.finetuning.examination`.

    each line ─▶ roles, messages, tools ─▶ tokens by the base's template ─▶ counted      errors with line and param
    all rows  ─▶ at least ten, duplicates, rows of validation ─▶ split ─▶ snapshots by SHA-256

Memory holds one line and a few numbers for each row.
"""

import hashlib
import json
import random
import resource
import sys
from array import array
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from jobs.batches import lines
from jobs.batches.lines import Bad
from jobs.errors import NotFound
from jobs.finetuning import examples
from jobs.finetuning.datasets import location
from jobs.finetuning.examination import MAX_ERRORS, MAX_EXAMPLES, MAX_GENERAL, Findings, Part, Question
from jobs.fleet.models_file import Model
from jobs.platform.storage import open_storage
from jobs.settings import Settings
from workers.engines.model_folders import ModelUnavailable, source_of
from workers.engines.training import rows

_NAMED_LINES: Final = 20
_ENCODE: Final = {"supervised": rows.encode_supervised, "dpo": rows.encode_preference}


class _File:
    """The rows of one file: their lines, tokens and fingerprints, 8 bytes each."""

    def __init__(self, field: str, path: str) -> None:
        self.field, self.path = field, path
        self.lines, self.tokens, self.times = array("q"), array("q"), array("d")
        self.first: dict[int, int] = {}  # fingerprint of a row → its first line
        self.repeated = array("q")  # lines

    def add(self, line: int, row: dict[str, Any], tokens: int, time: float | None) -> None:
        self.lines.append(line)
        self.tokens.append(tokens)
        if time is not None:
            self.times.append(time)
        digest = hashlib.blake2b(examples.canonical(row), digest_size=8).digest()
        if self.first.setdefault(int.from_bytes(digest, "little"), line) != line:
            self.repeated.append(line)


class _Examination:
    def __init__(self, asked: Question, tokenizer: Any, context: int) -> None:
        self.asked, self.tokenizer = asked, tokenizer
        self.limit = min(asked.max_sequence_length or context, context)
        self.storage = open_storage(asked.storage)
        self.findings = Findings()

    def run(self) -> Findings:
        asked, findings = self.asked, self.findings
        training = self._read("training_file", asked.training)
        validation = self._read("validation_file", asked.validation) if asked.validation else None
        general = self._read("general_file", asked.general, MAX_GENERAL) if asked.general else None
        held_out = self._held_out(training)
        remaining = len(training.lines) - len(held_out)
        if remaining < examples.MIN_EXAMPLES and not findings.errors:
            message = f"There are {remaining} examples to train on; at least {examples.MIN_EXAMPLES} are needed."
            self._complain(training.field, Bad("too_few_examples", message))
        for file in (validation, general):
            if file is not None and not file.lines and not findings.errors:
                self._complain(file.field, Bad("too_few_examples", "The file has no examples."))
        if not findings.errors:
            self._warn(training, validation)
            findings.tokens = sum(tokens for n, tokens in enumerate(training.tokens) if n not in held_out)
            findings.longest = max((*training.tokens, *(validation.tokens if validation else ())))
            findings.training = self._snapshot(training, held_out, chosen=False)
            if validation is not None:
                findings.validation = self._snapshot(validation, (), chosen=False)
            elif held_out:
                findings.validation = self._snapshot(training, held_out, chosen=True)
            if general is not None:
                findings.general = self._snapshot(general, (), chosen=False)
        return findings

    def _read(self, field: str, path: str, limit: int = MAX_EXAMPLES) -> _File:
        """Check every row of a file, until there are too many errors."""
        file = _File(field, path)
        try:
            with self.storage.reader(path) as handle:
                for text in lines.read(handle, self.asked.max_line_bytes):
                    self._examine(file, text)
                    if self.findings.truncated:
                        break
                    if len(file.lines) > limit:
                        message = f"The file has more than {limit} examples."
                        self._complain(field, Bad("too_many_examples", message))
                        break
        except NotFound:
            self._complain(field, Bad("file_not_found", "The file does not exist any more."))
        return file

    def _examine(self, file: _File, text: lines.Text) -> None:
        timed = self.asked.split == "temporal" and file.field == "training_file"
        prefers = self.asked.method == "dpo" and file.field != "general_file"
        method: examples.Method = "dpo" if prefers else "supervised"
        row = examples.check(text, method, timed=timed)
        if isinstance(row, Bad):
            self._complain(file.field, row)
            return
        try:
            encoded = _ENCODE[method](self.tokenizer, text.number, row, self.limit)
        except rows.RowRefused as error:
            self._complain(file.field, Bad("invalid_example", str(error), text.number))
            return
        tokens = sum(len(ids) for name, ids in encoded.items() if name != "labels")
        file.add(text.number, row, tokens, examples.time_of(row) if timed else None)

    def _complain(self, field: str, bad: Bad) -> None:
        if len(self.findings.errors) >= MAX_ERRORS:
            self.findings.truncated = True
            return
        param = f"{field}.{bad.param}" if bad.param else field
        self.findings.errors.append({**bad.as_dict(), "param": param})

    def _held_out(self, training: _File) -> Collection[int]:
        """Return the numbers of the rows that are validated on, counted from 0."""
        count = len(training.lines)
        part = max(1, round(count * self.asked.fraction))
        if self.asked.split is None or part >= count:
            return frozenset()
        if self.asked.split == "holdout":
            return frozenset(random.Random(self.asked.seed).sample(range(count), part))  # noqa: S311 (a seeded choice)
        return frozenset(sorted(range(count), key=lambda n: (training.times[n], n))[-part:])

    def _warn(self, training: _File, validation: _File | None) -> None:
        if training.repeated:
            what = "rows of the training file are duplicates of earlier ones"
            self.findings.warnings.append(_told(what, training.repeated))
        shared = [line for digest, line in training.first.items() if validation and digest in validation.first]
        if shared:
            what = "rows of the training file stand in the validation file too"
            self.findings.warnings.append(_told(what, shared))

    def _snapshot(self, file: _File, numbers: Collection[int], *, chosen: bool) -> Part:
        """Return the snapshot of the rows that are among `numbers`, or with `chosen` False of the others."""
        digest, size, count = hashlib.sha256(), 0, 0
        for raw in self._rows(file, numbers, chosen=chosen):
            digest.update(raw)
            size, count = size + len(raw), count + 1
        sha256 = digest.hexdigest()
        if self.asked.store:
            with self.storage.writer(location(sha256)) as target:
                for raw in self._rows(file, numbers, chosen=chosen):
                    target.write(raw)
        return Part(sha256, size, count)

    def _rows(self, file: _File, numbers: Collection[int], *, chosen: bool) -> Iterator[bytes]:
        with self.storage.reader(file.path) as handle:
            for number, text in enumerate(lines.read(handle, self.asked.max_line_bytes)):
                if (number in numbers) is chosen:
                    yield (text.raw or b"") + b"\n"


def _told(what: str, numbers: Collection[int]) -> str:
    named = ", ".join(map(str, sorted(numbers)[:_NAMED_LINES]))
    more = ", …" if len(numbers) > _NAMED_LINES else ""
    return f"{len(numbers)} {what}: lines {named}{more}."


def examine(asked: Question, limit: Callable[[], None] = lambda: None) -> Findings:
    """Load the tokenizer of the base, call `limit`, and examine the files."""
    try:
        folder = source_of(Model.model_validate(asked.model), Settings(data_dir=Path(asked.data_dir)))
        tokenizer, context = rows.load_tokenizer(folder)
    except (ModelUnavailable, OSError, ValueError) as error:
        return Findings(unavailable=f"The model's tokenizer cannot be loaded: {error}")
    if tokenizer.chat_template is None:
        bad = Bad("no_chat_template", "The model has no chat template.")
        return Findings(errors=[{**bad.as_dict(), "param": "model"}])
    limit()
    return _Examination(asked, tokenizer, context).run()


def main() -> None:
    asked = Question(**json.load(sys.stdin))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (asked.memory_bytes, asked.memory_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (asked.cpu_seconds, asked.cpu_seconds))

    json.dump(asdict(examine(asked, limit)), sys.stdout)


if __name__ == "__main__":
    main()

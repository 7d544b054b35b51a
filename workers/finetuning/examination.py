"""Examine training and validation files: `python -m workers.finetuning.examination`, see `jobs.finetuning.examination`.

    each line ─▶ confined process: roles, messages, tools, tokens by the base's template ─▶ counted, or error with line
    all rows  ─▶ at least ten, duplicates, rows of validation ─▶ split ─▶ snapshots by SHA-256

Memory holds one line and a few numbers for each row. This process has the keys of storage, and passes on bytes.
"""

import hashlib
import json
import os
import random
import shutil
import sys
from array import array
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from jobs.batches import lines
from jobs.batches.lines import Bad
from jobs.errors import NotFound, StorageUnavailable
from jobs.finetuning import examples
from jobs.finetuning.datasets import location
from jobs.finetuning.examination import MAX_ERRORS, MAX_EXAMPLES, MAX_GENERAL, DatasetFindings, ExaminationTask, Part
from jobs.fleet.models_file import ModelConfig
from jobs.platform.children import ChildFailed, ChildLimits, describe_exit
from jobs.platform.storage import open_storage
from jobs.settings import Settings
from workers.engines.model_folders import ModelUnavailable, local_folder
from workers.finetuning import examination_child as child
from workers.finetuning.examination_child import BadRow, GoodRow, Load, Loaded, NotLoaded, Read
from workers.sandbox.channel import MAX_BYTES
from workers.sandbox.child import Child, Died, TimeUp
from workers.sandbox.confinement import Policy

_NAMED_LINES: Final = 20
_COPIED: Final = 1 << 20  # bytes at a time


class Rows(Protocol):
    """Checks the rows of files by the tokenizer of a base: the confined process, or its code in a test."""

    has_template: bool
    longest: int

    def read(self, asked: Read, handle: BinaryIO) -> Generator[GoodRow | BadRow]:
        """Yield what each row of a file is. Raises: ChildFailed."""


class ConfinedRows:
    """The confined process that checks rows. It is replaced where a file was not read to its end."""

    def __init__(self, asked: Load, limits: ChildLimits) -> None:
        """Load the tokenizer. Raises: ModelUnavailable, ChildFailed."""
        self._asked, self._limits = asked, limits
        self._child: Child | None = None
        loaded = self._load()
        self.has_template, self.longest = loaded.has_template, loaded.longest

    def read(self, asked: Read, handle: BinaryIO) -> Generator[GoodRow | BadRow]:
        if self._child is None:
            self._load()
        reading, writing = os.pipe()
        with ThreadPoolExecutor(1) as thread:
            copied, last = thread.submit(_copy, handle, writing), False
            try:
                self._send(asked, [reading])
                while not last:
                    checked = child.decode_checked(self._receive())
                    yield from checked.rows
                    last = checked.last
            finally:
                if not last:
                    self._end()  # and so the copying
            copied.result()

    def _load(self) -> Loaded:
        """Start the process, and return what it says of the base."""
        folder = Path(self._asked.folder)
        linked = {str(file.resolve()) for file in folder.iterdir() if file.is_symlink()}
        policy = Policy(child.__name__, readable=(str(folder), *linked), memory_bytes=self._limits.memory_bytes)
        self._child = Child(policy)
        with self._failures():
            self._child.begin()
        self._send(self._asked)
        answer = child.decode_loaded(self._receive())
        if isinstance(answer, NotLoaded):
            raise ModelUnavailable(answer.why)
        return answer

    def _send(self, message: Load | Read, descriptors: Sequence[int] = ()) -> None:
        """Send a message, and close the descriptors that go with it."""
        assert self._child is not None
        try:
            with self._failures():
                self._child.send(child.encode(message), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _receive(self) -> bytes:
        assert self._child is not None
        with self._failures():
            return self._child.receive(self._limits.seconds, MAX_BYTES)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise ChildFailed where the process has ended, or gives no answer."""
        try:
            yield
        except TimeUp as error:
            raise ChildFailed(f"it took more than {self._limits.seconds:g} seconds") from error
        except Died as error:
            raise ChildFailed(describe_exit(self._end(), self._limits)) from error

    def _end(self) -> int:
        ended, self._child = self._child, None
        return ended.end() if ended is not None else 0


def _copy(handle: BinaryIO, writing: int) -> None:
    """Copy a file into a pipe, until nobody reads it."""
    with suppress(BrokenPipeError), os.fdopen(writing, "wb") as pipe:
        shutil.copyfileobj(handle, pipe, _COPIED)


class _File:
    """The rows of one file: their lines, tokens and fingerprints, 8 bytes each."""

    def __init__(self, field: str, path: str) -> None:
        self.field, self.path = field, path
        self.lines, self.tokens, self.times = array("q"), array("q"), array("d")
        self.first: dict[int, int] = {}  # fingerprint of a row → its first line
        self.repeated, self.truncated = array("q"), array("q")  # lines

    def add(self, row: GoodRow) -> None:
        self.lines.append(row.line)
        self.tokens.append(row.tokens)
        if row.time is not None:
            self.times.append(row.time)
        if row.is_truncated:
            self.truncated.append(row.line)
        if self.first.setdefault(row.fingerprint, row.line) != row.line:
            self.repeated.append(row.line)


class _Examination:
    def __init__(self, asked: ExaminationTask, rows: Rows) -> None:
        self.asked, self.rows = asked, rows
        self.storage = open_storage(asked.storage)
        self.findings = DatasetFindings()

    def run(self) -> DatasetFindings:
        asked, findings = self.asked, self.findings
        training = self._read("training_file", asked.training)
        validation = self._read("validation_file", asked.validation) if asked.validation else None
        general = self._read("general_file", asked.general, MAX_GENERAL) if asked.general else None
        held_out = self._validation_rows(training)
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
        method: examples.Method = "dpo" if self.asked.method == "dpo" and field != "general_file" else "supervised"
        timed = self.asked.split == "temporal" and field == "training_file"
        asked = Read(method, timed)
        try:
            with self.storage.reader(path) as handle, closing(self.rows.read(asked, handle)) as rows:
                for row in rows:
                    self._note(file, row)
                    if self.findings.truncated:
                        break
                    if len(file.lines) > limit:
                        message = f"The file has more than {limit} examples."
                        self._complain(field, Bad("too_many_examples", message))
                        break
        except NotFound:
            self._complain(field, Bad("file_not_found", "The file does not exist any more."))
        return file

    def _note(self, file: _File, row: GoodRow | BadRow) -> None:
        if isinstance(row, GoodRow):
            file.add(row)
        else:
            self._complain(file.field, Bad(row.code, row.message, row.line, row.param))

    def _complain(self, field: str, bad: Bad) -> None:
        if len(self.findings.errors) >= MAX_ERRORS:
            self.findings.truncated = True
            return
        param = f"{field}.{bad.param}" if bad.param else field
        self.findings.errors.append({**bad.as_dict(), "param": param})

    def _validation_rows(self, training: _File) -> Collection[int]:
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
            self.findings.warnings.append(_describe_lines(what, training.repeated))
        for file in (training, validation):
            if file is not None and file.truncated:
                what = f"rows of the {file.field.replace('_', ' ')} were truncated to {self.rows.longest} tokens"
                self.findings.warnings.append(_describe_lines(what, file.truncated))
        shared = [line for digest, line in training.first.items() if validation and digest in validation.first]
        if shared:
            what = "rows of the training file stand in the validation file too"
            self.findings.warnings.append(_describe_lines(what, shared))

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
            for number, text in enumerate(lines.read(handle)):
                if (number in numbers) is chosen:
                    yield (text.raw or b"") + b"\n"


def _describe_lines(what: str, numbers: Collection[int]) -> str:
    named = ", ".join(map(str, sorted(numbers)[:_NAMED_LINES]))
    more = ", …" if len(numbers) > _NAMED_LINES else ""
    return f"{len(numbers)} {what}: lines {named}{more}."


def examine(asked: ExaminationTask, rows_of: Callable[[Load, ChildLimits], Rows] = ConfinedRows) -> DatasetFindings:
    """Load the tokenizer of the base, and examine the files. Raises: ChildFailed, StorageUnavailable."""
    try:
        load = Load(_folder_of(asked), asked.max_sequence_length, asked.truncate, asked.chat_template)
        rows = rows_of(load, asked.limits)
    except (ModelUnavailable, OSError, ValueError) as error:
        return DatasetFindings(unavailable=f"The model's tokenizer cannot be loaded: {error}")
    if not rows.has_template:
        bad = Bad("no_chat_template", "The model has no chat template.")
        return DatasetFindings(errors=[{**bad.as_dict(), "param": "model"}])
    return _Examination(asked, rows).run()


def _folder_of(asked: ExaminationTask) -> str:
    """Return the folder with the base's tokenizer. Raises: ModelUnavailable."""
    return str(local_folder(ModelConfig.model_validate(asked.model), Settings(data_dir=Path(asked.data_dir))))


def main() -> None:
    asked = ExaminationTask(**json.load(sys.stdin))
    try:
        findings = examine(asked)
    except ChildFailed as failure:
        findings = DatasetFindings(gave_up=str(failure))
    except StorageUnavailable:
        findings = DatasetFindings(gave_up="the file storage cannot be reached")
    json.dump(asdict(findings), sys.stdout)


if __name__ == "__main__":
    main()

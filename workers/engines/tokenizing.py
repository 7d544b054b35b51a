"""The fast tokenizer of a checkpoint that comes with a vocabulary alone, written down for who loads no transformers.

    vocab.txt, or vocab.json and merges.txt ──convert once──▶ <models_dir>/tokenizers/<their hash>/tokenizer.json

Older checkpoints (Legal-BERT, BioBERT, CodeBERT and their kin) have no tokenizer.json. The engine makes one in memory
each time it loads; whoever cuts texts on the model's own tokens reads this one. Beside it lie the folder's other small
files, so that it answers for the model's folder. It is made by a process of its own
(`python -m workers.engines.tokenizing FOLDER TARGET`); see `folders`.
"""

import hashlib
import logging
import shutil
import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

from workers.engines import folders

log = logging.getLogger(__name__)

#: What a tokenizer is made from: the first of these that is there is one.
VOCABULARIES: Final = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
#: What else it may need.
BESIDE: Final = ("merges.txt", "special_tokens_map.json", "added_tokens.json")
_WHOLE: Final = "tokenizer.json"


class _NoFastForm(Exception):
    """Nor will it have one another time."""


def has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARIES)


@lru_cache(maxsize=16)
def written(folder: Path, models_dir: Path, small: Sequence[str]) -> Path | None:
    """The folder with its tokenizer.json; `small` are the other files that go along. None: they make none.

    Raises NotMade where they may another time.
    """
    files = [folder / name for name in (*VOCABULARIES, *BESIDE, *small) if (folder / name).is_file()]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
    target = models_dir / "tokenizers" / digest.hexdigest()[:32]
    try:
        if not target.is_dir():
            folders.run("workers.engines.tokenizing", str(folder), str(target), *(file.name for file in files))
    except folders.NotMade as error:
        if error.status != folders.NEVER:
            raise
        log.warning("no_tokenizer_made", extra={"folder": str(folder), "error": str(error)})
        return None
    return target


def _fill(folder: Path, names: Sequence[str], scratch: Path) -> None:
    """Raises _NoFastForm where these files make no fast tokenizer."""
    from transformers import AutoTokenizer

    for name in names:
        shutil.copyfile(folder / name, scratch / name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # its own kinds, of whatever library reads such a vocabulary
        raise _NoFastForm(str(error)) from error
    if not tokenizer.is_fast:
        raise _NoFastForm(f"{type(tokenizer).__name__} has no fast form")
    tokenizer.backend_tokenizer.save(str(scratch / _WHOLE))


def main(folder: str, target: str, *names: str) -> None:
    try:
        folders.make(Path(target), partial(_fill, Path(folder), names))
    except _NoFastForm as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(folders.NEVER)


if __name__ == "__main__":
    main(*sys.argv[1:])

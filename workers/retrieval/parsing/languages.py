"""Name the language of a text.

A language is named only if it is certain. Measured on texts in 35 languages (messages of Debian's programs): where
py3langid was SURE, it was always right. It was sure of 83 % of the texts of 100 characters and of 97 % of those of 600,
in 0.1 and 0.3 ms. lingua is better with long texts and worse with short ones, takes ten times as long, and 96 MB on the
disk instead of 5.
"""

import io
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Final

from py3langid import modelio
from py3langid.langid import MODEL_FILE, LanguageIdentifier

SURE: Final = 0.9
_CODE: Final = 2  # letters, of ISO 639-1; others of the names are of three


@lru_cache(maxsize=1)
def load_languages() -> Any:
    """Load the model of 75 MB, in 0.7 s, without the temporary file that this process may not write."""
    modelio.tempfile = SimpleNamespace(TemporaryFile=lambda suffix: io.BytesIO())  # noqa: ARG005 (a file's name)
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> str | None:
    """Return the code of a text's language in two letters; None where that is not certain."""
    name, confidence = load_languages().classify(text)
    return str(name) if confidence >= SURE and len(name) == _CODE else None

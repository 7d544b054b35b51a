"""Ids as OpenAI spells them: a prefix and 24 random characters.

Ids are not ordered by time; lists order by `created_at`, then id.
"""

import secrets
import string

_ALPHABET = string.ascii_lowercase + string.digits
LENGTH = 24  # characters after the prefix


def new_id(prefix: str) -> str:
    """Return a new id: `new_id("file-")` is `file-` and 24 characters of 36 (124 bits)."""
    number = secrets.randbelow(len(_ALPHABET) ** LENGTH)  # once for all of them: a choice each costs ten times as much
    characters = []
    for _ in range(LENGTH):
        number, at = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[at])
    return prefix + "".join(characters)

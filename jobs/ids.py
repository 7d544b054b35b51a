"""Ids as OpenAI spells them: a prefix and 24 random characters.

Ids are not ordered by time; lists order by `created_at`, then id.
"""

import secrets
import string

_ALPHABET = string.ascii_lowercase + string.digits


def new_id(prefix: str) -> str:
    """`new_id("file-")` → `file-` and 24 characters of 36 (124 bits)."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(24))

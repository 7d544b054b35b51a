"""Words in any writing. Chinese and Japanese are written without spaces: there two characters side by side are a word.

"30天的年假 is OK"  ─▶  30, 天的, 的年, 年假, is, OK
"""

import re
from collections.abc import Iterator
from typing import Final

#: Of a regular expression's set. The second line is what Chinese and Japanese characters fill beside it, less often.
WIDE: Final = (
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\u3005-\u3007\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_RUN: Final = re.compile(rf"[{WIDE}]+|[^\W{WIDE}]+")
_IS_WIDE: Final = re.compile(f"[{WIDE}]")


def words(text: str) -> Iterator[str]:
    """In their order."""
    for run in runs(text):
        yield from pairs(run) if is_wide(run) else (run,)


def runs(text: str) -> list[str]:
    """What is wide and what is not, each as far as it goes."""
    return _RUN.findall(text)


def is_wide(run: str) -> bool:
    return _IS_WIDE.match(run) is not None


def pairs(run: str) -> list[str]:
    """A character that is alone is one."""
    return [run[at : at + 2] for at in range(max(1, len(run) - 1))]

"""Tables whose quotes are no quotes, and those whose are."""

import pytest

from workers.retrieval.parsing import plain


def rows(text: str) -> list[str]:
    return "\n".join(block.text for block in plain.read_table(text).blocks).split("\n")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('size\tname\n"5 inch\tdisk\n3 inch\tdisk\n', ["size | name", '"5 inch | disk', "3 inch | disk"]),
        ('a\tb\n"5\tx\n3\ty\n"6\tz\n', ["a | b", '"5 | x', "3 | y", '"6 | z']),
        ('a\tb\n"Yes" he said\tx\n', ["a | b", '"Yes" he said | x']),
        ('a,b\n1,"x\n2,y\n3,z', ["a | b", '1 | "x', "2 | y", "3 | z"]),
        ('a,b\n1,"', ["a | b", '1 | "']),
    ],
)
def test_a_quote_that_never_closes_holds_nothing(text: str, found: list[str]) -> None:
    assert rows(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            'a\tb\n"two\nlines\tand a tab"\t"said ""yes"""\r\n1\t2\n',
            ["a | b", 'two lines and a tab | said "yes"', "1 | 2"],
        ),
        ('a,b\n1,"x\ny"\n2,""""', ["a | b", "1 | x y", '2 | "']),
        ('a,b\n"x"y,"1,2"\nend', ["a | b", "xy | 1,2", "end"]),
        ('a,"b\nend"', ["a | b end"]),
    ],
)
def test_a_quote_that_closes_holds_a_field(text: str, found: list[str]) -> None:
    assert rows(text) == found

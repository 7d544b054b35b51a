"""Regular expressions of clients: which are compiled, what they may take, and what is refused before it is compiled."""

import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import regex

from jobs.evals.patterns import MAX_PARTS, SearchFailed, check_pattern, compile_pattern, is_found

ORDINARY = {
    r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})": "2026-12-01T10:00:00.123+01:00",
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": "123e4567-e89b-12d3-a456-426614174000",
    r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)": "192.168.0.1",
    r"^[\w.+-]{1,64}@[\w-]{1,63}(\.[\w-]{1,63}){1,8}$": "someone@example.org",
    r"(?i)\\boxed\{[^{}]{1,400}\}": r"\boxed{42}",
    r"[\s\S]{0,1000}answer: (\p{Lu}{1,3})": "the answer: ABC",
    r"^\(?\d{3}\)?[ -]?\d{3}[ -]?\d{4}$": "(555) 123-4567",
    r"(?<year>\d{4})|(?P<word>[[:alpha:]]{2,})|[]x[:digit:]\[(]{3}": "x(]",
    r"(?s:.{1,50}){1,20}": "text",
    r"(a)(?-i:b)(?=c)c\1{2,3}(?(1)d|e)": "abcaad",
    r"(?:error|warning){e<=2}": "waning",
}

BOMBS = [
    "((((((a{9}){9}){9}){9}){9}){9})",
    "(" * 12 + "a" + "{1000})" * 12,
    "((a{0,99}){0,99}){0,99}$",
    "(?:a{33}){32}",
    "a{1025}",
    "a{99999999999}",
    "a{,2000}",
    "a{2000,}",
    r"(?:[\](]a{99}[)\]]){99}",
    r"(?:[]()]a{99}){99}",
    r"(?:[^]()]a{99}){99}",
    r"(?:\)a{99}){99}",
    r"(?:[[:alpha:])]a{99}){99}",
    r"(?:a{99}|[)]){99}",
    "(a{99})(?i){99}",
    "(?<n>a{99}){99}",
    "(?i:(?=a{99})){99}",
    "(?:(?:(?:){99}){99}){99}",
    "(" + "a" * 900 + "){1000}",
    "(" + "ab|" * 300 + "){1000}",
    r"(?:\X){1000}",
    "a{1000}" * 140,
    "(?:a{1000}b){4}" * 3,
]
UNCOUNTABLE = [
    "(?R)", "a(?R)?b", "(a|(?1))", "(?<n>a(?&n)?)", "(?P<n>a(?P>n)?)", "((?+1)b)", "(a(?-1)?)",
    "(?x) ( a{99} ) {99}", "(?sx-i:a)", "(a{99})(?#)){99}", "(?V1)[a]", "[[a](b{99}]", "[a[(]b",
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "text"), ORDINARY.items())
def test_an_ordinary_pattern_is_found(pattern: str, text: str) -> None:
    assert is_found(compile_pattern(pattern), text)


@pytest.mark.parametrize("pattern", BOMBS, ids=lambda pattern: pattern[:30])
def test_a_pattern_that_repeats_too_much_is_refused_before_it_is_compiled(pattern: str) -> None:
    with pytest.raises(ValueError, match="at most"):
        compile_pattern(pattern)


@pytest.mark.parametrize("pattern", UNCOUNTABLE)
def test_pattern_with_uncountable_parts_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="no calls of groups"):
        compile_pattern(pattern)


@pytest.mark.parametrize("check", [check_pattern, compile_pattern])
@pytest.mark.parametrize("pattern", ["(", "a{5,2}", "*a", "a)", "[a", "a{2}*{3", "(?P<n", r"\p{Nothing}", "(?<=a"])
def test_invalid_or_explosive_pattern_is_refused_and_ordinary_passes(
    check: Callable[[str], object], pattern: str
) -> None:
    wrong = [*BOMBS, pattern, f"x{{3}}{pattern}"]

    for text in wrong:
        with pytest.raises(ValueError, match=r"\w"):
            check(text)
    for text in ORDINARY:
        check(text)


def test_literal_call_syntax_and_inline_flag_are_accepted() -> None:
    for pattern, text in ((r"\(?R\)?", "R"), (r"[(?R)]x", "Rx"), (r"\(?xyz", "xyz"), (r"(?i)A", "a")):
        assert is_found(compile_pattern(pattern), text)


#: The worst patterns that pass, of those that were measured.
WORST = [
    r"(?:\X){450}", "(?:a?b*){1000}", "(?:ab|c|d){800}", "(?:[a-z]*.){1000}", "a?" * 500, "(" * 300 + "a" + ")" * 300,
    "(?:(?:a|b){31}c?){32}", "(?i)(?:ßßßß|s){600}", "a{1000}" * 4, "(?:(?:a+)+){1000}", r"(?:\p{L}+\b){500}",
]  # fmt: skip
COMPILE = """if True:
    import json, resource, sys, time
    from jobs.evals.patterns import compile_pattern
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    patterns = json.load(sys.stdin) * 10
    before, began = peak(), time.process_time()
    for pattern in patterns:
        compile_pattern(pattern)
    print((time.process_time() - began) / len(patterns), peak() - before)
"""


def test_worst_accepted_pattern_compiles_fast_and_is_not_cached() -> None:
    command = [sys.executable, "-c", COMPILE]
    ran = subprocess.run(command, input=json.dumps(WORST), capture_output=True, text=True, check=True, timeout=120)
    seconds, kilobytes = map(float, ran.stdout.split())
    assert seconds < 0.2  # 2 ms where nothing else runs
    assert kilobytes < 50_000
    compile_pattern("of a client")
    assert not any(
        "of a client" in str(key) for kept in vars(regex._main).values() if isinstance(kept, dict) for key in kept
    )


def test_a_search_has_the_time_that_is_left_and_no_more_than_a_second() -> None:
    compiled = compile_pattern("(a|aa)+$")
    for seconds in (0.05, 60.0):
        began = time.process_time()
        with pytest.raises(SearchFailed, match="within"):
            is_found(compiled, "a" * 5000 + "b", seconds)
        assert time.process_time() - began < 30
    assert MAX_PARTS < 10_000

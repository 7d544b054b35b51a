"""The formula of a `multi` grader: arithmetic on the scores of its graders.

    + - * / ^  parentheses  numbers  names of graders  min max abs floor ceil exp sqrt log

A formula is checked and compiled once. Its values are floats, so that no number grows with the formula.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from typing import Final

MAX_LENGTH: Final = 1000
_MAX_NODES: Final = 256
_ALPHABET: Final = re.compile(r"[A-Za-z0-9_+\-*/^(),.\s]+")
_PYTHON_ONLY: Final = ("**", "//")  # operators of Python that no formula has

_Values = Mapping[str, float]
_Compiled = Callable[[_Values], float]

_OPERATORS: Final[Mapping[type[ast.AST], Callable[[float, float], float]]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: math.pow,
}  # fmt: skip
_SIGNS: Final[Mapping[type[ast.AST], Callable[[float], float]]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_OF_ONE: Final[Mapping[str, Callable[[float], float]]] = {
    "abs": abs, "floor": math.floor, "ceil": math.ceil, "exp": math.exp, "sqrt": math.sqrt, "log": math.log,
}  # fmt: skip
_OF_MANY: Final[Mapping[str, Callable[[list[float]], float]]] = {"min": min, "max": max}
#: Names that no grader may have, because formulas call them.
FUNCTIONS: Final = frozenset({*_OF_ONE, *_OF_MANY})


class FormulaError(ValueError):
    """A formula is not arithmetic, or has no value for the given scores."""


class Formula:
    """A compiled formula over the scores of graders."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        """Compile `text`, which may refer to the graders `names`.

        Raises: FormulaError.
        """
        if len(text) > MAX_LENGTH:
            raise FormulaError(f"A formula has at most {MAX_LENGTH} characters.")
        if not _ALPHABET.fullmatch(text) or any(sign in text for sign in _PYTHON_ONLY):
            raise FormulaError("A formula has numbers, names of graders, functions and + - * / ^ ( ) alone.")
        try:
            tree = ast.parse(" ".join(text.split()).replace("^", "**"), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise FormulaError("The formula is not an arithmetic expression.") from error
        if sum(1 for _ in ast.walk(tree)) > _MAX_NODES:
            raise FormulaError(f"A formula has at most {_MAX_NODES} parts.")
        self._compiled = _compile(tree, names)

    def evaluate(self, scores: _Values) -> float:
        """Return the value for the scores by name.

        Raises: FormulaError, where the value is not a finite number.
        """
        try:
            value = float(self._compiled(scores))
        except ZeroDivisionError as error:
            raise FormulaError("The formula divides by zero.") from error
        except OverflowError as error:
            raise FormulaError("The formula's value is too large.") from error
        except ValueError as error:
            raise FormulaError("The formula has no value for these scores.") from error
        if not math.isfinite(value):
            raise FormulaError("The formula's value is not a finite number.")
        return value


def _compile(node: ast.AST, names: Collection[str]) -> _Compiled:
    """Return a function that computes the value of a part of a formula. Raises: FormulaError."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            number = _number(value)
            return lambda _: number
        case ast.Name(id=name):
            if name not in names:
                raise FormulaError(f"The formula names '{name[:64]}', which is none of the graders.")
            return lambda scores: scores[name]
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
            apply, value_of = _SIGNS[type(sign)], _compile(operand, names)
            return lambda scores: apply(value_of(scores))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
            combine, left_of, right_of = _OPERATORS[type(sign)], _compile(left, names), _compile(right, names)
            return lambda scores: combine(left_of(scores), right_of(scores))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _compile_call(name, [_compile(argument, names) for argument in arguments])
    raise FormulaError("A formula has numbers, names of graders, functions and + - * / ^ ( ) alone.")


def _compile_call(name: str, arguments: list[_Compiled]) -> _Compiled:
    if name in _OF_ONE and len(arguments) == 1:
        function, [argument] = _OF_ONE[name], arguments
        return lambda scores: function(argument(scores))
    if name in _OF_MANY and arguments:
        choose = _OF_MANY[name]
        return lambda scores: choose([argument(scores) for argument in arguments])
    if name in FUNCTIONS:
        raise FormulaError(f"The function '{name}' does not take {len(arguments)} arguments.")
    raise FormulaError(f"The formula calls '{name[:64]}'. Functions are: {', '.join(sorted(FUNCTIONS))}.")


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise FormulaError("A number of the formula is too large.") from error

"""Groups of commands with uniform help: `-h` everywhere, and flags without a type."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

F = TypeVar("F", bound=Callable[..., Any])
_LIST = re.compile(r"<list\[(.*)\]>")


class _Labelled:
    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if "display_type" not in vars(param):
                param.display_type = partial(_type, param, param.display_type)
        return params


def _type(param: Any, display_type: Callable[[Any], str], ctx: Any) -> str | None:
    """Return the type of one value, as help shows it; None for a flag, which takes no value."""
    if getattr(param, "is_flag", False):
        return None
    return _LIST.sub(r"<\1>", display_type(ctx)).replace(" range>", ">")


class Verb(_Labelled, TyperCommand):
    """A command."""


class _Verbs(_Labelled, TyperGroup):
    """A group of commands, as Click uses it."""


class Group(typer.Typer):
    """A group of commands, or the whole command."""

    def __init__(self, help: str, **options: Any) -> None:  # noqa: A002 (Typer's name)
        short = {"help_option_names": ["-h", "--help"]}
        super().__init__(help=help, cls=_Verbs, no_args_is_help=True, context_settings=short, **options)

    def command(
        self, name: str | None = None, *, cls: type[TyperCommand] | None = Verb, **options: Any
    ) -> Callable[[F], F]:
        return super().command(name, cls=cls, **options)

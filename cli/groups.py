"""Groups of commands with uniform help, `-h` everywhere and flags without a type, and with options that they share."""

import inspect
import re
from collections.abc import Callable
from functools import partial, wraps
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
        """Return a decorator that adds a function as a command, and leaves the function as it is."""
        add = super().command(name, cls=cls, **options)

        def decorate(function: F) -> F:
            add(_flatten(function))
            return function

        return decorate


def _flatten(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with the fields of the class of its parameter `options` as parameters of its own.

    Typer reads the signature, and so makes an option of each field.
    """
    signature = inspect.signature(function)
    own = dict(signature.parameters)
    if "options" not in own:
        return function
    make_options = own.pop("options").annotation
    shared = inspect.signature(make_options).parameters

    @wraps(function)
    def command(**values: Any) -> Any:
        return function(make_options(**{name: values.pop(name) for name in shared}), **values)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own.values(), *shared.values())]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command

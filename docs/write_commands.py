"""Write `docs/commands.md`, the reference of every command, from the commands themselves."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from cli.options import ApiKey, AsJson, DataDir, Url

PAGE = Path(__file__).with_name("commands.md")
#: Options that have the same meaning in each command that has them, by their help. The page explains them once.
SHARED = [option.__metadata__[0].help for option in (Url, ApiKey, DataDir, AsJson)]
HEAD = """# Commands

This page is written from the help of the commands by `make docs`.

`-h` after any command shows its help. `nightmill --install-completion` lets your shell complete commands, options and
their values.

**Output.** A command prints text for people. With `--json` it prints JSON Lines: one object on one line, or of a list
one object for each entry. What a command says beside its result goes to standard error.

**Exit code.** 0 after success, 1 after a failure, 2 for options or arguments that are wrong, 130 after Ctrl-C.

**Which server.** Commands with `--url` ask a server, the others work on the database and the files of a deployment.
Without these options a command uses the running deployment in `.nightmill` here, or else the one that you started last.

"""


def page(root: Any) -> str:
    """Return the page for a command and all commands below it."""
    shared: dict[str, str] = {}
    body = "\n".join(line for command in _commands(root, "nightmill") for line in _section(*command, shared))
    rows = "\n".join(shared[text] for text in SHARED)
    return f"{HEAD}| option | meaning |\n|---|---|\n{rows}\n\n{body}"


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _section(path: str, command: Any, shared: dict[str, str]) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    shared.update((option.help, _row(option)) for option in options if option.help in SHARED)
    own = [option for option in options if option.help not in SHARED]
    yield f"## `{' '.join([path, *map(_name, arguments)])}`\n"
    yield re.sub(r"\s+", " ", command.help.replace("\n\n", " ")) + "\n"
    if arguments or own:
        yield "| option | meaning |\n|---|---|"
        yield from (f"| `{_name(one)}` | {_cell(one.help)} |" for one in arguments)
        yield from map(_row, own)
        yield ""
    same = [f"`{option.opts[0]}`" for option in options if option.help in SHARED]
    yield f"Also {', '.join(same)}.\n" if same else ""


def _name(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    default = option.default if not callable(option.default) else None
    shown = f" Default: `{default}`." if default not in (None, "", False, True, [], ()) else ""
    variable = f" Also `{option.envvar}`." if option.envvar else ""
    return f"| {names} | {_cell(option.help)}{shown}{variable} |"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    from cli.main import app

    PAGE.write_text(page(typer.main.get_command(app)))

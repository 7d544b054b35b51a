"""Values from a file instead of the environment: `NAME_FILE=/run/secrets/name` stands for `NAME=…`.

Secrets that are mounted as files need no environment that holds them, which every child and every crash report would
inherit. Errors name the variable, never the value of it or of the file. `write_secret` makes the files of the product.
"""

import os
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path

SUFFIX = "_FILE"


def secret(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the value of `name`, or of the file that `name` + `_FILE` names; empty when neither is set.

    Raises SettingsError when both are set, or the file holds no value.
    """
    value, path = environment.get(name, ""), environment.get(name + SUFFIX, "")
    if value and path:
        raise _refusal(f"{name} and {name}{SUFFIX} are both set; keep one of them")
    return _content(name + SUFFIX, path) if path else value


def write_secret(path: Path, text: str) -> None:
    """Write a file as a whole and durably, readable by its owner alone."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.time_ns()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(text + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def replace_values(environment: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which `values` replace what it has for these names, files too."""
    files = {name + SUFFIX for name in values}
    return {**{name: value for name, value in environment.items() if name not in files}, **values}


def anchor(environment: MutableMapping[str, str]) -> None:
    """Make the paths of files in the environment absolute, from the current folder: children run in another one."""
    for name, value in list(environment.items()):
        if name.endswith(SUFFIX) and value and not os.path.isabs(value) and os.path.isfile(value):  # noqa: PTH113, PTH117
            environment[name] = str(Path(value).absolute())


def _content(variable: str, path: str) -> str:
    try:
        text = Path(path).read_text().rstrip("\r\n")
    except OSError as error:
        raise _refusal(f"{variable}: its file cannot be read ({error.strerror})") from None
    except ValueError:
        raise _refusal(f"{variable}: its file is not text in UTF-8") from None
    if not text:
        raise _refusal(f"{variable}: its file is empty")
    return text


def _refusal(message: str) -> Exception:
    """Return a SettingsError. Its library takes long to import, and the command imports this module at its start."""
    from pydantic_settings import SettingsError

    return SettingsError(message)

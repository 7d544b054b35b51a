"""Completion windows: OpenAI's `24h`, and any number of seconds, minutes, hours or days within the settings' bounds."""

import re

from jobs.errors import InvalidRequest
from jobs.settings import Settings

#: For the OpenAPI document.
PATTERN = "^[1-9][0-9]{0,5}[smhd]$"
_SHAPE = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(window: str, config: Settings) -> int:
    """The length of a window. Raises InvalidRequest."""
    match = _SHAPE.fullmatch(window)
    length = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not config.window_min_seconds <= length <= config.window_max_seconds:
        message = (
            f"Invalid value: '{window[:64]}'. Supported values are: '24h', and any whole number of minutes, hours or "
            f"days ('90m', '6h', '7d') of {config.window_min_seconds} to {config.window_max_seconds} seconds."
        )
        raise InvalidRequest(message, param="completion_window", code="invalid_value")
    return length

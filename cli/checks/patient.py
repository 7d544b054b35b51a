"""What a check is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cli.folder import DataFolder
from jobs.settings import Settings


@dataclass(frozen=True, slots=True)
class Patient:
    """The installation that is looked at. `run` is `run.json`, empty when nothing runs."""

    config: Settings
    folder: DataFolder
    run: Mapping[str, Any]

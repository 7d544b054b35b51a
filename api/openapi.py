"""Print the OpenAPI document of the API: `python -m api.openapi`.

The extension `x-kinds` has the table of kinds, from which the console is built.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from api.app import build
from jobs.ledger import kinds
from jobs.ledger.kinds import Kind
from jobs.settings import Settings


def document() -> dict[str, Any]:
    """Return the OpenAPI document of the API with default settings."""
    with tempfile.TemporaryDirectory() as folder:
        described = build(Settings(data_dir=Path(folder))).openapi()
    return {**described, "x-kinds": [_describe(row) for row in kinds.rows().values()]}


def _describe(row: Kind) -> dict[str, Any]:
    """Return what the console needs of a kind."""
    return {
        "name": row.name,
        "label": row.label,
        "prefix": row.prefix,
        "events": list(dict.fromkeys((*row.events.values(), *row.other_events))),
        "resources": row.resources,
        "has_lines": row.has_lines,
        "retryable": row.retry is not None,
    }


if __name__ == "__main__":
    json.dump(document(), sys.stdout)

"""Print the OpenAPI document of the API: `python -m api.openapi`."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from api.app import build
from jobs.settings import Settings


def document() -> dict[str, Any]:
    """Return the OpenAPI document of the API with default settings."""
    with tempfile.TemporaryDirectory() as folder:
        return build(Settings(data_dir=Path(folder))).openapi()


if __name__ == "__main__":
    json.dump(document(), sys.stdout)

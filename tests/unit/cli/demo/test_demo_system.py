"""The installation of the demo: it shares nothing with others, and says which of its processes keeps ending."""

import json
from pathlib import Path

import pytest

from cli.demo.system import _SHARED, System
from cli.errors import CliError
from cli.up.folder import DataFolder
from cli.up.service import Program, Service
from jobs.settings import Settings


def test_an_installation_of_its_own_touches_nothing_that_others_share() -> None:
    indexes = {name for name in Settings.model_fields if name.endswith("_url")}

    assert indexes | {"vectors_api_key"} == {name.removeprefix("NIGHTMILL_").lower() for name in _SHARED}


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (
            json.dumps({"event": "engine_did_not_start", "error": "Traceback:\n …\nBadEngineArgs: no --bogus"})
            + "\nwhat the next start says\n",
            "engine_did_not_start: BadEngineArgs: no --bogus",
        ),
        ("killed\n", "killed"),
    ],
)
def test_repeatedly_ending_process_is_reported_with_last_error(tmp_path: Path, log: str, told: str) -> None:
    folder = DataFolder(tmp_path)
    folder.make()
    folder.write_run({"processes": [{"name": "gpu", "restarts": 3}]})
    (folder.logs / "gpu.log").write_text(log)
    service = Service(Program("up", ("sleep", "60"), {}, tmp_path, folder.logs / "up.log"))
    service.start()
    system = System(folder, service)

    try:
        with pytest.raises(CliError, match=rf"'gpu' keeps ending; its log says\n{told}$"):
            system.check()
    finally:
        system.stop()

"""The scripts of `examples/`, each a module whose client has no server."""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import pytest

from tests.support.system import ROOT


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return a function that imports a script by its name, as its siblings do."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    return import_module

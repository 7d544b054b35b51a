"""Provide the parser of some formats: where it is missing their tests skip, and fail in CI."""

import importlib

import pytest

from tests.support.services import need
from workers.retrieval.parsing import office


@pytest.fixture(scope="session")
def kreuzberg() -> None:
    try:
        importlib.import_module("kreuzberg")
    except ImportError as error:
        need("The extra `parse`", error)


@pytest.fixture(scope="session")
def tesseract(kreuzberg: None) -> None:
    if not office.sees():
        need("Tesseract", FileNotFoundError("Debian has it as tesseract-ocr"))

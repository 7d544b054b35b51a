"""The logs of an engine quote nobody."""

import ast
import logging
from collections.abc import Callable, Iterator

import pytest

from workers.engines.vllm.vllm_engine import WITHHELD, TextlessRecords

TEXT = "canary: the patient's name"
parser = logging.getLogger("vllm.tool_parsers.pythonic_tool_parser")


def not_python() -> None:
    try:
        ast.parse(TEXT)
    except SyntaxError:
        parser.exception("Error in extracting tool call from response.")


def an_argument() -> None:
    parser.warning("No tool named '%s'.", TEXT)


def a_text() -> None:
    message = f"Tool call arguments '{TEXT}' do not end"
    parser.error(message)


def a_text_with_an_argument() -> None:
    parser.error(f"{TEXT}: %s", "odd")


def an_error_in_a_text() -> None:
    try:
        raise ValueError(TEXT)
    except ValueError as error:
        parser.exception(f"Error in streaming tool calls: {error}")


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[Callable[[], None]], str]]:
    """As a handler writes what a call logs."""
    usual = logging.getLogRecordFactory()
    logging.setLogRecordFactory(TextlessRecords(usual))

    def written(call: Callable[[], None]) -> str:
        call()
        return "\n".join(map(logging.Formatter("%(levelname)s %(filename)s %(message)s").format, caplog.records))

    yield written
    logging.setLogRecordFactory(usual)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (not_python, "ERROR test_vllm_engine.py Error in extracting tool call from response. (SyntaxError)"),
        (an_argument, "WARNING test_vllm_engine.py No tool named '%s'."),
        (a_text, f"ERROR test_vllm_engine.py {WITHHELD}"),
        (a_text_with_an_argument, f"ERROR test_vllm_engine.py {WITHHELD}"),
        (an_error_in_a_text, f"ERROR test_vllm_engine.py {WITHHELD} (ValueError)"),
    ],
)
def test_parser_log_omits_request_text(
    told: Callable[[Callable[[], None]], str], call: Callable[[], None], expected: str
) -> None:
    assert told(call) == expected


@pytest.mark.parametrize("name", ["vllm.v1.engine.core_client", "workers.engines.vllm.vllm_engine"])
def test_records_of_other_loggers_are_written_in_full(told: Callable[[Callable[[], None]], str], name: str) -> None:
    def fails() -> None:
        try:
            raise ValueError("no memory")
        except ValueError:
            logging.getLogger(name).exception("died with %s", "rank 3")

    written = told(fails)

    assert "died with rank 3" in written
    assert "ValueError: no memory" in written


def test_record_without_logger_name_is_created_unchanged(told: object) -> None:
    assert told
    assert logging.makeLogRecord({"msg": "x"}).getMessage() == "x"

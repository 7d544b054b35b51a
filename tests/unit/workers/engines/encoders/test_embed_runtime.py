"""The choice of an embedding runtime: the rules alone, and the measuring on a small model."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.fleet import runtimes
from jobs.fleet.runtimes import Candidate, RuntimeRecord
from jobs.timings import Timings
from tests.support import tiny_bert
from workers.engines.encoders import embed_model, embed_runtime
from workers.engines.encoders.embed_model import OnnxTransformer, SentenceModel
from workers.engines.encoders.embed_runtime import Choices, Chooser, Order, key_of, measure_here, measures
from workers.engines.encoders.runtime_trials import MAX_WORDS, TEXTS, choose, texts, too_far

pytestmark = [pytest.mark.verify, pytest.mark.timeout(240)]

T32, BF16 = ("torch", "float32"), ("torch", "bfloat16")
O32, INT8 = ("onnx", "float32"), ("onnx", "int8")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_bert.write(tmp_path_factory.mktemp("weights")))


def order(weights: str, folder: Path, floor: float = 0.999, **args: Any) -> Order:
    return Order("tiny", weights, None, args, str(folder), floor, key_of("tiny", weights, None, args, floor))


def recorded(weights: str, folder: Path, *rates: float, chosen: int) -> Order:
    """As if it had been measured."""
    kinds = (T32, BF16, O32, INT8)
    candidates = tuple(Candidate(*kind, rate, 1, 1) for kind, rate in zip(kinds, rates, strict=True))
    asked = order(weights, folder)
    runtimes.write(folder, asked.key, RuntimeRecord("tiny", "cpu", {}, 0.999, 1, 1.0, candidates, chosen))
    return asked


@pytest.mark.parametrize(
    ("rates", "refused", "restricted", "expected"),
    [
        ((10, 30, 20, 60), (), "", INT8),
        ((10, 30, 20, 60), (INT8,), "", BF16),
        ((10, 10.5, 10.9, 9), (), "", T32),  # not worth it
        ((10, 30, 31, 9), (), "", BF16),
        ((10, 30, 20, 9), (), "onnx", O32),
        ((10, 30, 20, 60), (O32, INT8), "onnx", T32),  # nothing else works
        ((10, 0, 0, 0), (BF16, O32, INT8), "", T32),
    ],
)
def test_fastest_that_may_be_taken_is_chosen(
    rates: tuple[float, ...], refused: tuple[Any, ...], restricted: str, expected: tuple[str, str]
) -> None:
    kinds = (T32, BF16, O32, INT8)
    candidates = [
        Candidate(*kind, rate, refused="far off" if kind in refused else "")
        for kind, rate in zip(kinds, rates, strict=True)
    ]

    found = candidates[choose(candidates, restricted)]

    assert (found.runtime, found.dtype) == expected


@pytest.mark.parametrize(
    ("mean", "least", "floor", "told"),
    [
        (0.99995, 0.9999, 0.999, ""),
        (0.9939, 0.9883, 0.999, "mean cosine 0.9939 is below 0.999"),
        (0.9939, 0.9883, 0.99, ""),
        (0.9995, 0.97, 0.999, "least cosine 0.9700 is below 0.998"),
        (1.0, 1.0, 1.0, ""),
    ],
)
def test_floor_is_for_the_mean_and_a_little_lower_for_each(mean: float, least: float, floor: float, told: str) -> None:
    assert too_far(mean, least, floor) == told


@pytest.mark.parametrize(
    ("args", "floor", "expected"),
    [
        ({}, 0.999, True),
        ({"batch_tokens": 512}, 0.99, True),
        ({"dtype": "auto", "runtime": "auto"}, 0.999, True),
        ({"dtype": "float32"}, 0.999, False),
        ({"runtime": "torch"}, 0.999, False),
        ({}, 1.0, False),
        ({"runtime": "onnx"}, 1.0, True),
    ],
)
def test_measurement_is_skipped_if_arguments_leave_no_choice(
    args: dict[str, Any], floor: float, expected: bool
) -> None:
    assert measures(args, floor) is expected


def test_texts_are_of_many_lengths_and_the_same_each_time() -> None:
    lengths = [len(text.split()) for text in texts()]

    assert texts() == texts()
    assert len(set(texts())) == TEXTS
    assert (lengths[0], lengths[-1], len(set(lengths)) > TEXTS / 2) == (3, MAX_WORDS, True)


def test_key_stands_for_weights_floor_and_arguments(weights: str, tmp_path: Path) -> None:
    copy = tiny_bert.write(tmp_path)

    keys = [
        key_of("tiny", weights, None, {}, 0.999),
        key_of("tiny", weights, None, {}, 0.99),
        key_of("tiny", weights, None, {"threads": 99}, 0.999),
        key_of("tiny", weights, None, {"runtime": "onnx"}, 0.999),
        key_of("tiny", str(copy), None, {}, 0.999),
        key_of("tiny", "org/name", "0" * 40, {}, 0.999),
        key_of("tiny", "org/name", "1" * 40, {}, 0.999),
    ]

    assert len(set(keys)) == len(keys)
    assert key_of("tiny", weights, None, {"prompt": "x"}, 0.999) == keys[0]


def test_measurement_records_all_candidates_and_stores_only_chosen_file(weights: str, tmp_path: Path) -> None:
    (tmp_path / ".scratch-killed").mkdir()
    asked = order(weights, tmp_path, floor=0.9)

    record = measure_here(asked)

    assert [(one.runtime, one.dtype) for one in record.candidates] == [T32, BF16, O32, INT8]
    assert all(one.texts_per_second > 0 for one in record.candidates)
    assert [one.mean_cosine > 0.9 for one in record.candidates] == [True] * 4
    expected = [".lock", f"{asked.key}.json"]
    if record.choice.runtime == "onnx":
        expected.append(f"{asked.key}.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == expected


def test_recorded_choice_is_used_without_measurement(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recorded(weights, tmp_path, 10, 30, 0, 0, chosen=1)
    monkeypatch.setattr(embed_runtime, "measure", None)

    assert measure_here(asked).choice.dtype == "bfloat16"
    model: Any = Chooser("tiny", Choices(tmp_path, 0.999)).load(weights, None, {})

    assert next(model.transformer.parameters()).dtype == model._torch.bfloat16


def test_model_that_can_not_be_exported_stays_on_torch_and_the_record_says_why(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_model, "MAX_ONNX_BYTES", 1000)

    record = measure_here(order(weights, tmp_path, runtime="onnx"))

    assert record.choice.name == "torch float32"
    assert "MiB of weights" in record.candidates[2].refused
    assert record.candidates[3].refused == "NotExportable: there is no export to quantise"
    assert record.candidates[3].texts_per_second == 0


def test_damaged_file_is_forgotten_and_torch_computes(weights: str, tmp_path: Path) -> None:
    asked = order(weights, tmp_path)
    runtimes.onnx_file(tmp_path, asked.key).write_bytes(b"not a model")
    recorded(weights, tmp_path, 10, 0, 30, 0, chosen=2)

    model = Chooser("tiny", Choices(tmp_path, 0.999)).load(weights, None, {})

    assert not isinstance(model.transformer, OnnxTransformer)
    assert list(tmp_path.glob("*.*n*")) == []


def test_requested_onnx_file_is_created_at_first_start_and_reused(weights: str, tmp_path: Path) -> None:
    chooser = Chooser("tiny", Choices(tmp_path, 0.999))

    first = chooser.load(weights, None, {"runtime": "onnx"})
    made = runtimes.all_records(tmp_path)
    again = chooser.load(weights, None, {"runtime": "onnx"})

    plain = SentenceModel(weights, None, {"dtype": "float32"})
    ids = plain.tokens_of(["A cat sat on the mat."])
    assert isinstance(first.transformer, OnnxTransformer)
    assert isinstance(again.transformer, OnnxTransformer)
    assert runtimes.all_records(tmp_path) == made
    assert float(first.embed(ids)[0] @ plain.embed(ids)[0]) > 0.998


def test_first_start_does_not_wait_for_measuring_and_closing_ends_it(weights: str, tmp_path: Path) -> None:
    chooser = Chooser("tiny", Choices(tmp_path, 0.999))

    model = chooser.load(weights, None, {})
    [waiter] = [thread for thread in threading.enumerate() if thread.name == "embed-runtime"]
    while chooser._child is None:
        waiter.join(0.01)
    measured = runtimes.all_records(tmp_path)
    chooser.close()
    waiter.join(30)

    assert not isinstance(model.transformer, OnnxTransformer)
    assert measured == []
    assert (waiter.is_alive(), chooser._child.returncode) == (False, -9)


def test_child_that_fails_says_why(weights: str, tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()

    with pytest.raises(embed_runtime.MeasuringFailed, match="IsADirectoryError"):
        Chooser("tiny", Choices(tmp_path, 0.999)).load(weights, None, {"runtime": "onnx"})


def test_child_waits_for_a_quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    processors = os.cpu_count() or 1
    loads = [processors * 2.0, processors * 0.6, processors * 0.4, 0.0]
    monkeypatch.setattr(os, "getloadavg", lambda: (loads.pop(0), 0, 0))

    embed_runtime.wait_until_quiet(0.0, replace(Timings(), quiet_look=0.0))

    assert loads == [0.0]


def test_patience_with_a_machine_that_is_never_quiet_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1e6, 0, 0))
    start = time.monotonic()

    with pytest.raises(embed_runtime.NeverQuiet):
        embed_runtime.wait_until_quiet(0.0, replace(Timings(), quiet_look=0.01, quiet_patience=0.05))

    assert time.monotonic() - start >= 0.05


def test_gpu_is_measured_at_the_start(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_runtime, "_gpu", lambda: "some GPU")

    Chooser("tiny", Choices(tmp_path, 0.999)).load(weights, None, {})

    [record] = runtimes.all_records(tmp_path)
    assert (record.machine, record.floor) == ("some GPU", 0.999)

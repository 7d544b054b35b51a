"""Imported folders: what is registered of a good one, and the reason for which each bad one is refused."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.platform.storage import DiskStorage
from tests.support.exported_adapters import LAYERS, contents, pairs, safetensors, write_adapter, write_base
from workers.engines import probes
from workers.finetuning import imported_folder
from workers.finetuning.imported_folder import BadFolder, ClientFolder

WEIGHTS = "adapter_model.safetensors"
PROBE: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hello."}],
    "token_ids": [1, 2],
    "continuation": [3] * probes.CONTINUATION,
    "logprobs": [-0.5],
    "base_logprobs": [-0.5],
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def client_folder(folder: Path, **paths: str) -> ClientFolder:
    named = {path.name: path.name for path in folder.iterdir()}
    return ClientFolder(DiskStorage(folder), named | paths, lambda: None)


def reason(folder: ClientFolder, base: Path, max_rank: int = 16) -> str:
    with pytest.raises(BadFolder) as caught:
        imported_folder.check(folder, base, max_rank)
    return str(caught.value)


def test_good_folder_is_described_by_its_manifest(base: Path, tmp_path: Path) -> None:
    files = contents() | {probes.FILE: json.dumps([PROBE] * len(probes.CHATS)).encode()}
    folder = write_adapter(tmp_path / "adapter", base, files, hardware={"cpus": 2}, unknown={"a": "b" * 1000})

    found = imported_folder.check(client_folder(folder), base, 16)

    assert (found.method, len(found.sha256)) == ("lora", 64)
    assert found.manifest["bytes"] == sum(map(len, files.values()))
    assert sorted(found.manifest["files"]) == sorted(files)
    run = found.manifest["run"]
    assert (run["step"], run["hardware"], run["base"]["license"]) == (4, {"cpus": 2}, "apache-2.0")
    assert "unknown" not in run


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS, "chat_template.jinja"])
def test_changed_file_is_named(base: Path, tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "adapter", base)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    assert reason(client_folder(folder), base) == f"{name} was changed: its SHA-256 is not the one in manifest.json."


def remove(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def add(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")


def without_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def no_json(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"[" * 100_000)


def too_large_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b" " * ((1 << 20) + 1))


def listing(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["files"][name] = {"sha256": "0" * 64, "bytes": 1}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


def run_of(**facts: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["run"] |= facts
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (remove, f"{WEIGHTS} is missing."),
        (add, "notes.txt is not in manifest.json."),
        (without_manifest, "manifest.json is missing."),
        (no_json, "manifest.json cannot be read"),
        (too_large_manifest, "manifest.json has 1048577 bytes"),
        (listing("../../etc/passwd"), "a file whose name no model has: '../../etc/passwd'"),
        (listing("a/b.json"), "a file whose name no model has"),
        (listing("pytorch_model.bin"), "pytorch_model.bin is no kind of file that is imported"),
        (listing("weights.pkl"), "weights.pkl is no kind of file"),
        (run_of(step="four"), "manifest.json cannot be read"),
        (run_of(peft="full"), "manifest.json cannot be read"),
        (run_of(base=["a"]), "manifest.json cannot be read"),
        (run_of(device="x" * 300), "manifest.json cannot be read"),
    ],
)
def test_folder_that_is_not_as_its_manifest_says_is_refused(
    base: Path, tmp_path: Path, change: Callable[[Path], None], expected: str
) -> None:
    folder = write_adapter(tmp_path / "adapter", base)
    change(folder)

    assert expected in reason(client_folder(folder), base)


def with_weights(data: bytes) -> dict[str, bytes]:
    return contents() | {WEIGHTS: data}


def lacking() -> dict[str, tuple[int, ...]]:
    return dict(list(pairs().items())[1:])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (contents(r=32), "has the rank 32; the engine of the base serves 16 at most"),
        (contents(r=0), "adapter_config.json cannot be read"),
        (contents(peft_type="IA3"), "adapter_config.json cannot be read"),
        (contents(target_modules=".*"), "adapter_config.json cannot be read"),
        (contents(target_modules=["w1"]), "The base has none of the layers"),
        (contents(target_modules=["q_proj"]), "has a tensor that is of no layer of the base"),
        (contents(r=2), "another rank than its configuration says"),
        (contents(auto_mapping={"parent_library": "os"}), "sets 'auto_mapping'"),
        (contents(modules_to_save=["lm_head"]), "sets 'modules_to_save'"),
        (contents(use_dora=True), "sets 'use_dora'"),
        (with_weights(safetensors(lacking())), "lacks 1 tensors of layers of the base"),
        (with_weights(safetensors(pairs() | {"extra": (1,)})), "has a tensor that is of no layer of the base: extra"),
        (with_weights(safetensors(pairs(), "I32")), "is of the type I32"),
        (with_weights(safetensors(pairs())[:-1]), "is no safetensors file"),
        (with_weights(safetensors(pairs()) + b"\0"), "is no safetensors file"),
        (with_weights(safetensors(pairs(), "F16")), "is no safetensors file"),
        (with_weights(b"\x80\x04" * 20), "it has no header of safetensors"),
        (with_weights((5).to_bytes(8, "little") + b"[1,2]"), "cannot be read"),
        ({"config.json": b"{}", "model.safetensors": b""}, "only adapters are imported"),
        (contents() | {probes.FILE: json.dumps([PROBE] * 11).encode()}, "more or longer chats"),
        (contents() | {probes.FILE: json.dumps([PROBE | {"continuation": [3] * 99}]).encode()}, "more or longer chats"),
        (contents() | {probes.FILE: b" " * ((1 << 18) + 1)}, "probes.json has 262145 bytes"),
        (contents() | {f"notes-{n}.txt": b"" for n in range(64)}, "a model has fewer than 64"),
    ],
)
def test_adapter_that_does_not_fit_is_refused(
    base: Path, tmp_path: Path, files: Mapping[str, bytes], expected: str
) -> None:
    folder = write_adapter(tmp_path / "adapter", base, files)

    assert expected in reason(client_folder(folder), base)


def test_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", base)
    same_shapes = write_base(tmp_path / "same", b"\2")
    wider = write_base(
        tmp_path / "wider", **{"model.layers.2.mlp.up_proj.weight": LAYERS["model.layers.0.mlp.up_proj.weight"]}
    )
    empty = tmp_path / "empty"
    empty.mkdir()

    assert "trained on another base" in reason(client_folder(folder), same_shapes)
    assert "lacks 2 tensors" in reason(client_folder(folder), wider)
    assert "no safetensors files" in reason(client_folder(folder), empty)


def test_large_file_without_tensors_is_not_read(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_adapter(tmp_path / "adapter", base)
    monkeypatch.setattr(imported_folder, "MAX_OTHER", 1)

    assert "at most 1 are imported" in reason(client_folder(folder), base)

"""The check of a folder that is imported: an adapter as it was exported, compared with its base on this machine.

    manifest.json ─▶ names, sizes and SHA-256 of the files ─▶ adapter_config.json ─▶ tensors ─▶ probes.json
                        no pickle, no paths                      rank, nothing but      one pair for each layer
                                                                 LoRA of layers         that it names in the base

Nothing is loaded: of tensors only the names, types and shapes are read, of which a safetensors file has a list. All
that a server or a trainer reads later is bounded here.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from jobs.finetuning.model_imports import MAX_FILES, DescribedModel
from jobs.platform.storage import CHUNK, Storage
from jobs.registry.manifests import MANIFEST, Manifest, decode_manifest
from workers.engines import probes
from workers.engines.model_folders import weights_sha256
from workers.engines.probes import Probe

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_NAME: Final = re.compile(r"\w[\w.-]*", re.ASCII)
#: Kinds of files of a model. Those of pickle (`.bin`, `.pt`, `.pkl`) run code in whoever reads them.
_KINDS: Final = frozenset({".json", ".safetensors", ".txt", ".jinja", ".md", ".model"})
_MAX_JSON: Final = 1 << 20  # bytes of the files that are decoded here
_MAX_PROBES: Final = 1 << 18
MAX_OTHER: Final = 64 << 20  # bytes of a file that has no tensors, such as a tokenizer
_MAX_HEADER: Final = 16 << 20
#: Options of PEFT by which an adapter is more than two matrices of one rank for each layer that it names.
_UNSUPPORTED: Final = (
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "auto_mapping", "exclude_modules", "layer_replication",
    "layers_to_transform", "lora_bias", "modules_to_save", "rank_pattern", "target_parameters",
    "trainable_token_indices", "use_dora", "use_qalora",
)  # fmt: skip
_WIDTHS: Final[Mapping[str, int]] = {"F32": 4, "F16": 2, "BF16": 2}

T = TypeVar("T")
_Shape = tuple[int, ...]
_Word = Annotated[str, Meta(max_length=255)]
_Words = Annotated[list[_Word], Meta(max_length=64)]


class BadFolder(Exception):
    """The folder is not one that can be imported: the text says why."""


class _Base(msgspec.Struct, omit_defaults=True):
    sha256: _Word | None = None
    revision: _Word | None = None
    license: _Word | None = None


class _Hardware(msgspec.Struct, omit_defaults=True):
    devices: _Words = []
    machine: _Word | None = None
    cpus: int | None = None
    system: _Word | None = None


class _Run(msgspec.Struct, omit_defaults=True):
    """Hold what a manifest says of the training; fields that are not known here are left out."""

    step: int | None = None
    steps: int | None = None
    epoch: float | None = None
    dtype: _Word | None = None
    device: _Word | None = None
    threads: int | None = None
    method: _Word | None = None
    peft: Literal["lora", "qlora"] = "lora"
    versions: Annotated[dict[_Word, _Word], Meta(max_length=64)] = {}
    hardware: _Hardware | None = None
    base: _Base | None = None
    probe_spread: float | None = None


class _AdapterConfig(msgspec.Struct):
    peft_type: Literal["LORA"]
    r: Annotated[int, Meta(ge=1)]
    target_modules: Annotated[list[_Word], Meta(min_length=1, max_length=1024)]
    bias: Literal["none"] = "none"
    fan_in_fan_out: bool = False


class _Tensor(msgspec.Struct):
    dtype: str
    shape: _Shape
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ClientFolder:
    """The files of a folder in storage, by their names. `check_stop` raises where the work is to end."""

    storage: Storage
    paths: Mapping[str, str]
    check_stop: Callable[[], None]

    def size(self, name: str) -> int:
        return self.storage.size(self._path(name))

    def piece(self, name: str, offset: int, length: int) -> bytes:
        return self.storage.piece(self._path(name), offset, length)

    def read(self, name: str, limit: int = _MAX_JSON) -> bytes:
        """Return the bytes of a file. Raises BadFolder for more than `limit`."""
        if (size := self.size(name)) > limit:
            raise BadFolder(f"{name} has {size} bytes; at most {limit} are read.")
        return self.piece(name, 0, size)

    def chunks(self, name: str) -> Iterator[bytes]:
        with self.storage.reader(self._path(name)) as source:
            while data := source.read(CHUNK):
                self.check_stop()
                yield data

    def _path(self, name: str) -> str:
        if (path := self.paths.get(name)) is None:
            raise BadFolder(f"{name} is missing.")
        return path


def check(folder: ClientFolder, base: Path, max_rank: int) -> DescribedModel:
    """Check a folder against the base in another one; return what is registered of it. Raises BadFolder."""
    data = folder.read(MANIFEST)
    manifest = _decode(MANIFEST, decode_manifest, data)
    run = _decode(MANIFEST, lambda run: msgspec.convert(run, _Run), manifest.run)
    _check_names(folder, manifest)
    _check_hashes(folder, manifest)
    config = _read_config(folder, max_rank)
    _check_tensors(folder, config, _shapes_of(base))
    if probes.FILE in manifest.model_files:
        _check_probes(folder)
    _check_base(run.base, base)
    facts = {
        "bytes": sum(file.bytes for file in manifest.model_files.values()),
        "files": {name: file.sha256 for name, file in manifest.model_files.items()},
        "run": msgspec.to_builtins(run),
    }
    return DescribedModel(method=run.peft, sha256=hashlib.sha256(data).hexdigest(), manifest=facts)


def _check_names(folder: ClientFolder, manifest: Manifest) -> None:
    """Check that the names and the kinds of files in a manifest are those of a model, and that the folder has them."""
    files = manifest.model_files
    if len(files) >= MAX_FILES:
        raise BadFolder(f"{MANIFEST} lists {len(files)} files; a model has fewer than {MAX_FILES}.")
    for name in sorted(files):
        if not _NAME.fullmatch(name) or len(name) > 255 or name == MANIFEST:
            raise BadFolder(f"{MANIFEST} lists a file whose name no model has: {name[:64]!r}.")
        if PurePosixPath(name).suffix not in _KINDS:
            raise BadFolder(f"{name} is no kind of file that is imported: {', '.join(sorted(_KINDS))} are.")
    if CONFIG not in files:
        raise BadFolder(f"{MANIFEST} lists no {CONFIG}: only adapters are imported, and no weights of their own.")
    if strays := sorted(folder.paths.keys() - files.keys() - {MANIFEST}):
        raise BadFolder(f"{strays[0]} is not in {MANIFEST}.")


def _check_hashes(folder: ClientFolder, manifest: Manifest) -> None:
    """Compare the sizes and the hashes of the files with those in the manifest."""
    for name, file in sorted(manifest.model_files.items()):
        size = folder.size(name)
        if PurePosixPath(name).suffix != ".safetensors" and size > MAX_OTHER:
            raise BadFolder(f"{name} has {size} bytes; at most {MAX_OTHER} are imported.")
        digest = hashlib.sha256()
        for data in folder.chunks(name) if size == file.bytes else ():
            digest.update(data)
        if digest.hexdigest() != file.sha256:
            raise BadFolder(f"{name} was changed: its SHA-256 is not the one in {MANIFEST}.")


def _read_config(folder: ClientFolder, max_rank: int) -> _AdapterConfig:
    fields = _decode(CONFIG, lambda data: msgspec.json.decode(data, type=dict[str, Any]), folder.read(CONFIG))
    if given := next((name for name in _UNSUPPORTED if fields.get(name)), None):
        raise BadFolder(f"{CONFIG} sets '{given}', which adapters that are served here do not have.")
    config = _decode(CONFIG, lambda fields: msgspec.convert(fields, _AdapterConfig), fields)
    if config.r > max_rank:
        raise BadFolder(f"The adapter has the rank {config.r}; the engine of the base serves {max_rank} at most.")
    return config


def _check_tensors(folder: ClientFolder, config: _AdapterConfig, base: Mapping[str, _Shape]) -> None:
    """Check that the adapter has two matrices for each layer of the base that it names, and nothing else."""
    size = folder.size(WEIGHTS)
    tensors = _decode(WEIGHTS, lambda piece: _tensors_of(piece, size), partial(folder.piece, WEIGHTS))
    expected = _shapes_of_adapter(config, base)
    if missing := sorted(expected.keys() - tensors.keys()):
        raise BadFolder(f"{WEIGHTS} lacks {len(missing)} tensors of layers of the base, such as {missing[0]}.")
    if strays := sorted(tensors.keys() - expected.keys()):
        raise BadFolder(f"{WEIGHTS} has a tensor that is of no layer of the base: {strays[0][:255]}.")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name]:
            fit = "another base, or another rank than its configuration says"
            raise BadFolder(f"{name} has the shape {list(tensor.shape)}, not {list(expected[name])}: {fit}.")
        if tensor.dtype not in _WIDTHS:
            raise BadFolder(f"{name} is of the type {tensor.dtype[:32]}; {', '.join(_WIDTHS)} are served.")
    _check_offsets(tensors, size - 8 - int.from_bytes(folder.piece(WEIGHTS, 0, 8), "little"))


def _shapes_of_adapter(config: _AdapterConfig, base: Mapping[str, _Shape]) -> dict[str, _Shape]:
    """Return the shapes of the tensors that the adapter must have, by their names."""
    shapes: dict[str, _Shape] = {}
    for layer, shape in base.items():
        if any(layer == name or layer.endswith(f".{name}") for name in config.target_modules):
            outputs, inputs = reversed(shape) if config.fan_in_fan_out else shape
            shapes[f"base_model.model.{layer}.lora_A.weight"] = (config.r, inputs)
            shapes[f"base_model.model.{layer}.lora_B.weight"] = (outputs, config.r)
    if not shapes:
        raise BadFolder(f"The base has none of the layers that {CONFIG} names.")
    return shapes


def _check_offsets(tensors: Mapping[str, _Tensor], size: int) -> None:
    """Check that the tensors fill this many bytes, without gaps."""
    end = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.data_offsets):
        start, stop = tensor.data_offsets
        if start != end or stop - start != math.prod(tensor.shape) * _WIDTHS[tensor.dtype]:
            raise BadFolder(f"{WEIGHTS} is no safetensors file: its tensors do not lie where it says.")
        end = stop
    if end != size:
        raise BadFolder(f"{WEIGHTS} is no safetensors file: it has more or fewer bytes than its tensors.")


def _shapes_of(base: Path) -> dict[str, _Shape]:
    """Return the shapes of the matrices of a base by the names of their layers. Raises BadFolder, where it has none."""
    shapes: dict[str, _Shape] = {}
    for path in sorted(base.glob("*.safetensors")):
        with path.open("rb") as handle:

            def piece(offset: int, length: int) -> bytes:
                handle.seek(offset)
                return handle.read(length)

            for name, tensor in _tensors_of(piece, path.stat().st_size).items():
                if name.endswith(".weight") and len(tensor.shape) == 2:
                    shapes[name.removesuffix(".weight")] = tensor.shape
    if not shapes:
        raise BadFolder("The base has no safetensors files here with which the adapter could be compared.")
    return shapes


def _tensors_of(piece: Callable[[int, int], bytes], size: int) -> dict[str, _Tensor]:
    """Return the tensors that the header of a safetensors file lists. Raises ValueError."""
    length = int.from_bytes(piece(0, 8), "little")
    if not 0 < length <= min(_MAX_HEADER, size - 8):
        raise ValueError("it has no header of safetensors")
    header = msgspec.json.decode(piece(8, length), type=dict[str, msgspec.Raw])
    header.pop("__metadata__", None)
    return {name: msgspec.json.decode(raw, type=_Tensor) for name, raw in header.items()}


def _check_probes(folder: ClientFolder) -> None:
    """Check that the probes, which an engine runs with nothing beside them, are no more than a trainer writes."""
    data = folder.read(probes.FILE, _MAX_PROBES)
    known = _decode(probes.FILE, lambda data: msgspec.json.decode(data, type=list[Probe]), data)
    longest = max((len(probe.continuation) for probe in known), default=0)
    if len(known) > len(probes.CHATS) or longest > probes.CONTINUATION:
        raise BadFolder(f"{probes.FILE} has more or longer chats than a trainer writes.")


def _check_base(trained_on: _Base | None, base: Path) -> None:
    """Check that the adapter was trained on the very weights of the base, where its manifest names them."""
    if trained_on is None or trained_on.sha256 is None:
        return
    here = weights_sha256(base)
    if trained_on.sha256 != here:
        raise BadFolder(
            f"It was trained on another base: on weights with the SHA-256 {trained_on.sha256[:64]}; "
            f"those of the base here have {here}."
        )


def _decode(name: str, decode: Callable[[Any], T], data: Any) -> T:
    try:
        return decode(data)
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise BadFolder(f"{name} cannot be read: {str(error)[:200]}") from error

"""The manifest of a stored model: `manifest.json` beside its files, written last, with the SHA-256 of each file.

row of the model: SHA-256 of the manifest ─▶ manifest.json: SHA-256 and size of each file ─▶ files
"""

from typing import Any, Final

import msgspec

MANIFEST: Final = "manifest.json"
#: Files that only a training which goes on reads.
RESUME: Final = frozenset({"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"})


class ManifestFile(msgspec.Struct, frozen=True):
    """A file of a checkpoint."""

    sha256: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True):
    """The contents of a checkpoint: its files by name. `run` describes the run: step, dtype, versions and the like."""

    files: dict[str, ManifestFile]
    run: dict[str, Any]

    @property
    def model_files(self) -> dict[str, ManifestFile]:
        """Return the files without those that only a resumed run reads."""
        return {name: file for name, file in self.files.items() if name not in RESUME}


decode_manifest: Final = msgspec.json.Decoder(Manifest).decode

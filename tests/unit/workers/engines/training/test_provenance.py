"""The facts of a base that the manifest of a training names."""

import subprocess
from pathlib import Path

import pytest

from workers.engines.training import provenance
from workers.engines.training.protocol import Spec


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    for name in ("model-00002-of-00002", "model-00001-of-00002"):
        (folder / f"{name}.safetensors").write_text(f"the weights of {name}")
    (folder / "pytorch_model.bin").write_text("the same weights, which are not read")
    return folder


def spec_of(base: Path, licence: str | None = None) -> Spec:
    options = {"learning_rate": 1e-3, "batch_size": 2, "n_epochs": 1, "seed": 7, "threads": 1}
    return Spec(base=str(base), base_name="tiny", rows="rows", output="output", license=licence, **options)


def test_sha256_of_base_is_that_of_its_documented_command(base: Path) -> None:
    command = "LC_ALL=C; sha256sum *.safetensors | sha256sum"
    printed = subprocess.run(["sh", "-c", command], cwd=base, capture_output=True, text=True, check=True).stdout

    assert provenance.describe_base(spec_of(base)) == {
        "sha256": printed.split()[0],
        "revision": None,
        "license": "apache-2.0",
    }


def test_changed_weights_of_base_have_another_sha256(base: Path) -> None:
    before = provenance.describe_base(spec_of(base))["sha256"]
    (base / "model-00002-of-00002.safetensors").write_text("other weights")

    assert provenance.describe_base(spec_of(base))["sha256"] != before


def test_license_of_models_file_goes_before_that_of_card(base: Path) -> None:
    assert provenance.describe_base(spec_of(base, "mit"))["license"] == "mit"
    (base / "README.md").unlink()
    assert provenance.describe_base(spec_of(base))["license"] is None

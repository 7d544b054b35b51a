"""The Hugging Face hub, through its own client. HF_TOKEN in the environment opens what is gated."""

import os
from typing import Any

from cli.errors import Trouble


def newest(repo: str) -> str:
    """The commit that the repository's main branch is at."""
    return str(_call("model_info", repo).sha)


def download(repo: str, revision: str) -> str:
    """Fetch all files of one commit; returns their folder."""
    return str(_call("snapshot_download", repo, revision=revision))


def _call(function: str, repo: str, **options: Any) -> Any:
    """Raises Trouble when the client is not installed, or the hub says no."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise Trouble("the hub's client is missing: install the extra `embed`, or name a revision yourself") from error
    try:
        return getattr(huggingface_hub, function)(repo, token=os.environ.get("HF_TOKEN"), **options)
    except Exception as error:  # no such repository, no access, and whatever its HTTP client raises
        said = str(error).strip() or type(error).__name__
        raise Trouble(f"cannot get {repo} from the hub: {said.splitlines()[0]}") from error

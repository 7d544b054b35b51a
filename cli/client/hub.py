"""Ask the Hugging Face hub, through its own client. HF_TOKEN in the environment opens gated repositories."""

import os
from typing import Any

from cli.errors import CliError


def newest(repo: str) -> str:
    """Return the newest commit of the main branch of `repo`."""
    return str(_call("model_info", repo).sha)


def download(repo: str, revision: str) -> str:
    """Download all files of one commit of `repo`; return their folder."""
    return str(_call("snapshot_download", repo, revision=revision))


def _call(function: str, repo: str, **options: Any) -> Any:
    """Call a function of the hub's client.

    Raises:
        CliError: the client is not installed, or the hub refuses the call.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise CliError("the hub's client is missing: install the extra `embed`, or name a revision yourself") from error
    try:
        return getattr(huggingface_hub, function)(repo, token=os.environ.get("HF_TOKEN"), **options)
    except Exception as error:  # no such repository, no access, or an error of its HTTP client
        message = str(error).strip() or type(error).__name__
        raise CliError(f"cannot get {repo} from the hub: {message.splitlines()[0]}") from error

"""Which place a source's row means."""

from jobs.retrieval.tables import Source
from jobs.settings import Settings
from workers.retrieval.sources.base import Place
from workers.retrieval.sources.bucket import Bucket
from workers.retrieval.sources.folder import Folder
from workers.retrieval.sources.web import Pages


def open_place(config: Settings, source: Source) -> Place:
    """What the operator allows is asked anew each time something is read."""
    if source.type == "folder":
        return Folder(config.source_folders, config.own_folders, source.spec["path"], source.spec["glob"])
    if source.type == "s3":
        return Bucket(config.source_s3, source.spec["prefix"], {})
    return Pages(tuple(source.spec["urls"]), config.source_fetch_seconds, config.source_allow_private)

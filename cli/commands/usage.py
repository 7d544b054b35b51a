"""`nightmill usage`: how many bytes each project stores."""

from cli.options import HostOptions
from cli.terminal import show_json, show_table

_MB = 1 << 20


def usage(options: HostOptions) -> None:
    """Show how many bytes each project stores, by kind, and the limit (NIGHTMILL_PROJECT_MAX_BYTES)."""
    import jobs.known_kinds  # noqa: F401 (fills the table of kinds)
    from cli.up.effective import effective, opened
    from jobs.security.keys import project_names
    from jobs.usage.stored_bytes import bytes_by_project, sums

    limit = effective(data_dir=options.data_dir).project_max_bytes
    with opened(options.data_dir) as db, db.read() as session:
        stored = bytes_by_project(session)
        names = project_names(session)
    none = dict.fromkeys(sums(), 0)
    rows = [
        (name, stored.get(project_id, none)) for project_id, name in sorted(names.items(), key=lambda item: item[1])
    ]
    if options.as_json:
        show_json([{"project": name, **sizes, "limit": limit or None} for name, sizes in rows])
        return
    head = ["project", *(name.replace("_", " ") for name in none), "all, MB", "limit, MB"]
    show_table(head, [[name, *map(_megabytes, [*sizes.values(), sum(sizes.values()), limit])] for name, sizes in rows])


def _megabytes(size: int) -> str:
    """Return `size` in megabytes; `-` for none."""
    return f"{size / _MB:.1f}" if size else "-"

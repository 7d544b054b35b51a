"""`nightmill usage`: how many bytes each project stores."""

from cli.options import HostOptions
from cli.terminal import show_json, show_table

_MB = 1 << 20


def usage(options: HostOptions) -> None:
    """Show how many bytes each project stores, by kind, and its limit (`nightmill limits`)."""
    import jobs.known_kinds  # noqa: F401 (fills the table of kinds)
    from cli.up.effective import effective, opened
    from jobs.security.keys import project_names
    from jobs.usage.project_limits import limit_of
    from jobs.usage.stored_bytes import bytes_by_project, sums

    config = effective(data_dir=options.data_dir)
    with opened(options.data_dir) as db, db.read() as session:
        stored = bytes_by_project(session)
        names = project_names(session)
        limits = {project_id: limit_of(session, config, project_id, "max_bytes") for project_id in names}
    none = dict.fromkeys(sums(), 0)
    by_name = sorted(names.items(), key=lambda item: item[1])
    rows = [(name, stored.get(project_id, none), limits[project_id]) for project_id, name in by_name]
    if options.as_json:
        show_json([{"project": name, **sizes, "limit": limit or None} for name, sizes, limit in rows])
        return
    head = ["project", *(name.replace("_", " ") for name in none), "all, MB", "limit, MB"]
    show_table(
        head, [[name, *map(_megabytes, [*sizes.values(), sum(sizes.values()), limit])] for name, sizes, limit in rows]
    )


def _megabytes(size: int) -> str:
    """Return `size` in megabytes; `-` for none."""
    return f"{size / _MB:.1f}" if size else "-"

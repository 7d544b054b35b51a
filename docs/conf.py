"""Build the documentation: Sphinx, MyST Markdown and Furo. `make docs` treats every warning as an error."""

from importlib.metadata import version as version_of

project = "Nightmill"
copyright = "the Nightmill maintainers"  # noqa: A001 (Sphinx reads this name)
version = release = version_of("nightmill")

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True
suppress_warnings = ["misc.highlighting_failure"]  # examples of JSON and shell with an ellipsis in them

html_theme = "furo"
html_title = "Nightmill"

html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]

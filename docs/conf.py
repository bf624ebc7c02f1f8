"""Sphinx' settings: `make docs` writes docs/_build/html; a broken link or reference is an error."""

project = "roli_fast"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"page_width": "1180px", "body_max_width": "none"}
html_title = project

myst_heading_anchors = 3
"""Headings that links may name."""

default_role = "code"
"""What stands in single backticks in a docstring is code."""

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_rtype = False


def absolute_values(_app, _what, _name, _object, _options, lines: list[str]) -> None:
    """Keep |d| of a docstring as it is: to reStructuredText bars outside of code are a macro."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[number] = "`".join(parts)


def setup(app) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", absolute_values)

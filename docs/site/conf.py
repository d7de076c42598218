"""Sphinx' configuration of the documentation site; `./dev docs` lays out its sources and runs it."""

from __future__ import annotations

project = "kvmft"
copyright = "The kvmft authors"  # noqa: A001
extensions = ["myst_parser", "sphinx_antsibull_ext"]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
root_doc = "index"
html_theme = "alabaster"
html_theme_options = {"description": "A VM goes on running when the server under it dies", "fixed_sidebar": True,
                      "page_width": "1180px", "sidebar_width": "250px"}  # fmt: skip
html_title = "kvmft"
html_copy_source = False
html_show_sphinx = False
myst_heading_anchors = 3
# Pages of the collection refer to others of Ansible, which are not built here.
default_role = "any"
suppress_warnings = ["ref.any", "myst.header"]
nitpicky = False

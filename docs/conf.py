"""Sphinx configuration. The pages under reference/ are written by generate.py before the build."""

from importlib.metadata import version as installed

project = "expunge"
author = "The expunge authors"
release = version = installed("expunge")
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Find it, forget it, prove it.",
    "page_width": "1100px",
    "sidebar_width": "250px",
    "fixed_sidebar": True,
}

"""The website: README, docs and the series as they are committed, and a page of the code.

Built by `make site`; nothing is executed and nothing is fetched.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project, author, copyright = "dfmsd", "The dfmsd authors", "The dfmsd authors, Apache-2.0"
version = release = PROJECT["version"]
# the address: GitHub's own word in a workflow, so that a fork has nothing to change
_server, _name = (os.environ.get(f"GITHUB_{key}", "") for key in ("SERVER_URL", "REPOSITORY"))
address = f"{_server}/{_name}" if _name else PROJECT.get("urls", {}).get("Repository", "")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx-mathjax-offline"]
include_patterns = ["index.md", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
include_patterns += ["docs/*.md", "docs/site/*.md", "notebooks/**", "[a-z]*/README.md"]
exclude_patterns = [
    "notebooks/.ipynb_checkpoints",
    "notebooks/apps",
    "build",
    ".venv",
    "tests",
    "shared",
]
exclude_patterns += ["data/coco", "data/runs", "data/sample", "data/results"]
root_doc = "docs/site/index"
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables and formulas in outputs
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header", "myst.xref_missing", "mystnb.unknown_mime_type"]
suppress_warnings += ["misc.highlighting_failure", "toc.empty_glob"]

html_theme = "sphinx_book_theme"
html_title = "dfmsd"
html_static_path = ["static"]
html_extra_path = ["root"]  # index.html, which leads to the root document
html_css_files = ["site.css"]
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
if address:
    html_theme_options |= {
        "repository_url": address,
        "repository_branch": "main",
        "use_repository_button": True,
        "use_issues_button": True,
        "launch_buttons": {
            "notebook_interface": "jupyterlab",
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
        },
    }

autodoc_member_order = "bysource"
autodoc_type_aliases = {
    name: name
    for name in (
        *("Count", "Cutoff", "NotNegative", "Positive", "Share", "Weight"),  # dfmsd.ranges
        *("Fit", "Form", "Match", "Mix", "masking.Select", "Select"),
    )
}
default_role = "code"  # the docstrings' backticks
autodoc_default_options = {"members": True, "show-inheritance": False}


def without_badges(app: Sphinx, name: str, source: list[str]) -> None:
    """Leave out the README's badges, whose addresses only GitHub can resolve."""
    if name == "README":
        source[0] = re.sub(r"^\[!\[.*\n", "", source[0], flags=re.M)


def setup(app: Sphinx) -> None:
    """Connect what this page defines."""
    app.connect("source-read", without_badges)

"""How Sphinx makes the site of these pages: nox -s docs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import plots  # noqa: E402
import state_diagram  # noqa: E402

import rdzv  # noqa: E402
from rdzv.testing import report  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "rdzv"
author = "the rdzv developers"
copyright = author  # noqa: A001 - Sphinx's name
release = version = rdzv.__version__
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "commands",
    "inline_svg",
    "repository",
    "sections",
]
exclude_patterns = ["_build"]
templates_path: list[str] = []

# -- Markdown. Links and anchors are GitHub's, since the pages are read there as well.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_url_schemes = ["http", "https", "mailto"]
suppress_warnings = ["myst.strikethrough"]

# -- What comes from docstrings.
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_preprocess_types = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

# Every name has to lead somewhere. Those of others lead nowhere, because a build asks no network
# for their lists of names.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|redis|etcd|etcd3|grpc|msgspec|pytest|hypothesis)(\..*)?"),
    (r"py:.*", r"(collections|datetime|os|pathlib|socket|subprocess|types|typing|abc|enum)\..*"),
    (r"py:.*", r"(bool|bytes|dict|float|frozenset|int|list|object|set|str|tuple|type|None)"),
    (r"py:exc", r"(\w+\.)?(TimeoutError|ValueError|RuntimeError|OSError|FileNotFoundError)"),
    # Short names, as annotations have them.
    (
        r"py:class",
        r"(Store|timedelta|RedisCluster|RuleBasedStateMachine|Mapping|Sequence|Callable)",
    ),
    (r"py:class", r"(seam\.)?(Client|Settings|TlsSettings|Txn)"),
    (r"py:class", r"(Admission|Target)"),
    (r"py:exc", r"(TypeError|Exception|AssertionError|ImportError|DistStoreError)"),
]

# -- How it looks.
html_theme = "furo"
html_title = "rdzv"
html_static_path = ["_static"]
html_css_files = ["rdzv.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b5c8a",
        "color-brand-content": "#0b5c8a",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6cbcec",
        "color-brand-content": "#6cbcec",
    },
    "navigation_with_keys": True,
}
pygments_style = "friendly"
pygments_dark_style = "monokai"


def backends(_app: Sphinx, name: str, source: list[str]) -> None:
    """Make the page on backends from the reports, whatever is in the file."""
    if name == "backends":
        files = sorted((HERE / "reports").glob("*.json"))
        source[0] = report.page([report.load(file) for file in files])


def pictures(_app: Sphinx) -> None:
    """Draw what is drawn from the code and from stored figures."""
    state_diagram.write(HERE / "phases.svg")
    plots.write(HERE)


def setup(app: Sphinx) -> None:
    """Connect what is made when the site is built."""
    app.connect("builder-inited", pictures)
    app.connect("source-read", backends)

"""How Sphinx makes a site of these pages: `make docs`. They stay plain Markdown, as a code host shows it."""

from __future__ import annotations

import io
import os
import re
from contextlib import redirect_stdout, suppress
from typing import Any
from unittest.mock import patch

import torch
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.main import get_command

import mobizo_kernels
from mobizo_kernels.cli.commands import app as commands
from mobizo_kernels.cli.main import run as run_command

project = "mobizo-kernels"
author = "the authors of mobizo-kernels"
version = release = mobizo_kernels.__version__
language = "en"

extensions = [
    "myst_nb",  # Markdown and notebooks
    "sphinx_external_toc",  # the navigation stands in _toc.yml, not in the pages
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
external_toc_path = "_toc.yml"
myst_heading_anchors = 4  # under the names that a code host gives them

# Notebooks are kept without outputs and run when the site is made. A cell that fails ends the build.
nb_execution_mode = "force"
nb_execution_timeout = 900  # seconds for a cell, on a busy machine, too
nb_execution_raise_on_error = True
nb_merge_streams = True

# Docstrings have Google's sections, and `name` in them is code, as in Markdown.
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_mock_imports = ["flwr", "ray", "trl"]  # each wants an environment of its own, or has large signatures
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
add_module_names = False

# A name of ours that leads nowhere is an error, unless it is of a module that only the package's own code
# imports from. Names of torch, transformers and PEFT lead to other sites.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!mobizo_kernels).*"), ("py:.*", r"mobizo_kernels(\.\w+){3,}")]

html_theme = "furo"  # system fonts, no scripts from elsewhere
html_title = project
html_copy_source = False
html_use_index = html_domain_indices = False  # lists that no phone is wide enough for; there is the search
html_show_copyright = False


def name_pages_by_their_titles(app: Sphinx, docname: str, source: list[str]) -> None:
    """[concepts.md](concepts.md) tells a reader of files where to look; one of the site sees a title."""
    source[0] = re.sub(r"\[[\w./-]+\.md\]\((?=[\w./-]+\.md[#)])", "[](", source[0])


def show_schema(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Below the docstring of an op's Python face the schema of torch.ops.mobizo.NAME."""
    module, _, op = name.rpartition(".")
    if module == "mobizo_kernels.ops" and hasattr(torch.ops.mobizo, op):
        schema = getattr(torch.ops.mobizo, op).default._schema
        lines.extend([".. code-block:: text", "   :caption: Schema", "", f"   {schema}", ""])


class CommandHelp(SphinxDirective):
    """A section for each command, with what `mobizo COMMAND --help` prints."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for name in get_command(commands).commands:
            printed = io.StringIO()
            with (
                patch.dict(os.environ, COLUMNS="88", TERM="dumb"),
                redirect_stdout(printed),
                suppress(SystemExit),
            ):
                run_command([name, "--help"])
            text = "\n".join(line.rstrip() for line in printed.getvalue().strip("\n").splitlines())
            section = nodes.section(ids=[f"mobizo-{name}"])
            section += [nodes.title(text=f"mobizo {name}"), nodes.literal_block(text, text, language="text")]
            sections.append(section)
        return sections


def setup(app: Sphinx) -> None:
    app.add_directive("command-help", CommandHelp)
    app.connect("source-read", name_pages_by_their_titles)
    app.connect("autodoc-process-docstring", show_schema)

"""One executed notebook per model, which runs some checks of the pre-flight and shows their tables
and pictures.

    pip install -e '.[notebooks]'
    python docs/notebooks/make.py [MODEL ...]    writes docs/notebooks/<model>.ipynb, 1 minute each
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbclient
import nbformat

FOLDER = Path(__file__).resolve().parent
MODELS = {  # model -> (what it is, the checks that tell most about it)
    "fno": ("Fourier neural operator", ("data", "fno", "structure", "prediction", "spectra")),
    "vnet": ("V-Net", ("data", "vnet", "structure", "prediction", "spectra")),
    "vit3d": ("Vision transformer", ("data", "vit3d", "structure", "prediction", "spectra")),
    "pix2pixcc": (
        "Pix2PixCC, a conditional GAN",
        ("data", "adversarial", "gradients", "prediction", "spectra"),
    ),
}
SETUP = """import os, sys
os.environ.setdefault("JAX_PLATFORMS", "cpu")      # 16^3 volumes: a GPU is not needed
sys.path.insert(0, os.path.abspath("../.."))  # the checkout; needless where jaxvol is installed
import logging; logging.getLogger("absl").setLevel(logging.WARNING)
from IPython.display import HTML, display
from jaxvol.config import experiments
from jaxvol.diagnostics import preflight, report

# or another: experiments.load("{model}").get_config("quick").lock()
config = experiments.load("healthy").get_config("{model}").lock()
verdict = preflight.look(config, {checks})
outcomes = {{o.name: o for o in verdict.outcomes}}
print(report.text(verdict))"""
SHOW = """display(HTML(report.section(outcomes["{check}"], "", False)))"""


def notebook(model: str) -> nbformat.NotebookNode:
    """The cells: a few words, the run, one cell per check."""
    title, checks = MODELS[model]
    book = nbformat.v4.new_notebook(
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        }
    )
    book.cells = [
        nbformat.v4.new_markdown_cell(
            f"# Pre-flight of {title}\n\nMade by `docs/notebooks/make.py {model}` of the small "
            "healthy run in `configs/healthy.py`. Change `config` to look at a run of yours."
        ),
        nbformat.v4.new_code_cell(SETUP.format(model=model, checks=checks)),
    ]
    for check in checks:
        book.cells += [
            nbformat.v4.new_markdown_cell(f"## {check}"),
            nbformat.v4.new_code_cell(SHOW.format(check=check)),
        ]
    return book


def make(model: str, folder: Path) -> Path:
    """Execute and write one notebook.  CellExecutionError where a cell fails."""
    book, file = notebook(model), folder / f"{model}.ipynb"
    folder.mkdir(parents=True, exist_ok=True)
    resources = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(book, timeout=1800, resources=resources).execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # times, which differ from run to run
    nbformat.write(book, file)
    return file


if __name__ == "__main__":
    for name in sys.argv[1:] or MODELS:
        print(make(name, FOLDER))

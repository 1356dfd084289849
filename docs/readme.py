"""Write README.md: nbs/index.ipynb, executed, as Markdown. Code cells marked `#| echo: false` show only what they produce."""
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
HEAD = "<!-- Written by docs/readme.py (make readme) from nbs/index.ipynb. Edit the notebook. -->\n\n"


def execute(notebook: Path):
    "The notebook with fresh outputs, without the traces that every execution changes."
    from nbclient import NotebookClient
    nb = nbformat.read(notebook, 4)
    NotebookClient(nb, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(notebook.parent)}}).execute()
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        for part in [cell, *cell.get("outputs", [])]:
            if "execution_count" in part: part["execution_count"] = None
    nb.metadata = {"kernelspec": nb.metadata.kernelspec}
    return nb


def to_markdown(nb) -> str:
    "Markdown as a repository's front page shows it."
    from nbconvert import MarkdownExporter
    from nbconvert.preprocessors import TagRemovePreprocessor
    for cell in nb.cells:
        if re.match(r"#\| *echo: *false", cell.source): cell.metadata["tags"] = ["quiet"]
    nb.metadata["language_info"] = {"name": "python"}       # names the language of code fences
    exporter = MarkdownExporter()
    exporter.register_preprocessor(TagRemovePreprocessor(remove_input_tags={"quiet"}, enabled=True), enabled=True)
    body, _ = exporter.from_notebook_node(nb)
    return HEAD + re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


if __name__ == "__main__":
    notebook = ROOT/"nbs"/"index.ipynb"
    nb = execute(notebook)
    stored = nbformat.read(notebook, 4)
    for old, new in zip(stored.cells, nb.cells, strict=True):
        if old.cell_type == "code": old.outputs = new.outputs
    notebook.write_text(nbformat.writes(stored, sort_keys=True, indent=1, ensure_ascii=False).rstrip("\n") + "\n")
    (ROOT/"README.md").write_text(to_markdown(nb))
    sys.exit(print("README.md"))

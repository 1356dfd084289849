"Notebooks as Sphinx pages: nbdev's own processing, then Quarto's Markdown turned into MyST's."
import json
import re
from pathlib import Path

from nbdev.process import NBProcessor
from nbdev.processors import (FilterDefaults, clean_magics, filter_stream_, hide_line, populate_language, rm_header_dash,
                              strip_ansi, strip_hidden_metadata)

HIDDEN = {"hide", "default_exp"}
CALLOUTS = {"note": "note", "tip": "tip", "warning": "warning", "important": "important", "caution": "caution"}


def drop_plumbing(cell) -> None:
    "Remove cells for nbdev only. Exported code stays: a reader of the site reads the implementation where it is explained."
    if cell.directives_ and (HIDDEN & set(cell.directives_) or cell.directives_.get("include:") == ["false"]): del cell["source"]


class SiteProcs(FilterDefaults):
    "nbdev's processors but those that replace exported code by its signature, which the API pages show, and that link to the net."
    def base_procs(self):
        return [populate_language, strip_ansi, hide_line, filter_stream_, rm_header_dash, drop_plumbing, clean_magics,
                strip_hidden_metadata]


def title_and_summary(path: Path) -> tuple[str, str]:
    "The H1 and the `> …` line that open a notebook."
    cells = json.loads(path.read_text())["cells"]
    text = next(("".join(c["source"]) for c in cells if c["cell_type"] == "markdown"), "")
    title, summary = re.search(r"^# (.+)$", text, re.M), re.search(r"^> (.+)$", text, re.M)
    return (title[1].strip() if title else path.stem), (summary[1].strip() if summary else "")


# ---- Quarto -> MyST

def outside_code(text: str, change) -> str:
    "Apply `change` to the parts of `text` that are not fenced code."
    parts = re.split(r"(^(?:```|~~~).*?^(?:```|~~~)[ \t]*$)", text, flags=re.M | re.S)
    return "".join(p if i % 2 else change(p) for i, p in enumerate(parts))


def callouts(text: str) -> str:
    "`::: {.callout-tip title=\"T\"}`, or with a heading as title, to an admonition."
    def opening(m):
        colons, kind, title = m["colons"], CALLOUTS.get(m["kind"], "note"), m["title"] or m["heading"]
        return f"{colons}{{admonition}} {title}\n:class: {kind}\n" if title else f"{colons}{{{kind}}}\n"
    return re.sub(r'^(?P<colons>:{3,}) *\{\.callout-(?P<kind>\w+)(?: +title="(?P<title>[^"]*)")?[^}]*\} *\n(?:\s*#+ (?P<heading>.+)\n)?',
                  opening, text, flags=re.M)


def equations(text: str, prefix: str) -> str:
    "Labels of display formulas and references to them; labels are made unique to the page."
    text = re.sub(r"\$\$\s*\{#eq-([\w-]+)\}", rf"$$ ({prefix}-eq-\1)", text)
    return re.sub(r"(?<![\w/])@eq-([\w-]+)", rf"{{eq}}`{prefix}-eq-\1`", text)


def name_links(text: str, links: dict[str, str]) -> str:
    "Link a name in back-ticks to its API entry, or to the notebook of that name."
    def link(m): return f"[`{m[1]}`]({links[m[2]]})" if m[2] in links else m[0]
    lines = [ln if ln.startswith("#") else re.sub(r"(?<![\[`\w])`((\w+)(?:\(\))?)`(?![\]`])", link, ln) for ln in text.split("\n")]
    return "\n".join(lines)


def lead(text: str) -> str:
    "The `> summary` under the title becomes the page's lead paragraph."
    return re.sub(r"\A(\s*# .+\n+)> (.+)$", r"\1{.lead}\n\2", text, count=1, flags=re.M)


def quarto_tags(cell: dict) -> list[str]:
    "Quarto's cell options, as MyST-NB's tags; the option lines themselves go."
    rules = {r"echo:\s*false": "remove-input", r"output:\s*false": "remove-output", r"include:\s*false": "remove-cell",
             r"code-fold:\s*(?:true|show)": "hide-input"}
    tags = [tag for rule, tag in rules.items() if re.search(rf"^#\| *{rule}", cell["source"], re.M)]
    cell["source"] = re.sub(r"^#\|.*\n?", "", cell["source"], flags=re.M)
    return tags


# ---- a page

def _plain_outputs(cell) -> list[dict]:
    outputs = json.loads(json.dumps(cell.get("outputs", []), default=dict))
    for output in outputs:
        if output["output_type"] in ("execute_result", "display_data"): output.setdefault("metadata", {})
        if output["output_type"] == "execute_result": output.setdefault("execution_count", None)
    return [o for o in outputs if o.get("data", {}).get("text/markdown") not in ("", [], [""])]


def site_notebook(path: Path,              # a notebook, or an executed copy of it
                  page: str,               # page name, "offline/01_theory"
                  links: dict[str, str],   # name in back-ticks -> where it leads
                  ) -> dict:               # a notebook that MyST-NB renders
    "Process a notebook for the site; stored outputs are kept, nothing is executed."
    from execnb.nbio import read_nb
    processor = NBProcessor(nb=read_nb(path), procs=SiteProcs().procs())
    processor.process()
    prefix, cells = re.sub(r"\W+", "-", page), []
    for i, cell in enumerate(processor.nb.cells):
        new = dict(cell_type=cell.cell_type, id=f"c{i}", metadata={}, source=cell.source)
        if cell.cell_type == "markdown":
            def change(text): return name_links(equations(callouts(text), prefix), links)
            new["source"] = outside_code(lead(cell.source) if i == 0 else cell.source, change)
        elif cell.cell_type == "code":
            tags = [*cell.metadata.get("tags", []), *quarto_tags(new)]
            if cell.directives_.keys() & {"export", "exporti", "exports"}: tags.append("exported")
            if not new["source"].strip() and not cell.get("outputs"): continue
            new |= dict(outputs=_plain_outputs(cell), execution_count=None, metadata={"tags": tags} if tags else {})
        else: continue
        cells.append(new)
    kernel = dict(display_name="Python 3", language="python", name="python3")
    return dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)


def shown_copy(notebook: Path, root: Path) -> Path:
    "The latest executed copy that papermill left in runs/notebooks, where its code is still that of the notebook; else the notebook."
    def code(p): return ["".join(c["source"]) for c in json.loads(p.read_text())["cells"] if "injected-parameters" not in c["metadata"].get("tags", [])]
    name = notebook.relative_to(root/"nbs")
    for scale in ("paper", "laptop"):
        copy = root/"runs"/"notebooks"/scale/name
        if copy.is_file() and code(copy) == code(notebook): return copy
    return notebook

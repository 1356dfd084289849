"""Build the website into _docs/ from the notebooks, the figures and the exported modules, with Sphinx and no network.

`make site` calls this. Where Quarto is installed, its rendering of nbdev's own pages is an alternative: see _quarto.yml.
"""
import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT/"docs"), str(ROOT)]


def sections(website: dict, nbs: Path) -> dict[str, tuple[str, list[Path]]]:
    "Folder -> (title, notebooks in reading order), in the order of the sidebar in _quarto.yml."
    found = {}
    for entry in website["sidebar"]["contents"]:
        if "section" not in entry: continue
        folder = entry["contents"].split("/")[0]
        found[folder] = (entry["section"], sorted(nbs.glob(entry["contents"])))
    return found


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def stage_pages(stage: Path, root: Path = ROOT, out: str = "figures", no_dream: str = "It was not built.") -> None:
    "Write every page of the site, as Markdown and notebooks that Sphinx reads; `no_dream` says why there is no dream to play."
    import api, dream, gallery
    from notebooks import shown_copy, site_notebook, title_and_summary
    from rlpapers.core.claims import inventory
    website = yaml.safe_load((root/"_quarto.yml").read_text())["website"]
    parts, modules = sections(website, root/"nbs"), api.exported_modules()
    results, names = gallery.Results(out, tuple(parts)), api.symbol_links(modules)
    if results.folder.is_dir(): shutil.copytree(results.folder, stage/"figures", ignore=shutil.ignore_patterns(".*"))

    for folder, (title, notebooks) in parts.items():
        listed, known = [], names | {nb.stem: f"/{folder}/{nb.name}" for nb in notebooks}
        for nb in notebooks:
            page = nb.relative_to(root/"nbs").with_suffix("").as_posix()
            write(stage/f"{page}.ipynb", json.dumps(site_notebook(shown_copy(nb, root), page, known)))
            listed.append((page, *title_and_summary(nb)))
        beside = [("diamond/play", "Play the dream", dream.SUMMARY)] if folder == "diamond" else []
        write(stage/folder/"index.md", gallery.section_page(results, folder, title, listed, beside))
    write(stage/"diamond"/"play.md", dream.page(no_dream))
    for paper in results.papers:
        for item in inventory(paper):
            if row := results.row(paper, item.id): write(stage/paper/"figures"/f"{item.id}.md", gallery.item_page(results, item, row, root))

    guide = site_notebook(shown_copy(root/"nbs"/"index.ipynb", root), "guide", names)
    guide["cells"][0]["source"] = guide["cells"][0]["source"].replace(f"# {website['title']}", "# Guide", 1)
    for cell in guide["cells"]: to_site_paths(cell, website["repo-url"])
    write(stage/"guide.ipynb", json.dumps(guide))
    for short, module in modules.items():
        write(stage/"api"/f"{short}.md", api.module_page(short, module, api.source_notebook(module)))
    rows = "".join(f"| [{s}](/api/{s}.md) | {(m.__doc__ or '').strip().splitlines()[0] if m.__doc__ else ''} |\n" for s, m in modules.items())
    write(stage/"api"/"index.md", f"{gallery.WIDE}# API\n\n| module | |\n|---|---|\n{rows}\n" + gallery.toctree([f"/api/{s}" for s in modules], hidden=True))
    tables = "".join(f"## {t}\n\n{gallery.claims_table(results, p)}" for p, t in results.papers.items())
    write(stage/"claims.md", f"{gallery.WIDE}# Claims\n\n{{.lead}}\nWhat each paper says, and what the recorded runs say about it.\n\n{tables}")
    write(stage/"index.md", gallery.home_page(results, website, f"{next(iter(parts))}/index",
                                              ["guide", *(f"{f}/index" for f in parts), "claims", "api/index"]))


def to_site_paths(cell: dict, repo: str) -> None:
    "README.md's links, which start at the project root, become links inside the site, or to the repository."
    def change(text):
        text = re.sub(r"\]\(nbs/(\w+)\)", r"](/\1/index.md)", "".join(text)).replace("](nbs/", "](/").replace("](figures/", "](/figures/")
        return re.sub(r"\]\(([A-Z][\w./]*)\)", rf"]({repo}/blob/main/\1)", text)
    if cell["cell_type"] == "markdown": cell["source"] = change(cell["source"])
    for output in cell.get("outputs", []):
        if "text/markdown" in output.get("data", {}): output["data"]["text/markdown"] = change(output["data"]["text/markdown"])


def build(out: Path) -> int:
    "Stage and render, then replace `out`; returns the number of Sphinx's warnings, raises on errors and leaves the old site then."
    import dream
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace
    if out.exists() and any(out.iterdir()) and not (out/"searchindex.js").exists():
        raise SystemExit(f"{out} holds something that is not a site of ours. Empty it, or choose another folder with --out.")
    with tempfile.TemporaryDirectory() as folder, docutils_namespace():
        stage = Path(folder)
        no_dream = dream.recorded_player(stage/"dream", ROOT/"runs"/"npm")
        if no_dream: print(f"No dream to play: {no_dream}")
        stage_pages(stage/"pages", no_dream=no_dream)
        app = Sphinx(stage/"pages", ROOT/"docs", stage/"html", stage/"doctrees", "html", status=None, warning=sys.stderr, freshenv=True)
        app.build(force_all=True)
        if app.statuscode: raise SystemExit(f"Sphinx failed with status {app.statuscode}")
        if not no_dream: shutil.move(stage/"dream", stage/"html"/"_static"/"dream")
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(stage/"html", out)
    return app._warncount


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT/"_docs", help="folder for the site; what an earlier build left there is replaced")
    args = parser.parse_args()
    link, text = ROOT/"nbs"/"_quarto.yml", (ROOT/"_quarto.yml").read_text()
    if link.read_text() != text: link.write_text(text)         # where a checkout turns the link into a text file
    warnings = build(args.out)
    print(f"{args.out}/index.html" + (f" ({warnings} warnings)" if warnings else ""))


if __name__ == "__main__":
    main()

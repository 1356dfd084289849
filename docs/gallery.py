"Pages about results: the home page, one page a paper, one page a figure or table, the claims."
import json
from html import escape
from importlib import import_module
from pathlib import Path

from rlpapers.core.claims import LOOKS, VERDICTS, claims_of, inventory, ledger, out_folder, papers, read_rows
from rlpapers.core.figures import status

WIDE = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n"   # no list of headings beside the text
SCALES = ("paper", "laptop", "smoke")             # the first that exists is shown


class Results:
    "What figures/ holds: manifest rows, ledger rows and item states, by paper."
    def __init__(self, out: str = "figures", order: tuple[str, ...] = ()):    # order of folders in the navigation
        self.folder, titles = out_folder(out), papers()
        self.papers = {p: titles[p] for p in sorted(titles, key=lambda p: order.index(p) if p in order else len(order))}
        self.rows, self.verdicts, self.states = {}, {}, {}
        for row in read_rows(self.folder/"manifest.json"): self.rows.setdefault((row["paper"], row["id"]), {})[row["scale"]] = row
        for row in sorted(ledger(out), key=lambda r: SCALES.index(r["scale"]) if r["scale"] else 9):
            self.verdicts.setdefault((row["paper"], row["claim"]), row)
        for row in status(out): self.states[row["paper"], row["id"], row["scale"]] = row["status"]

    def row(self, paper: str, id: str) -> dict | None:
        "The manifest row that is shown: the largest scale there is."
        found = self.rows.get((paper, id), {})
        return next((found[s] for s in SCALES if s in found), None)

    def state(self, paper: str, id: str) -> str:
        row = self.row(paper, id)
        return self.states[paper, id, row["scale"] if row else ""]

    def counts(self, paper: str) -> tuple[int, int, dict[str, int]]:
        "Items regenerated, items in all, claims by verdict."
        items, verdicts = inventory(paper), [self.verdicts[paper, c.id]["verdict"] for c in claims_of(paper)]
        return sum(self.row(paper, i.id) is not None for i in items), len(items), {v: verdicts.count(v) for v in VERDICTS}


def chip(verdict: str, text: str = "") -> str:
    return f'<span class="verdict v-{verdict.replace(chr(32), chr(45))}">{LOOKS[verdict][0]} {escape(text or verdict)}</span>'


MOVING = (".gif", ".svg", ".png")


def picture(row: dict, kinds: tuple[str, ...] = (".svg", ".png")) -> str:
    "Site path of the picture of the first of these kinds, or '' where there is none."
    names = [n for kind in kinds for n in row["files"] if n.endswith(kind)]
    return f"/figures/{names[0]}" if names else ""


def commands(row: dict) -> str:
    "The two ways to make a figure again: all of its paper's, or its notebook alone."
    name = row["notebook"].removeprefix("nbs/")
    return (f"make reproduce PAPER={row['paper']} SCALE={row['scale']}\n"
            f".venv/bin/papermill {row['notebook']} \\\n    runs/notebooks/{row['scale']}/{name} -p scale {row['scale']}")


def page_of(notebook: str) -> str:
    return "/" + notebook.removeprefix("nbs/")


def table_head(results: Results, row: dict, rows: int = 4) -> str:
    "The first rows of a table, as Markdown."
    text = next((n for n in row["files"] if n.endswith(".md")), None)
    if not text: return ""
    lines = [ln for ln in (results.folder/text).read_text().splitlines() if ln.startswith("|")]
    return "\n".join(lines[:rows + 2])


def card(results: Results, item, row: dict) -> str:
    "A figure in the gallery."
    page, chips = f"/{row['paper']}/figures/{item.id}.md", []
    for c in item.claims:
        verdict = results.verdicts[row["paper"], c]["verdict"]
        chips.append(chip(verdict, f"{c} {verdict}"))
    stale = ' <span class="verdict v-stale">stale</span>' if results.state(row["paper"], item.id) == "stale" else ""
    shown = f"[![{item.id}: {item.title}]({picture(row, MOVING)})]({page})" if picture(row) else f":::{{div}} table-head\n{table_head(results, row)}\n:::"
    links = f"[Notebook]({page_of(row['notebook'])}) · [Provenance]({page}#provenance) · [Make it again]({page}#make-it-again)"
    return (f"::::{{grid-item-card}}\n:class-card: figure-card\n\n{shown}\n\n"
            f"**[{item.id}: {item.title}]({page})**\n\n{' '.join(chips)}{stale} <span class=\"scale\">{row['scale']} scale</span>\n\n:::{{card-footer}}\n{links}\n:::\n::::\n")


def gallery(results: Results, paper: str, columns: int = 2) -> str:
    "All figures and tables of a paper: cards for those that exist, a line for the others."
    items = inventory(paper)
    cards = "".join(card(results, i, row) for i in items if (row := results.row(paper, i.id)))
    text = f":::::{{grid}} 1 {min(2, columns)} {columns} {columns}\n:gutter: 3\n\n{cards}:::::\n\n" if cards else ""
    absent = [i for i in items if not results.row(paper, i.id)]
    if absent:
        lines = "\n".join(f"| {i.id} | {i.kind} | {i.title} | {results.state(paper, i.id)} |" for i in absent)
        text += f"```{{dropdown}} {len(absent)} of {len(items)} figures and tables are not here yet\n\n| id | kind | title | why |\n|---|---|---|---|\n{lines}\n```\n\n"
    return text


def claims_table(results: Results, paper: str) -> str:
    "Every claim of a paper, its evidence below it, and the verdict."
    def cell(text) -> str: return str(text).replace("|", "\\|").replace("\n", " ")
    lines = []
    for c in claims_of(paper):
        r = results.verdicts[paper, c.id]
        scale = f'<span class="scale">{r["scale"]} scale</span>' if r["scale"] else ""
        lines.append(f'| **{c.id}** | {cell(c.statement)}<br><span class="evidence">{cell(r["evidence"])}</span> | {cell(c.source)} | {chip(r["verdict"])} {scale} |')
    return ":::{div} ledger\n| | claim and evidence | in the paper | verdict |\n|---|---|---|---|\n" + "\n".join(lines) + "\n:::\n\n"


def tiles(results: Results) -> str:
    "Counts over all papers."
    counts = [results.counts(p) for p in results.papers]
    made, planned = sum(c[0] for c in counts), sum(c[1] for c in counts)
    verdicts = {v: sum(c[2][v] for c in counts) for v in VERDICTS}
    words = dict(zip(VERDICTS, ("reproduced", "partly reproduced", "not reproduced", "not tested at the scales that were run")))
    cells = [(f"{made} of {planned}", "figures and tables regenerated"), *((n, f"claims {words[v]}") for v, n in verdicts.items())]
    return '<div class="tiles">' + "".join(f"<div><b>{n}</b><span>{t}</span></div>" for n, t in cells) + "</div>\n\n"


def button(text: str, page: str, options: str = "") -> str:
    return f"```{{button-ref}} {page}\n:color: primary\n{options}:ref-type: doc\n{text}\n```\n"


def home_page(results: Results, website: dict, start: str, tops: list[str]) -> str:
    "Title, what it is, the two commands, the gallery of everything."
    text = (f"{WIDE}# {website['title']}\n\n{{.lead}}\n{website['description']}\n\n"
            "```sh\nmake reproduce   # regenerate every figure and table, then train one run per paper again and compare\n"
            "make test        # the notebooks' own tests, properties and failures, every experiment end to end\n```\n\n"
            ":::{div} buttons\n" + button("Guide", "/guide") + button("Start reading", f"/{start}", ":outline:\n") + button("All claims", "/claims", ":outline:\n")
            + ":::\n\n")
    text += tiles(results) if results.papers else "No paper has an overview yet.\n\n"
    begun = [p for p in results.papers if results.counts(p)[0]]
    for paper in begun:
        made, planned, verdicts = results.counts(paper)
        chips = " ".join(chip(v, f"{n} {v}") for v, n in verdicts.items() if n)
        text += f"## {results.papers[paper]}\n\n[Read the notebooks](/{paper}/index.md) · {made} of {planned} figures and tables · {chips}\n\n{gallery(results, paper, 3)}"
    planned = [f"- [{title}](/{p}/index.md): {results.counts(p)[1]} figures and tables, {len(claims_of(p))} claims\n" for p, title in results.papers.items() if p not in begun]
    text += ("## Planned\n\n" + "".join(planned) + "\n") if planned else ""
    return text + toctree(tops, hidden=True)


def toctree(pages: list[str], caption: str = "", hidden: bool = False) -> str:
    options = "".join([f":caption: {caption}\n" if caption else "", ":hidden:\n" if hidden else "", ":maxdepth: 1\n"])
    return f"```{{toctree}}\n{options}\n" + "\n".join(pages) + "\n```\n\n"


def section_page(results: Results, folder: str, title: str, notebooks: list[tuple[str, str, str]], beside: list[tuple[str, str, str]] = ()) -> str:
    "Landing page of a folder of notebooks; of a paper where it is one. `notebooks`, and other pages `beside` them, are (page, title, summary)."
    arxiv = ""
    if folder in results.papers:
        number = getattr(import_module(f"rlpapers.{folder}.overview"), "ARXIV", "")
        arxiv = f"{{.lead}}\n{results.papers[folder]}" + (f", [arXiv {number}](https://arxiv.org/abs/{number})" if number else "") + "\n\n"
    text = f"{WIDE}# {title}\n\n{arxiv}" + "".join(f"1. [{t}](/{page}.ipynb): {s}\n" if s else f"1. [{t}](/{page}.ipynb)\n" for page, t, s in notebooks)
    text += "".join(f"\n{button(t, f'/{page}')}\n{s}\n" for page, t, s in beside)
    text += "\n" + toctree([f"/{page}" for page, _, _ in (*notebooks, *beside)], hidden=True)
    if folder in results.papers:
        text += f"## Figures and tables\n\n{gallery(results, folder)}## Claims\n\n{claims_table(results, folder)}"
        items = [f"/{folder}/figures/{i.id}" for i in inventory(folder) if results.row(folder, i.id)]
        if items: text += toctree(items, "Figures and tables", hidden=True)
    return text


def item_page(results: Results, item, row: dict, root: Path) -> str:
    "One figure or table, large, with its claims, the command that remakes it and its provenance."
    paper = row["paper"]
    shown = f"![{item.title}]({picture(row)})\n" if picture(row) else f":::{{div}} table-full\n{table_head(results, row, 10**6)}\n:::\n"
    if moving := picture(row, (".gif",)): shown = f"![{item.title}]({moving})\n\n{shown}"
    text = f"# {item.id}: {item.title}\n\n{shown}\n{row['caption']}\n\nMade by [{row['notebook']}]({page_of(row['notebook'])}).\n\n"
    if (state := results.state(paper, item.id)) != "regenerated":
        remedy = f"The code changed after these runs; `rlpapers reproduce {paper} --rerun stale` trains them again." if state == "stale" else ""
        text += f":::{{admonition}} {state.capitalize()}\n:class: warning\n{remedy}\n:::\n\n"
    for c in item.claims:
        r = results.verdicts[paper, c]
        text += f"{chip(r['verdict'], c + ' ' + r['verdict'])} {r['statement']}\n: {r['evidence']}\n\n"
    text += f"## Make it again\n\n```sh\n{commands(row)}\n```\n\n## Provenance\n\n| fact | value |\n|---|---|\n"
    packages = ", ".join(f"{k} {v}" for k, v in sorted(row["packages"].items()))
    facts = {"scale": row["scale"], "seeds": ", ".join(map(str, row["seeds"])) or "no training", "steps": row.get("steps", ""),
             "interval": row.get("interval", ""), "wall time of the runs": f"{row['wall_time_s']:,.0f} s", "machine": "; ".join(row["machine"]),
             "code": ", ".join(f"`{f}` {h[:12]}" for f, h in row["code_hash"].items()), "packages": packages}
    text += "".join(f"| {k} | {v} |\n" for k, v in facts.items() if v) + "\n"
    text += f"{len(row['run_keys'])} recorded runs\n\n" if row["run_keys"] else ""
    text += run_details(root, paper, row["run_keys"])
    text += "## Files\n\n| file | SHA-256 |\n|---|---|\n"
    text += "".join(f"| {{download}}`{Path(n).name} </figures/{n}>` | `{h[:16]}…` |\n" for n, h in sorted(row["files"].items()))
    for scale, other in results.rows[paper, item.id].items():
        if other is not row and picture(other): text += f"\n```{{dropdown}} At {scale} scale\n![{item.title}, {scale} scale]({picture(other)})\n```\n"
    return text


def run_info(root: Path, paper: str, key: str) -> dict:
    "What run.json says of a run; {} where its record is not here."
    found = [*(root/"data"/"record"/paper).glob(f"*/{key}/run.json"), *(root/"runs"/paper).glob(f"*/{key}/run.json")]
    return json.loads(found[0].read_text()) if found else {}


def run_details(root: Path, paper: str, keys: list[str]) -> str:
    "The runs of a figure: what tells each from the others, and its whole configuration, folded."
    infos = {key: run_info(root, paper, key) for key in keys}
    configs = [i.get("config", {}) for i in infos.values()]
    differ = [f for f in configs[0] if len({json.dumps(c.get(f)) for c in configs}) > 1] if configs else []
    text = ""
    for key, info in infos.items():
        name = ", ".join(f"{f}={info['config'][f]}" for f in differ if f in info.get("config", {}))
        shown = json.dumps({k: info[k] for k in ("function", "config", "wall_time_s", "machine") if k in info}, indent=1)
        text += f"````{{dropdown}} {name or key}\n`{key}`\n\n```json\n{shown}\n```\n````\n" if info else f"- `{key}`: its record is not here\n\n"
    return text

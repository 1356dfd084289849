"The website: built from the tree, then read in a browser that may not leave this machine."
import json, re, subprocess, sys
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlparse
import pytest, yaml

from browser import served

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"docs"))
pytestmark = pytest.mark.xdist_group("site")          # one worker builds the site once

@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The finished site, with what the build said in build.log."
    folder = tmp_path_factory.mktemp("site")
    run = subprocess.run([sys.executable, ROOT/"docs"/"build.py", "--out", folder/"html"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (folder/"build.log").write_text(run.stderr)
    return folder/"html"

@pytest.fixture(scope="module")
def address(site):
    with served(site) as url: yield url

LOOK = """async () => {
  for (const d of document.querySelectorAll('details')) d.open = true;
  if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
  const shown = e => { const b = e.getBoundingClientRect(); return b.width > 0 && b.height > 0 };
  const maths = [...document.querySelectorAll('.math')];
  return {
    formulas: maths.length,
    unrendered: maths.filter(m => !m.querySelector('mjx-container mjx-math *') || !shown(m.querySelector('mjx-container')) || m.querySelector('mjx-merror')).map(m => m.textContent),
    pictures: document.images.length,
    blank: [...document.images].filter(i => !i.complete || i.naturalWidth === 0).map(i => i.src),
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    links: [...document.querySelectorAll('a[href]')].map(a => a.href),
    text: document.querySelector('main').innerText,
  }
}"""

def visit(page, url: str) -> dict:
    response = page.goto(url, wait_until="load")
    assert response.status == 200, f"{url}: {response.status}"
    return page.evaluate(LOOK)

@pytest.fixture(scope="module")
def crawl(page, address):
    "Every page that can be reached by links from the home page, and what is on it."
    seen, todo = {}, [address + "index.html"]
    while todo:
        url = todo.pop()
        if url in seen: continue
        seen[url] = visit(page, url)
        targets = {urldefrag(link)[0] for link in seen[url]["links"]}
        todo += sorted(t for t in targets if t.startswith(address) and t.endswith(".html") and t not in seen)
    return seen

def test_builds_without_a_warning(site):
    assert not [line for line in (site.parent/"build.log").read_text().splitlines() if "WARNING" in line or "ERROR" in line]

def test_links_lead_somewhere(crawl, address, site):
    assert len(crawl) > 40
    broken = []
    for url, found in crawl.items():
        for link in found["links"]:
            target, anchor = urldefrag(link)
            if not target.startswith(address): continue
            file = site/urlparse(target).path.lstrip("/")
            if target in crawl: broken += [(url, link)] if anchor and anchor not in crawl[target]["ids"] else []
            elif not (file/"index.html" if file.is_dir() else file).exists(): broken.append((url, link))
    assert not broken

def test_every_page_is_linked(crawl, address, site):
    unlinked = {p.relative_to(site).as_posix() for p in site.rglob("*.html") if "_static" not in p.parts} - {u.removeprefix(address) for u in crawl}
    assert unlinked <= {"genindex.html", "search.html"}

def test_notebooks_are_in_the_navigation(crawl, address):
    sidebar = yaml.safe_load((ROOT/"_quarto.yml").read_text())["website"]["sidebar"]["contents"]
    for entry in sidebar:
        for notebook in sorted((ROOT/"nbs").glob(entry["contents"])) if "section" in entry else []:
            folder, name = notebook.relative_to(ROOT/"nbs").with_suffix(".html").parts
            assert f"{address}{folder}/index.html" in crawl[address + "index.html"]["links"], entry
            assert f"{address}{folder}/{name}" in crawl[f"{address}{folder}/index.html"]["links"], notebook

def test_formulas_are_shown(crawl):
    assert sum(found["formulas"] for found in crawl.values()) > 50
    assert not {url: found["unrendered"] for url, found in crawl.items() if found["unrendered"]}
    assert not [url for url, found in crawl.items() if re.search(r"\\\(|\\\[|\$\$|\{#eq-", found["text"].replace("\\\\", ""))], "raw LaTeX in the text"

def test_pictures_are_shown(crawl):
    assert sum(found["pictures"] for found in crawl.values()) > 10
    assert not {url: found["blank"] for url, found in crawl.items() if found["blank"]}

def test_gallery_has_every_figure(crawl, address):
    manifest = json.loads((ROOT/"figures"/"manifest.json").read_text())["rows"]
    home = crawl[address + "index.html"]
    assert manifest
    for row in manifest:
        own = f"{address}{row['paper']}/figures/{row['id']}.html"
        wanted = {own, f"{own}#provenance", f"{own}#make-it-again", urljoin(address, row["notebook"].removeprefix("nbs/").replace(".ipynb", ".html"))}
        assert wanted <= set(home["links"]), row["id"]
        assert f"make reproduce PAPER={row['paper']}" in crawl[own]["text"]
        assert all(Path(name).name in crawl[own]["text"] for name in row["files"])

def test_search_finds(page, address):
    page.goto(address + "search.html?q=bootstrap")
    page.wait_for_selector('#search-results li a[href*="core/06_stats.html"]', timeout=20_000)      # results come one by one
    page.goto(address + "search.html?q=zxqvwk")
    page.wait_for_function("document.querySelector('#search-results').innerText.includes('did not match')", timeout=20_000)
    assert not page.query_selector_all("#search-results li a")

def test_nothing_went_wrong_in_the_browser(crawl, page):
    assert not page.faults

def test_build_spares_other_folders(tmp_path):
    from build import build
    (tmp_path/"precious.txt").write_text("mine")
    with pytest.raises(SystemExit, match="not a site of ours"): build(tmp_path)
    assert (tmp_path/"precious.txt").exists()

# ---- from Quarto's Markdown to MyST's

def test_callouts():
    from notebooks import callouts
    assert callouts('::: {.callout-tip title="Hint"}\nText\n:::') == ":::{admonition} Hint\n:class: tip\nText\n:::"
    assert callouts("::: {.callout-note}\n## Why\nText\n:::") == ":::{admonition} Why\n:class: note\nText\n:::"
    assert callouts("::: {.callout-warning}\nText\n:::") == ":::{warning}\nText\n:::"

def test_equation_labels_are_unique_to_the_page():
    from notebooks import equations
    assert equations("$$x$$ {#eq-a}\nsee @eq-a, me@eq-a", "p") == "$$x$$ (p-eq-a)\nsee {eq}`p-eq-a`, me@eq-a"

def test_code_is_left_alone():
    from notebooks import name_links, outside_code
    text = "`iqm` here\n```\n`iqm` there\n```\n# `iqm`\n[`iqm`](x) `other`"
    assert outside_code(text, lambda t: name_links(t, {"iqm": "#api-iqm"})) == text.replace("`iqm` here", "[`iqm`](#api-iqm) here")

def test_cell_options_become_tags():
    from notebooks import quarto_tags
    cell = {"source": "#| echo: false\n#| code-fold: true\nx = 1"}
    assert quarto_tags(cell) == ["remove-input", "hide-input"] and cell["source"] == "x = 1"

def test_executed_copy_is_shown_only_for_the_same_code(tmp_path):
    from notebooks import shown_copy
    def write(path, *sources):
        path.parent.mkdir(parents=True, exist_ok=True)
        tags = [["injected-parameters"] if s == "scale = 1" else [] for s in sources]
        path.write_text(json.dumps({"cells": [dict(source=s, metadata={"tags": t}) for s, t in zip(sources, tags)]}))
        return path
    notebook = write(tmp_path/"nbs"/"p"/"10_a.ipynb", "x = 1")
    assert shown_copy(notebook, tmp_path) == notebook
    copy = write(tmp_path/"runs"/"notebooks"/"laptop"/"p"/"10_a.ipynb", "scale = 1", "x = 1")
    assert shown_copy(notebook, tmp_path) == copy
    write(notebook, "x = 2")
    assert shown_copy(notebook, tmp_path) == notebook

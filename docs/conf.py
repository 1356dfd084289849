"Sphinx settings. Title, theme colour and links come from _quarto.yml; pages are written by build.py beside this file."
import shutil
from importlib.util import find_spec
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
quarto = yaml.safe_load((ROOT/"_quarto.yml").read_text())
website = quarto["website"]

project = html_title = website["title"]
author = copyright = "The rlpapers developers"
extensions = ["myst_nb", "sphinx_design", "sphinx.ext.mathjax"]
exclude_patterns = ["figures/**/*.md"]     # tables, shown inside pages

nb_execution_mode = "off"            # outputs are the notebooks' own
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_mime_priority_overrides = [("html", "text/html", 10), ("html", "image/svg+xml", 20), ("html", "image/png", 30)]
myst_enable_extensions = ["amsmath", "attrs_inline", "attrs_block", "colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "misc.highlighting_failure"]

# Formulas with no network: MathJax 3.2.2 as files, from the wheel `sphinx-mathjax-offline`. We use the files only, because
# its Sphinx extension copies all 24 MB of them; one bundle and its fonts are enough. The menu would load more: it is off.
# Pure-Python LaTeX-to-MathML converters were the alternative; they cover less of LaTeX and need a maths font on the reader's machine.
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False, "processHtmlClass": "math"}, "tex": {"tags": "none"}}
myst_update_mathjax = False

html_theme = "pydata_sphinx_theme"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/favicon.svg"
html_context = {"default_mode": "auto"}
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_permalinks_icon = "#"
html_sidebars = {"index": [], "guide": [], "claims": [], "genindex": [], "search": []}
html_theme_options = {
    "logo": {"text": website["title"]},
    "icon_links": [{"name": "Source", "url": website["repo-url"], "icon": "fa-brands fa-github"}],
    "header_links_before_dropdown": 9,
    "navbar_align": "left",
    "navigation_depth": 2,
    "show_nav_level": 1,
    "show_toc_level": 2,
    "show_prev_next": website.get("page-navigation", True),
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
templates_path = []
link_colour = quarto["format"]["html"]["linkcolor"]


def copy_mathjax(app, error):
    "Bring the one MathJax bundle and its fonts into the finished site."
    if error: return
    files = Path(find_spec("sphinx-mathjax-offline").origin).parent/"static"/"mathjax"
    target = Path(app.outdir)/"_static"/"mathjax"
    for part in ("tex-chtml.js", "output/chtml/fonts"):
        source = files/part
        (target/part).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir(): shutil.copytree(source, target/part, dirs_exist_ok=True)
        else: shutil.copy2(source, target/part)


def theme_colour(app, page, template, context, doctree):
    context["metatags"] = context.get("metatags", "") + (
        f'<style>html[data-theme="light"]:root{{--pst-color-primary:{link_colour};--pst-color-link:{link_colour}}}</style>')


def setup(app):
    app.connect("build-finished", copy_mathjax)
    app.connect("html-page-context", theme_colour)

"Claims, figures and their manifest: bytes, concurrency, staleness, and errors that help."
import os, re, subprocess, sys
from types import SimpleNamespace
import pandas as pd, pytest
import rlpapers
from rlpapers.core import claims, figures
from rlpapers.core.paths import RLPapersError, project_root

OVERVIEW = '''
from rlpapers.core.claims import Claim, Item
TITLE, ARXIV = "x", ""
TITLE = ("A toy "
         "paper")
CLAIMS = [Claim("C1", "Faster & <better>.", "Fig. 1"), Claim("C2", "Never fails.", "Table 1")]
INVENTORY = [Item("F1", "Curves", "figure", "nbs/toy/10_curves.ipynb", ("C1",)), Item("F2", "At scale", "figure", "nbs/toy/11_many.ipynb", scales=("paper",)),
             Item("F3", "Not yet", "figure"), Item("T1", "Scores", "table", "nbs/toy/10_curves.ipynb"), Item("T2", "More", "table", "nbs/toy/10_curves.ipynb")]
'''
TRAIN = '''
from dataclasses import dataclass
import pandas as pd
from rlpapers.core.record import RunOutput, Work
@dataclass(frozen=True)
class ToyConfig:
    seeds: tuple[int, ...] = (0, 1, 2)
def train_toy(config: ToyConfig, work: Work) -> RunOutput:
    "Nothing is learnt."
    return RunOutput(pd.DataFrame([dict(seed=s, step=t, score=s + t * 1.5) for s in config.seeds for t in range(5)]))
'''
DRAW = '''
import sys
from pathlib import Path
import rlpapers; rlpapers.__path__.append(sys.argv[1])
import matplotlib.pyplot as plt
from rlpapers.core.claims import claim
from rlpapers.core.figures import curve_plot, figure, table
out = Path(sys.argv[2])
from rlpapers.core.record import Work, write_run
from rlpapers.toy.train import ToyConfig, train_toy
run = write_run(out/"runs", train_toy, ToyConfig(), train_toy(ToyConfig(), Work()), 1., dict(cpu="CPU", cores=2, device="cpu"))
where = dict(scale="smoke", out=out, runs_used=[run])
@figure("toy", "F1")
def curves(frame):
    "Curves."
    fig, ax = plt.subplots()
    drawn = curve_plot(ax, frame, "step", "score"); ax.set(xlabel="step", ylabel="score")
    return fig, drawn
@table("toy", "T1")
def scores(frame):
    "Scores of 50 % & more."
    return frame.groupby("seed").score.mean().rename("mean_score [%]").to_frame()
@claim("toy", "C1")
def faster(frame): return "reproduced", "it is"
curves(run.metrics, **where); scores(run.metrics, **where); faster(run.metrics, scale="smoke", out=out, runs=[run])
'''
REAL_RUN = DRAW[DRAW.index("from rlpapers.core.record"):DRAW.index("where =")]
PLAIN_RUN = '''                                        # the same without torch, seconds faster
import pandas as pd; from types import SimpleNamespace
info = dict(function="f", code_hash="h", config=dict(seeds=[0, 1, 2]), machine=dict(cpu="CPU", cores=2, device="cpu"), packages={}, wall_time_s=1.)
run = SimpleNamespace(key="k", status="fresh", info=info, metrics=pd.DataFrame([dict(seed=s, step=t, score=s + t * 1.5) for s in range(3) for t in range(5)]))
'''

@pytest.fixture
def shelf(tmp_path, monkeypatch):
    "A folder on the package's path that holds a paper named toy."
    (tmp_path/"toy").mkdir()
    for name, text in (("overview", OVERVIEW), ("train", TRAIN)): (tmp_path/"toy"/f"{name}.py").write_text(text)
    monkeypatch.setattr(rlpapers, "__path__", [*rlpapers.__path__, str(tmp_path)])
    yield tmp_path
    for name in [m for m in sys.modules if m.startswith("rlpapers.toy")]: del sys.modules[name]
    if hasattr(rlpapers, "toy"): del rlpapers.toy

def python(code, *args, **options):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)

def finish(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out

def content(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file() and "runs" not in f.parts and f.stat().st_size}

def one_figure(caption="A caption.", draw=None):
    def default(**_):
        import matplotlib.pyplot as plt
        fig, ax = plt.subplots(figsize=(2, 1)); ax.plot([0, 1])
        return fig, pd.DataFrame({"x": [0, 1]})
    fn = draw or default
    fn.__doc__ = caption
    return figures.figure("toy", "F1")(fn)

# ---------------------------------------------------------------- bytes
def test_two_processes_draw_the_same_bytes(shelf, tmp_path):
    (tmp_path/"home").mkdir()
    (tmp_path/"home"/"matplotlibrc").write_text("font.size: 20\naxes.facecolor: yellow\nsavefig.dpi: 30\nsvg.fonttype: none\n")
    spoilt = dict(os.environ, PYTHONHASHSEED="7", TZ="Asia/Tokyo", MPLCONFIGDIR=str(tmp_path/"home"))
    draw = DRAW.replace(REAL_RUN, PLAIN_RUN)
    both = [python(draw, shelf, tmp_path/"a", env=dict(os.environ, PYTHONHASHSEED="1")), python(draw, shelf, tmp_path/"b", env=spoilt, cwd=tmp_path/"home")]
    for p in both: finish(p)
    a, b = content(tmp_path/"a"), content(tmp_path/"b")
    assert sorted(a) == ["claims.json", "manifest.json", *(f"toy/smoke/{f}" for f in ("F1.csv", "F1.png", "F1.svg", "T1.csv", "T1.md", "T1.tex"))]
    assert [name for name in a if a[name] != b[name]] == []
    assert b"<dc:date>" not in a["toy/smoke/F1.svg"] and b"Software" not in a["toy/smoke/F1.png"]
    assert rb"mean\_score [\%]" in a["toy/smoke/T1.tex"] and rb"50 \% \& more" in a["toy/smoke/T1.tex"] and re.search(rb"\| +seed \| +mean_score \[%\] \|", a["toy/smoke/T1.md"])

# ---------------------------------------------------------------- concurrency
def test_eight_processes_lose_no_row(tmp_path):
    code = ("import sys; from pathlib import Path; from rlpapers.core.claims import put_row\n"
            "for i in range(10):\n"
            "    for f in ('manifest.json', 'claims.json'): put_row(Path(sys.argv[1])/f, {'paper': 'toy', 'scale': 'smoke', 'id': f'{sys.argv[2]}-{i}', 'by': int(sys.argv[2])}, ('id',))\n"
            "    put_row(Path(sys.argv[1])/'claims.json', {'paper': 'toy', 'scale': 'smoke', 'id': 'shared', 'by': int(sys.argv[2])}, ('id',))")
    for p in [python(code, tmp_path, n) for n in range(8)]: finish(p)
    for name, extra in (("manifest.json", 0), ("claims.json", 1)):
        ids = [r["id"] for r in claims.read_rows(tmp_path/name)]
        assert len(ids) == 80 + extra == len(set(ids)) and ids == sorted(ids)
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))

@pytest.mark.parametrize("rows", ['{"a": 1}', '[{"paper": "offline"}]', '[{"paper": "offline", "scale": "huge"}]', "3"])
def test_damaged_rows_are_typed_errors(tmp_path, rows):
    (tmp_path/"claims.json").write_text('{"version": 1, "rows": %s}' % rows)
    with pytest.raises(RLPapersError, match="not a file of ours|Unknown scale 'huge'"): claims.read_rows(tmp_path/"claims.json")

# ---------------------------------------------------------------- names
def test_papers_are_listed_without_heavy_imports(shelf):
    code = ("import sys, rlpapers; rlpapers.__path__.append(sys.argv[1]); from rlpapers.core import claims, figures; print(claims.papers()['toy'])\n"
            "print([m for m in ('torch', 'pandas', 'matplotlib', 'scipy', 'rlpapers.toy') if m in sys.modules])")
    assert finish(python(code, shelf)) == "A toy paper\n[]\n"

@pytest.mark.parametrize("ask, hint", [(lambda: claims.inventory("tyo"), "Did you mean 'toy'"), (lambda: claims.claim("toy", "c1"), "Did you mean 'C1'"),
    (lambda: figures.figure("toy", "F11")(len), "Did you mean 'F1'"), (lambda: figures.table("toy", "F1")(len), "with @figure"),
    (lambda: claims.Item("F1", "", "plot"), "Known: figure, table"), (lambda: figures.status("figures", "toi"), "Did you mean 'toy'"),
    (lambda: claims.claim("toy", "C1")(lambda: ("partialy", "x"))(scale="smoke"), "Did you mean 'partly'"),
    (lambda: claims.claim("toy", "C1")(lambda: ("partly", "x"))(scale="smok"), "Did you mean 'smoke'")])
def test_wrong_names_get_suggestions(shelf, ask, hint):
    with pytest.raises(RLPapersError, match=hint): ask()

def test_overview_without_inventory(shelf):
    (shelf/"toy"/"overview.py").write_text("TITLE = 'half'")
    with pytest.raises(claims.UnknownPaper, match="defines no INVENTORY; export it from nbs/toy/00_overview.ipynb"): claims.inventory("toy")

def test_missing_published_file(monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "project_paths", lambda: SimpleNamespace(published=tmp_path))
    (tmp_path/"toy_curves.csv").write_text("x,y\n1,2\n")
    assert figures.published("toy", "curves").y.tolist() == [2]
    with pytest.raises(figures.MissingPublished, match=r"toy_curve.csv does not exist. Did you mean 'curves'"): figures.published("toy", "curve")

@pytest.mark.parametrize("paper", claims.papers())
def test_real_overviews_are_consistent(paper):
    ids = [c.id for c in claims.claims_of(paper)]
    items = claims.inventory(paper)
    assert len(set(ids)) == len(ids) and len({i.id for i in items}) == len(items)
    assert [c for i in items for c in i.claims if c not in ids] == []

def test_out_is_relative_to_the_project(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert claims.out_folder("figures") == project_root()/"figures"
    assert claims.out_folder(tmp_path/"x") == tmp_path/"x"

# ---------------------------------------------------------------- claims
def test_ledger_keeps_what_nobody_judged(shelf):
    judge = claims.claim("toy", "C1")(lambda verdict: (verdict, "two\n lines"))
    for scale, verdict in (("paper", "reproduced"), ("smoke", "partly"), ("paper", "not reproduced")): shown = judge(verdict, scale=scale, out=shelf)
    rows = [r for r in claims.ledger(shelf) if r["paper"] == "toy"]
    assert [(r["claim"], r["scale"], r["verdict"]) for r in rows] == [("C1", "smoke", "partly"), ("C1", "paper", "not reproduced"), ("C2", "", "not tested at this scale")]
    assert set(rows[0]) == {"paper", "claim", "statement", "verdict", "scale", "evidence"} and rows[0]["evidence"] == "two lines"
    assert "Faster &amp; &lt;better&gt;." in shown._repr_html_() and "not reproduced (paper)" in repr(shown)

def test_stale_runs_show_in_the_evidence(shelf):
    stale = SimpleNamespace(key="k", status="stale", info=dict(function="rlpapers.toy.train:train_toy", code_hash="h"))
    row = claims.claim("toy", "C1")(lambda: ("partly", "half"))(scale="smoke", out=shelf, runs=iter([stale]))
    assert row["evidence"] == "[from stale runs] half" and row["run_keys"] == ["k"]

def test_a_verdict_goes_stale_with_its_code(shelf):
    fresh = SimpleNamespace(key="k", status="fresh", info=dict(function="rlpapers.core.record:fit_line", code_hash="older"))
    claims.claim("toy", "C1")(lambda: ("reproduced", "yes"))(scale="smoke", out=shelf, runs=[fresh])
    assert [r["evidence"] for r in claims.ledger(shelf) if r["claim"] == "C1" and r["paper"] == "toy"] == ["[stale: the code changed since] yes"]

@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": [{"paper": '])
def test_damaged_ledger_is_never_overwritten(shelf, text):
    (shelf/"claims.json").write_text(text)
    with pytest.raises(RLPapersError, match="Restore it with git"): claims.claim("toy", "C1")(lambda: ("partly", "x"))(scale="smoke", out=shelf)
    assert (shelf/"claims.json").read_text() == text

# ---------------------------------------------------------------- manifest
def states(out): return {(r["id"], r["scale"]): r["status"] for r in figures.status(out, "toy")}

def test_status_of_every_item(shelf):
    assert states(shelf) == {("F1", ""): "not regenerated", ("F2", ""): "needs paper scale", ("F3", ""): "planned", ("T1", ""): "not regenerated", ("T2", ""): "not regenerated"}
    one_figure()(scale="smoke", out=shelf)
    one_figure()(scale="laptop", out=shelf)
    assert [r["scale"] for r in figures.status(shelf, "toy") if r["id"] == "F1"] == ["smoke", "laptop"]
    assert set(figures.status(shelf)[0]) == {"paper", "id", "title", "kind", "notebook", "scale", "status", "files"}

def test_changed_missing_and_stray_files_are_found(shelf):
    out = shelf/"out"
    one_figure()(scale="smoke", out=out)
    assert states(out)["F1", "smoke"] == "regenerated" and figures.verify_manifest(out) == []
    png = out/"toy"/"smoke"/"F1.png"
    png.write_bytes(png.read_bytes()[:-1])
    assert states(out)["F1", "smoke"] == "changed files: toy/smoke/F1.png"
    png.unlink(); (png.parent/"F9.png").write_bytes(b"x")
    assert states(out)["F1", "smoke"] == "missing files: toy/smoke/F1.png"
    assert figures.verify_manifest(out) == ["toy F1 (smoke): missing files: toy/smoke/F1.png.", "toy/smoke/F9.png is in no row of the manifest."]

def test_death_between_files_and_manifest_is_seen(shelf, monkeypatch):
    out, numbers = shelf/"out", [1]
    def draw():
        import matplotlib.pyplot as plt
        fig, ax = plt.subplots(figsize=(2, 1)); ax.plot(numbers)
        return fig, pd.DataFrame({"x": numbers})
    one_figure(draw=draw)(scale="smoke", out=out)
    numbers.append(2)
    def killed(*_): raise KeyboardInterrupt
    monkeypatch.setattr(figures, "put_row", killed)
    with pytest.raises(KeyboardInterrupt): one_figure(draw=draw)(scale="smoke", out=out)
    assert states(out)["F1", "smoke"].startswith("changed files")

def test_figures_become_stale_when_their_training_code_changes(shelf, tmp_path):
    again = """
from rlpapers.core import record
from rlpapers.core.figures import status
train = Path(sys.argv[1])/"toy"/"train.py"
text = train.read_text()
for old, new in (("", ""), ("Nothing is learnt.", "Another docstring."), ("1.5", "1.6"), ("train_toy", "renamed")):
    train.write_text(text.replace(old, new) if old else text)
    record._definitions.cache_clear(), record.code_hash.cache_clear()
    if new == "renamed": del sys.modules["rlpapers.toy.train"]
    print({r["status"] for r in status(out, "toy") if r["id"] in ("F1", "T1")})
"""
    printed = finish(python(DRAW + again, shelf, tmp_path/"out")).splitlines()
    assert printed[-4:] == ["{'regenerated'}", "{'regenerated'}", "{'stale'}", "{'stale'}"]

def test_provenance_row(shelf):
    run = lambda key, seeds, cpu, status="fresh": SimpleNamespace(key=key, status=status, info=dict(function="rlpapers.toy.train:train_toy", code_hash="h", config=dict(seeds=seeds),
              machine=dict(cores=2, cpu=cpu, device="cpu"), packages=dict(torch="2"), wall_time_s=1.25))
    one_figure()(scale="smoke", out=shelf, runs_used=(r for r in [run("b", [2, 3], "B"), run("a", [0, 1, 2], "A", "stale")]), steps="5 steps")
    row, = claims.read_rows(shelf/"manifest.json")
    assert (row["seeds"], row["run_keys"], row["stale"], row["wall_time_s"], row["caption"], row["claims"]) == ([0, 1, 2, 3], ["a", "b"], True, 2.5, "A caption.", ["C1"])
    assert figures.provenance_line(row) == ["STALE: the code changed after these runs", "smoke scale", "4 seeds", "5 steps", "no interval", "2 cores, A; 2 cores, B"]
    assert states(shelf)["F1", "smoke"] == "stale"

# ---------------------------------------------------------------- drawing
@pytest.mark.parametrize("result", [None, "fig", (1, 2)])
def test_wrong_results_are_refused_and_leave_nothing(shelf, result):
    with pytest.raises(figures.BadFigure, match="must return"): one_figure(draw=lambda: result)(scale="smoke", out=shelf/"out")
    assert not (shelf/"out").exists()

def test_no_caption_no_figure(shelf):
    with pytest.raises(figures.BadFigure, match="write its caption there"): one_figure(caption=" ")

@pytest.mark.parametrize("legend", [dict(loc="upper center", bbox_to_anchor=(.5, -.4)), dict(loc="upper left", bbox_to_anchor=(1, 1))])
def test_footer_lies_under_everything_and_is_no_wider(shelf, legend):
    import matplotlib.pyplot as plt
    def draw():
        fig, axes = plt.subplots(2, 3, figsize=(5.5, 3))
        for ax in axes.flat: ax.plot([0, 1], label="a curve"); ax.set(xlabel="updates", ylabel="score", title="task")
        axes[1, 1].legend(**legend)
        return fig, pd.DataFrame({"x": [1]})
    fig = one_figure(draw=draw)(scale="smoke", out=shelf, steps="a very long remark about the number of steps that were made " * 2, interval="an interval")
    fig.canvas.draw()
    footer, = fig.texts
    box = footer.get_window_extent()
    others = [ax.get_tightbbox() for ax in fig.axes]
    assert box.y1 <= min(o.y0 for o in others) + 1
    assert footer.get_text().count("\n") >= 1
    assert plt.get_fignums() == []                                                  # nothing left open

def test_style_does_not_leak(shelf):
    import matplotlib
    before = dict(matplotlib.rcParams)
    one_figure()(scale="smoke", out=shelf)
    assert dict(matplotlib.rcParams) == before

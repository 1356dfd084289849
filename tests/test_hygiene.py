"The tree itself: exported modules, notebooks, pins, paths, documents, and what an import costs."
import configparser, importlib.util, json, os, re, shutil, subprocess, sys, tomllib
from pathlib import Path
import pytest, yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
EXPERIMENTS = [p for p in NOTEBOOKS if re.fullmatch(r"1\d_\w+", p.stem)]
MODULES = sorted((ROOT/"rlpapers").rglob("*.py"))
CORE_BUDGET = 1500                       # lines, DESIGN: the core stays small enough to be read

def short(path): return path.relative_to(ROOT).as_posix()
def cells(path, kind=("code", "markdown")): return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] in kind]
def source(cell): return "".join(cell["source"])
def load(path):
    "A script of ours as a module."
    spec = importlib.util.spec_from_file_location(path.stem, path)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module

@pytest.fixture(scope="module")
def pyproject(): return tomllib.loads((ROOT/"pyproject.toml").read_text())

@pytest.fixture(scope="module")
def lock(): return dict(line.split("==") for line in (ROOT/"requirements.lock").read_text().splitlines() if not line.startswith("#"))

def tracked() -> list[Path]:
    "Files that git tracks or would add."
    run = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True)
    if run.returncode: pytest.skip("not a git checkout")
    return [ROOT/f for f in run.stdout.split("\0") if f and (ROOT/f).is_file()]

# ---- notebooks and what is exported from them

def exported_from(module: Path) -> Path | None:
    "The notebook that a module's header names."
    header = re.search(r"File to edit: (\S+\.ipynb)", module.read_text())
    return (module.parent/header[1]).resolve() if header else None

def test_export_leaves_tree_clean(tmp_path):
    copy = tmp_path/"copy"
    for part in ("nbs", "rlpapers"): shutil.copytree(ROOT/part, copy/part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for part in ("settings.ini", "pyproject.toml", "README.md"): shutil.copy(ROOT/part, copy/part)
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([Path(sys.executable).parent/command], cwd=copy, env=env, check=True, capture_output=True, text=True)
    files = [p for part in ("nbs", "rlpapers") for p in [*(ROOT/part).rglob("*"), *(copy/part).rglob("*")] if p.suffix in (".py", ".ipynb")]
    names = {p.relative_to(copy if copy in p.parents else ROOT) for p in files if ".ipynb_checkpoints" not in p.parts}
    def text(p): return p.read_text() if p.exists() else "(absent)"
    changed = sorted(str(n) for n in names if text(ROOT/n) != text(copy/n))
    assert not changed, f"run `make export` and `nbdev_clean`, then commit: {changed}"

def test_no_stale_modules():
    names = {m: exported_from(m) for m in MODULES if m.name not in ("__init__.py", "_modidx.py")}
    assert len(names) > 10
    assert not [short(m) for m, nb in names.items() if nb is None or not nb.exists()], "exported from no notebook that exists"
    wrong = [short(m) for m, nb in names.items() if not re.search(rf"^#\| *(default_exp|export) +{'.'.join(m.relative_to(ROOT/'rlpapers').with_suffix('').parts)}$",
                                                              "\n".join(source(c) for c in cells(nb, ("code",))), re.M)]
    assert not wrong, "their notebooks export something else"

@pytest.mark.parametrize("path", EXPERIMENTS, ids=short)
def test_one_parameters_cell(path):
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    names = [re.fullmatch(r"(\w+): (?:str|int) = \S+\s+# .+", line)[1] for line in source(tagged[0]).strip().splitlines()]
    assert names == ["scale", "engine", "rerun", "seeds", "out"]

@pytest.mark.parametrize("path", NOTEBOOKS, ids=short)
def test_notebook_is_fit_to_commit(path):
    nb = json.loads(path.read_text())
    assert path.stat().st_size <= 400_000
    assert (nb["metadata"]["kernelspec"]["language"], nb["metadata"]["kernelspec"]["name"]) == ("python", "python3")
    assert not [source(c) for c in cells(path, ("code",)) if any(o["output_type"] == "error" for o in c["outputs"])]
    assert not [source(c) for c in cells(path, ("code",)) if c["execution_count"] is not None]
    assert source(nb["cells"][0]).startswith("# ") and "\n> " in source(nb["cells"][0]), "title, then a > summary"

def test_no_unused_or_undefined_names():
    run = subprocess.run([Path(sys.executable).parent/"ruff", "check", "--no-cache", "nbs", "tests", "docs", "benchmarks"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout

def test_core_stays_small():
    def lines(m):
        written = re.sub(r"^__all__ = \[.*?\]$", "", re.sub(r'\A""".*?"""', "", m.read_text(), flags=re.S), flags=re.M | re.S)   # nbdev's own lines do not count
        return [ln for ln in written.splitlines() if ln.strip() and not ln.startswith(("# %%", "# AUTOGENERATED"))]
    count = {m.name: len(lines(m)) for m in (ROOT/"rlpapers"/"core").glob("*.py")}
    assert sum(count.values()) <= CORE_BUDGET, count

def test_own_modules_are_imported_by_name():
    "The code hash follows names: `import rlpapers.x as y; y.f()` or `from . import x` would escape it."
    bad = [f"{short(m)}: {line.strip()}" for m in MODULES for line in m.read_text().splitlines()
           if re.match(r"\s*(import +rlpapers\.|from +\.+ +import|from +rlpapers +import|from +\S+ +import +\*)", line)]
    assert not bad

def test_package_is_light():
    code = """if True:
        import socket, sys
        seen = []
        sys.addaudithook(lambda event, args: seen.append(event) if event.startswith("socket.") else None)
        import rlpapers
        heavy = {"torch", "numpy", "pandas", "matplotlib", "gymnasium", "nbdev", "fastcore"} & set(sys.modules)
        assert not heavy, heavy
        assert not seen, "import rlpapers opened a socket"
        socket.socket().close()
        assert seen, "the hook sees sockets"
        """
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

# ---- metadata

def test_versions_agree(pyproject):
    ini = configparser.ConfigParser()
    ini.read(ROOT/"settings.ini")
    ini = ini["DEFAULT"]
    init = re.search(r'__version__ = "([^"]+)"', (ROOT/"rlpapers"/"__init__.py").read_text())[1]
    citation = yaml.safe_load((ROOT/"CITATION.cff").read_text())["version"]
    assert pyproject["project"]["version"] == ini["version"] == init == citation
    assert pyproject["project"]["name"] == ini["lib_name"]
    assert f"## {init}" in (ROOT/"CHANGELOG.md").read_text()

def test_lock_satisfies_pyproject(pyproject, lock):
    extras = pyproject["project"]["optional-dependencies"]
    wanted = [Requirement(r) for rs in [pyproject["project"]["dependencies"], pyproject["build-system"]["requires"], *extras.values()] for r in rs]
    wanted = [r for r in wanted if r.name != "rlpapers"]
    assert not [str(r) for r in wanted if not r.specifier.contains(lock.get(canonicalize_name(r.name), "0"))]
    assert lock["torch"] == "2.13.0" and not [v for v in lock.values() if "+" in v]
    assert not [r for r in pyproject["project"]["dependencies"] if not re.search(r"[><=]", r)], "unbounded dependency"
    inner = Requirement(extras["all"][0]).extras
    assert inner == set(extras) - {"all"}

def test_lock_is_complete(pyproject, lock):
    if sys.version_info[:2] != (3, 11): pytest.skip("the lock is made on Python 3.11")
    needed = load(ROOT/".ci"/"lock.py").needed(pyproject)
    accelerator = ("nvidia-", "cuda-", "triton")            # torch's own, on machines with a GPU build
    assert not {n for n in needed if not n.startswith(accelerator)} ^ set(lock), "make lock"

def test_no_machine_paths_or_registries():
    path = re.compile(r"""(?:^|[\s"'(=\[])/(?:work|home|root|tmp|Users|opt|mnt|srv|var/folders)/[\w.]""", re.M)
    registry = re.compile(r"py[p]i\.org|pythonho[s]ted|npm[j]s\.(?:org|com)|deb\.deb[i]an|index-ur[l]|find-link[s]")
    texts = [f for f in tracked() if f.suffix not in (".png", ".parquet", ".safetensors", ".npz", ".hdf5")]
    assert len(texts) > 50
    found = {short(f): m[0] for f in texts for pattern in (path, registry) for m in pattern.finditer(f.read_text(errors="replace"))}
    assert not found

# ---- the website's configuration and the documents

def test_quarto_config_is_one():
    assert (ROOT/"nbs"/"_quarto.yml").read_text() == (ROOT/"_quarto.yml").read_text()
    quarto = yaml.safe_load((ROOT/"_quarto.yml").read_text())
    assert set(quarto) <= {"project", "website", "format", "execute"} and "metadata-files" not in quarto
    sections = [e for e in quarto["website"]["sidebar"]["contents"] if "section" in e]
    listed = {p for e in sections for p in (ROOT/"nbs").glob(e["contents"])}
    assert not [e for e in sections if not list((ROOT/"nbs").glob(e["contents"]))], "Quarto fails on a glob that matches nothing"
    assert {short(p) for p in listed} == {short(p) for p in NOTEBOOKS} - {"nbs/index.ipynb"}
    assert all((ROOT/"nbs"/e["href"]).exists() for e in quarto["website"]["navbar"]["left"])

DOCUMENTS = ("README.md", "CONTRIBUTING.md")

def test_documented_commands_exist():
    from typer.main import get_command
    from rlpapers.core.cli import app
    make = (ROOT/"Makefile").read_text()
    targets, commands = set(re.findall(r"^([a-z-]+):", make, re.M)), get_command(app).commands
    texts = {name: (ROOT/name).read_text() for name in DOCUMENTS}
    used = {t for text in texts.values() for line in re.findall(r"`(make [^`]*)`|^(make [^#\n]*)", text, re.M) for t in "".join(line).split()[1:]}
    assert {"reproduce", "test", "site", "lab", "bench"} <= {u for u in used if "=" not in u} <= targets
    assert not [u for u in used if "=" in u and not re.search(rf"^{u.split('=')[0]}\s*\?=", make, re.M)]
    typed = re.findall(r"bin/rlpapers ([a-z]+)([^#\n]*)", texts["README.md"] + make.replace("$(BIN)", "bin"))
    assert len(typed) > 5
    for command, rest in typed:
        assert command in commands
        options = {o for p in commands[command].params for o in p.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, f"rlpapers {command}{rest}"

@pytest.mark.parametrize("name", DOCUMENTS)
def test_documented_paths_exist(name):
    text = (ROOT/name).read_text()
    paths = {p for p in re.findall(r"\]\(([^)#:]+)\)", text)} | {p for p in re.findall(r"\b(?:nbs|figures|docs|tests|data)/[\w/.-]*\w\.\w+", text)}
    assert paths and not [p for p in paths if not (ROOT/p).exists()]

def test_readme_is_the_executed_index():
    readme = load(ROOT/"docs"/"readme.py")
    assert readme.to_markdown(readme.execute(ROOT/"nbs"/"index.ipynb")) == (ROOT/"README.md").read_text(), "make readme"

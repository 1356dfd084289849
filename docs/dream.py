"""The page on which a world model is played: the network, its facts and onnxruntime-web as files beside it.

onnxruntime-web is fetched once, by npm, into runs/npm/ (which git ignores) and checked against the digest below. Readers of the
site need no network, and no special headers: its WebAssembly runs on one thread.
"""
import base64
import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

from rlpapers.core.paths import file_lock

RUNTIME = "onnxruntime-web@1.30.0"      # MIT; after a change of version `npm view` tells the new digest (dist.integrity)
DIGEST = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="     # SHA-512 of the package
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")                # its build without WebGPU
SUMMARY = "The small world model of these notebooks, played in your browser: every frame is dreamed."

PLAYER = """<div class="dream" data-assets="{assets}">
<div><canvas data-part="screen" width="16" height="16" aria-label="dreamed frame"></canvas></div>
<div class="dream-controls">
<p><button type="button" data-part="run">Start</button> <button type="button" data-part="reset">Reset</button>
<button type="button" data-key="ArrowLeft" aria-label="left">◀</button> <button type="button" data-key="ArrowRight" aria-label="right">▶</button></p>
<p><label>noise seed <input type="number" data-part="seed" value="0" min="0" max="4294967295"></label></p>
<p><label>denoising steps <select data-part="steps"><option>1</option></select></label></p>
<p><label>speed <input type="range" data-part="speed" min="1" max="60" value="10"></label></p>
<p><output data-part="status">The player has not started. It needs JavaScript, and a server: python -m http.server -d _docs</output></p>
<p><small data-part="about"></small></p>
</div>
</div>
<script type="module" src="{script}"></script>
"""


class Missing(Exception):
    "Why there is nothing to play, as a sentence."


def unpack(package: Path, folder: Path) -> None:
    "The files that we need out of an npm package, after a look at its digest."
    if base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode() != DIGEST:
        raise Missing(f"What npm gave as {RUNTIME} is not the package that this project was tested with.")
    with tarfile.open(package) as archive:
        for name in FILES: (folder/name).write_bytes(archive.extractfile(f"package/dist/{name}").read())


def runtime(cache: Path) -> Path:
    "Folder with onnxruntime-web's files, fetched through npm where they are not there yet; of several processes one fetches. Raises `Missing`."
    folder = cache/RUNTIME.replace("@", "-")
    with file_lock(cache/"npm.lock"):
        if not all((folder/name).exists() for name in FILES): fetch(folder)
    return folder


def fetch(folder: Path) -> None:
    "Pack the runtime with npm and unpack what we need of it. Raises `Missing`."
    if not shutil.which("npm"): raise Missing(f"npm is not installed, and {RUNTIME} comes through it.")
    draft = folder.with_suffix(".part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    command = ["npm", "pack", RUNTIME, "--silent", "--fetch-retries=0", "--pack-destination", str(draft)]
    try: run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired: raise Missing(f"npm pack {RUNTIME} took longer than five minutes.") from None
    packages = list(draft.glob("*.tgz"))
    if run.returncode or not packages: raise Missing(f"npm pack {RUNTIME} failed: {run.stderr.strip()[-200:] or run.returncode}")
    unpack(packages[0], draft)
    packages[0].unlink()
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def write_player(folder: Path, world, cache: Path) -> dict:
    "All that the player loads; returns the facts of dream.json. Raises `Missing`, and `CannotExport`."
    from rlpapers.diamond.browser import write_files
    files = runtime(cache)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES: shutil.copy2(files/name, folder/name)
    return write_files(world, folder)


def recorded_player(folder: Path, cache: Path) -> str:
    "The player of the recorded laptop world model; returns why there is none, or ''."
    from rlpapers.core.paths import RLPapersError
    from rlpapers.diamond.play import recorded_world
    try: write_player(folder, recorded_world("PixelCatch"), cache)
    except (Missing, RLPapersError, ImportError) as e: return str(e)
    return ""


def page(reason: str) -> str:
    "The page as Markdown: the player, or why it is not there."
    absent = f":::{{admonition}} Nothing to play in this copy of the site\n:class: warning\n{reason}\n:::\n"
    player = PLAYER.format(assets="../_static/dream/", script="../_static/dream.js")
    return (f"# Play the dream\n\n{{.lead}}\n{SUMMARY}\n\n{absent if reason else player}\n"
            "A paddle catches falling balls. Nobody programmed that here: a network has watched the game, and draws the next frame from the last four "
            "and from your key, starting from noise. Steer with the arrow keys. The page computes everything itself, with "
            "[the model in ONNX](/diamond/08a_browser.ipynb) and onnxruntime-web on one thread; nothing is fetched from elsewhere.\n\n"
            "- **Reset** begins from another beginning of the real game. The same seed, beginning and keys give the same dream.\n"
            "- **Denoising steps**: one evaluation of the network makes a frame; more are slower.\n"
            "- Points and the end at a miss are dreamed too: a second network has learned them.\n"
            "- After a catch the sky stays empty: where the next ball starts is a matter of chance, and a model that has seen so little play paints none. Reset.\n\n"
            "In a window, beside the real game and with an agent that was trained in dreams: `rlpapers play diamond` ([how](/diamond/08_play.ipynb)).\n")

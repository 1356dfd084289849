"Headless Chromium and a server of a folder, for tests of pages."
import contextlib, functools, http.server, shutil, threading
from urllib.parse import urlparse

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --disable-dev-shm-usage").split()

@contextlib.contextmanager
def served(folder):
    "The address of a folder that is served on this machine."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()

@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "A page of headless Chromium that records what goes wrong in `page.faults`."
    if CHROMIUM is None: pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(tmp_path_factory.mktemp("profile"), executable_path=CHROMIUM, args=FLAGS)
        page = context.new_page()
        page.faults = []
        page.on("console", lambda m: page.faults.append(f"console: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda e: page.faults.append(f"script: {e}"))
        page.on("requestfailed", lambda r: None if r.is_navigation_request() or r.failure == "net::ERR_ABORTED" else page.faults.append(f"failed: {r.url} {r.failure}"))   # goto raises for pages; a prefetch is aborted by leaving
        page.on("request", lambda r: None if urlparse(r.url).hostname in ("127.0.0.1", None) else page.faults.append(f"left the machine: {r.url}"))
        yield page
        context.close()

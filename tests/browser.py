"""A real browser, and notebook servers on loopback for it: the ground on which views are tested.

`page` is a fresh page that notes what goes wrong; `assert_quiet(page)` tells. `lab` is a server of JupyterLab 4 and
Notebook 7; `open_notebook(page, lab, cells)` runs cells in it. `open_marimo(page, cells)` runs them as a marimo app.
"""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from nbformat.sign import NotebookNotary
from nbformat.v4 import new_code_cell, new_notebook
from payloads import SINK
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

ROOT = Path(__file__).parent.parent
SCREENSHOTS = ROOT / "demo" / "screenshots"
CHROMIUM = [
    "--no-sandbox",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
PATHS = {"lab": "lab/tree", "notebook": "notebooks"}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}

# Errors of the front ends themselves, told by their text and by the file that raised them.
NOT_OURS = [
    # Notebook 7.6 asks for a menu of the file browser before it has loaded, and lacks a command of it.
    r"Cannot read properties of undefined \(reading 'schema'\)\n +at .*/static/notebook/notebook_core\.",
    r"Command 'filebrowser:open-path' not registered\.\n +at .*/static/notebook/notebook_core\.",
]

# Assigning PWNED is noted at once: a later navigation or a closed frame does not hide it.
ALARM = """let value
Object.defineProperty(window, "PWNED", {get: () => value, set(v) { value = v; console.error("PWNED") }})"""


@dataclass
class Heard:
    """What a context did that it should not have done: console and page errors, dialogs, and requests that stray."""

    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)

    def listen(self, context: BrowserContext) -> None:
        context.on("console", self.console)
        context.on("weberror", lambda event: self.error(event.error.stack or str(event.error)))
        context.on("dialog", self.dialog)
        context.on("request", lambda request: self.request(request.url))
        context.on(
            "page", lambda page: page.on("websocket", lambda socket: self.request(socket.url))
        )

    def console(self, message) -> None:
        if message.type == "error":
            self.error(f"{message.text}\n    at {message.location['url']}")

    def error(self, text: str) -> None:
        if not any(re.search(pattern, text) for pattern in NOT_OURS):
            self.errors.append(text)

    def dialog(self, dialog) -> None:
        if dialog.type != "beforeunload":  # the front end's question when a test leaves a notebook
            self.dialogs.append(f"{dialog.type}: {dialog.message}")
        dialog.accept()

    def request(self, url: str) -> None:
        """Files and loopback are this machine, but for the port that hostile texts ask."""
        parts = urlsplit(url)
        here = parts.scheme in ("data", "blob", "about", "file") or parts.hostname in (
            "127.0.0.1",
            "localhost",
        )
        if not here or url.startswith(SINK):
            self.strays.append(url)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without name server and proxy. For one module: it keeps an asyncio loop in this thread."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium) -> Iterator[Page]:
    """A page in a context of its own, 1280 x 900, that notes in `page.heard` what goes wrong."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(ALARM)
    heard = Heard()
    heard.listen(context)
    page = context.new_page()
    page.heard = heard
    yield page
    context.close()


def assert_quiet(page: Page) -> None:
    """No error, dialog or payload has come up in the page's context, and no request has left this machine."""
    page.wait_for_timeout(300)  # what was started last has to come to light
    assert not page.heard.errors
    assert not page.heard.dialogs
    assert not page.heard.strays
    assert not [frame.url for frame in page.frames if frame.evaluate("window.PWNED")]


def screenshot(page: Page, name: str) -> Path:
    """Keeps a picture of the page with the run, as demo/screenshots/NAME.png."""
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    return SCREENSHOTS / f"{name}.png"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def serving(command: list[str], ready: str, folder: Path, env: dict[str, str]) -> Iterator[None]:
    """A server for as long as the block lasts, once `ready` answers; its output is in folder/server.log."""
    with (folder / "server.log").open("w") as log:
        env = os.environ | {"PYTHONPATH": str(ROOT)} | env
        server = subprocess.Popen(
            command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + 60
        while not answers(ready):
            if server.poll() is not None or time.monotonic() > end:
                pytest.fail(f"{' '.join(command)}\n{(folder / 'server.log').read_text()}")
            time.sleep(0.2)
        yield
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@dataclass
class Lab:
    """A running server of JupyterLab 4 and Notebook 7: address, token, where notebooks, data and settings lie."""

    url: str
    token: str
    work: Path
    data: Path
    settings: Path

    def set_theme(self, theme: str) -> None:
        """For pages opened from now on: "light" or "dark"."""
        path = self.settings / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"theme": THEMES[theme]}))

    def stop_kernels(self) -> None:
        """Each of them may hold a model."""
        for session in self.api("GET", "sessions"):
            self.api("DELETE", f"sessions/{session['id']}")

    def api(self, method: str, path: str):
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/api/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or "null")


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[Lab]:
    """A server whose settings, workspaces, data and work folder are its own; it asks for no news and no updates."""
    folder = tmp_path_factory.mktemp("lab")
    names = ("work", "config", "data", "runtime", "settings", "workspaces", "ipython")
    work, config, data, runtime, settings, workspaces, ipython = (folder / name for name in names)
    for path in (work, data, config / "labconfig"):
        path.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    overrides = {"@jupyterlab/apputils-extension:notification": quiet}
    (config / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(overrides))
    port, token = free_port(), secrets.token_hex()
    options = {
        "ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "ServerApp.port_retries": 0, "ServerApp.root_dir": work,
        "ServerApp.open_browser": False, "ServerApp.allow_root": True, "IdentityProvider.token": token,
        "LabApp.expose_app_in_browser": True, "JupyterNotebookApp.expose_app_in_browser": True,
        "LabApp.news_url": "", "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    env = {
        "JUPYTER_CONFIG_DIR": config, "JUPYTER_DATA_DIR": data, "JUPYTER_RUNTIME_DIR": runtime, "IPYTHONDIR": ipython,
        "JUPYTERLAB_SETTINGS_DIR": settings, "JUPYTERLAB_WORKSPACES_DIR": workspaces,
    }  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with serving(command, f"{url}/api", folder, {name: str(path) for name, path in env.items()}):
        yield Lab(url, token, work, data, settings)


# The server puts its application into the page: what a user would click is asked of it by name.
OPENED = "window.jupyterapp?.shell.currentWidget?.content?.model?.cells?.length > 0"
RUN_ALL = """async () => {
  const panel = jupyterapp.shell.currentWidget
  await panel.sessionContext.ready
  await panel.sessionContext.session.kernel.info
  await jupyterapp.commands.execute("notebook:run-all-cells")
  const outputs = [...panel.content.model.cells].flatMap(cell => cell.outputs?.toJSON() ?? [])
  return outputs.filter(output => output.output_type === "error").map(output => output.traceback.join("\\n"))
}"""


def open_notebook(
    page: Page,
    lab: Lab,
    cells: list,
    app: str = "lab",
    theme: str = "light",
    run: bool = True,
    trusted: bool = True,
) -> Page:
    """Opens a notebook of these cells and, unless `run=False`, runs them all to the end; an error in a cell fails.

    cells    sources, or nbformat's code cells with their outputs
    app      "lab": JupyterLab 4; "notebook": Notebook 7
    trusted  whether the server trusts the outputs that the cells come with

    One notebook is open at a time: kernels of earlier ones are stopped.
    """
    lab.stop_kernels()
    lab.set_theme(theme)
    notebook = new_notebook(
        cells=[new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    )
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    if trusted:
        with NotebookNotary(data_dir=str(lab.data)) as notary:
            notary.sign(notebook)
    name = f"{secrets.token_hex(4)}.ipynb"
    nbformat.write(notebook, lab.work / name)
    page.goto(
        f"{lab.url}/{PATHS[app]}/{name}?token={lab.token}" + ("&reset" if app == "lab" else "")
    )
    page.wait_for_function(OPENED, timeout=60_000)
    if run and (errors := page.evaluate(RUN_ALL)):
        pytest.fail("\n".join(errors))
    return page


@pytest.fixture
def open_marimo(tmp_path) -> Iterator[Callable[[Page, list[str]], None]]:
    """`open_marimo(page, cells)` opens a marimo app of these cells, whose last expressions are their outputs."""
    with ExitStack() as servers:

        def start(page: Page, cells: list[str]) -> None:
            functions = [
                f"@app.cell\ndef _():\n{textwrap.indent(cell, '    ')}\n" for cell in cells
            ]
            (tmp_path / "app.py").write_text(
                "\n".join(["import marimo\napp = marimo.App()\n", *functions])
            )
            url = f"http://127.0.0.1:{(port := free_port())}"
            command = [
                sys.executable,
                "-m",
                "marimo",
                "run",
                "app.py",
                "--headless",
                "--no-token",
                f"--port={port}",
            ]
            homes = {
                name: str(tmp_path)
                for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME")
            }
            servers.enter_context(serving(command, f"{url}/health", tmp_path, homes))
            page.goto(url)

        yield start

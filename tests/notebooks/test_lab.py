"""The chapters in a real JupyterLab, driven by a real browser: what ``make lab`` gives, on a checkout of its own."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import nbformat
import pytest
import yaml

from tests.conftest import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.notebook,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine, so JupyterLab was not tried"),
    pytest.mark.skipif(not (ROOT / ".venv/bin/jupyter").exists(), reason="no .venv, which make lab starts from"),
]
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
CHAPTERS = ("01_data_exploration", "02_ssflpp_preprocessing", "03_reduction_statistics", "06_ablations")


def git(folder, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What git has of the project, its parameters as small as the ci profile's, with the filter of ``make env``."""
    folder = tmp_path_factory.mktemp("lab") / "checkout"
    for name in ("notebooks", "e2d_lib", "results/published"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("Makefile", "README.md", ".gitattributes", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
    profile = yaml.safe_load((ROOT / "notebooks" / "profiles" / "ci.yaml").read_text())
    profile["01_data_exploration"]["n_scans"] = 17
    profile["06_ablations"] |= {"epochs": 1, "redraws": 1, "sampler_redraws": 2}
    for path in (folder / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        for name, value in (profile.get(path.stem, {}) | {"run_dir": "results/lab"}).items():
            cell.source = re.sub(
                rf"(?m)^({name}: [^=]+ = ).*?(  #)", lambda m, v=value: f"{m[1]}{v!r}{m[2]}", cell.source
            )
        nbformat.write(notebook, path)
    git(folder, "init", "-q")
    subprocess.run(["make", "filter"], cwd=folder, check=True)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all")
    return folder


@pytest.fixture(scope="module")
def server(checkout):
    """``make lab``, with settings of its own; the address."""
    base = checkout.parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kernel = base / "ipython" / "profile_default" / "ipython_kernel_config.py"  # in place of the environment's own
    settings = base / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    for path, text in (
        (kernel, re.search(r"KERNEL := (.*)", (checkout / "Makefile").read_text())[1]),
        (settings, json.dumps({"windowingMode": "none"})),  # cells out of sight are in the page too
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    environment = {k: v for k, v in os.environ.items() if k not in ("E2D_PROGRESS", "MPLBACKEND")} | {
        "PYTHONPATH": str(checkout), "JUPYTER_TOKEN": "t", "BROWSER": "true", "IPYTHONDIR": str(base / "ipython"),
        "JUPYTERLAB_SETTINGS_DIR": str(base / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(base / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(base), "JUPYTER_DATA_DIR": str(base), "JUPYTER_RUNTIME_DIR": str(base / "runtime"),
    }  # fmt: skip
    with (base / "log").open("w") as log:
        command = ["make", "-o", ".venv/.ready", "lab", f"PORT={port}"]
        process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/api/status?token=t").close()
                break
            except urllib.error.URLError:
                assert process.poll() is None, (base / "log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@pytest.fixture(scope="module")
def page(server):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(120_000)
        look = "if (document.querySelector('.widget-hprogress')) window.sawBar = true"
        page.add_init_script(
            f"new MutationObserver(() => {{ {look} }}).observe(document, {{childList: true, subtree: true}})"
        )
        yield page
        browser.close()


def wait(page, condition, seconds: float = 600) -> None:
    for _ in range(int(seconds * 5)):
        if condition():
            return
        page.wait_for_timeout(200)
    pytest.fail("waited in vain: " + page.locator(PANEL).inner_text()[-2000:])


def open_chapter(page, server: str, chapter: str) -> None:
    page.goto(f"{server}/lab/tree/notebooks/{chapter}.ipynb?token=t&reset")
    name, idle = f"{PANEL} .jp-Toolbar-kernelName", f"{PANEL} .jp-Notebook-ExecutionIndicator[data-status=idle]"
    wait(page, lambda: page.locator(name).all_inner_texts() == ["Python 3 (ipykernel)"] and page.locator(idle).count())


def menu(page, name: str, item: str) -> None:
    page.click(f".lm-MenuBar-itemLabel:text-is('{name}')")
    page.click(f".lm-Menu-itemLabel:text-is('{item}')")


def save(page, checkout, clean: bool = True) -> None:
    page.keyboard.press("Control+s")
    wait(page, lambda: (git(checkout, "status", "--short") == "") is clean, 60)


def screenshot(page, name: str) -> None:
    """Kept where E2D_SCREENSHOTS names a folder, to look at."""
    if folder := os.environ.get("E2D_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png")


def test_the_study_is_run_changed_and_looked_at_in_jupyterlab(page, server, checkout):
    folders = page_listing(page, server)
    assert {"notebooks", "results", "README.md"} <= folders
    open_chapter(page, server, "03_reduction_statistics")
    cells = page.locator(f"{PANEL} .jp-CodeCell")
    cells.nth(5).locator(".cm-content").click()
    page.keyboard.press("Control+Enter")  # from the middle, with a fresh kernel
    wait(page, lambda: "run the cell that makes it" in cells.nth(5).inner_text())
    assert "Traceback" not in cells.nth(5).inner_text()
    screenshot(page, "from the middle")

    for chapter in CHAPTERS:
        open_chapter(page, server, chapter)
        menu(page, "Run", "Run All Cells")
        done = checkout / "results" / "lab" / chapter / "done.json"
        wait(page, done.exists)
        record = json.loads(done.read_text())
        assert record["status"] == "done" and record["by_hand"] and record["key"]
        assert page.locator(f"{PANEL} [data-mime-type='application/vnd.jupyter.error']").count() == 0
        if chapter in ("01_data_exploration", "06_ablations"):
            assert page.evaluate("window.sawBar === true"), chapter  # they go when they are done
        if chapter == "02_ssflpp_preprocessing":
            look_at_slices(page)
        screenshot(page, chapter)
        save(page, checkout)

    assert not (checkout / "notebooks" / "results").exists()
    change_a_parameter(page, server, checkout)


def page_listing(page, server: str) -> set[str]:
    page.goto(f"{server}/lab/tree/notebooks?token=t&reset")
    page.wait_for_selector(".jp-DirListing-itemText:has-text('01_data')")
    page.click(".jp-BreadCrumbs-home")
    page.wait_for_selector(".jp-DirListing-itemText:has-text('README')")
    return set(page.locator(".jp-DirListing-itemText").all_inner_texts())


def look_at_slices(page) -> None:
    canvas = page.locator(f"{PANEL} .jupyter-matplotlib-canvas-container canvas").first
    canvas.scroll_into_view_if_needed()
    before = canvas.screenshot()
    readout = page.locator(f"{PANEL} .widget-readout").first
    first = readout.inner_text()
    place = canvas.bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    tools = page.locator(f"{PANEL} .jupyter-matplotlib-toolbar").first.bounding_box()
    assert tools["x"] >= place["x"] + place["width"]  # the slice is not behind them
    page.mouse.wheel(0, -100)
    wait(page, lambda: readout.inner_text() != first, 60)
    wait(page, lambda: canvas.screenshot() != before, 60)
    name = page.locator(f"{PANEL} .widget-text input").first
    before = canvas.screenshot()
    name.fill("valid/positive/ct_scan_1")
    name.press("Enter")
    wait(page, lambda: canvas.screenshot() != before, 60)
    screenshot(page, "viewer")


def change_a_parameter(page, server: str, checkout) -> None:
    """A line of the parameters' cell edited by hand, and put back."""
    path = checkout / "results" / "lab" / "03_reduction_statistics" / "done.json"
    open_chapter(page, server, "03_reduction_statistics")

    def edit(old: str, new: str) -> None:
        line = page.locator(f"{PANEL} .jp-CodeCell .cm-line:has-text('n_boot: int = {old}')").first
        line.click()
        page.keyboard.press("Home")
        page.keyboard.press("Shift+End")
        page.keyboard.insert_text(f"n_boot: int = {new}  # bootstrap resamples of scans")

    edit("200", "50")
    menu(page, "Run", "Run All Cells")
    wait(page, lambda: path.exists() and json.loads(path.read_text())["parameters"]["n_boot"] == 50)
    save(page, checkout, clean=False)
    changed = [line for line in git(checkout, "diff", "-U0").splitlines() if re.match(r"[+-] ", line)]
    assert len(changed) == 2 and all("n_boot" in line for line in changed)
    edit("50", "200")
    save(page, checkout)

"""The pages of methods in the site: formulas, pictures and curves, on a phone, in the dark, without a network."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
METHODS = sorted(page.stem for page in (ROOT / "docs" / "pages" / "methods").glob("*.md"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that prints nothing, and has no icon for a page that names none: browsers ask for one all the same."""

    def do_GET(self) -> None:
        if self.path == "/favicon.ico":
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the built site: search needs a server."""
    for name in ("mkdocs", "math_core"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "-f",
        "docs/mkdocs.yml",
        "-d",
        str(folder),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def loaded(browser: Any) -> list[dict[str, Any]]:
    """The images of a page's figures that are shown, once all of them are there."""
    script = """
        const done = arguments[0], all = [...document.querySelectorAll(".figures img")];
        all.forEach((one) => { one.loading = "eager"; });
        Promise.all(all.map((one) => one.decode().catch(() => null))).then(() => done(
            all.filter((one) => getComputedStyle(one).display !== "none")
               .map((one) => ({src: one.src, width: one.naturalWidth, alt: one.alt}))));
    """
    found: list[dict[str, Any]] = browser.driver.execute_async_script(script)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_shown_without_a_network(browser: Any, site: str, method: str) -> None:
    browser.visit(f"{site}methods/{method}/")
    images = loaded(browser)
    assert images
    assert all(image["width"] and image["alt"] for image in images)
    assert browser.run("return document.querySelectorAll('div.arithmatex > math[display=block]').length")
    heights = "return [...document.querySelectorAll('math')].map((one) => one.getBoundingClientRect().height)"
    assert min(browser.run(heights)) > 5
    assert not [text for text in browser.texts("article p, article .arithmatex") if "\\" in text]
    assert browser.complaints() == []
    assert {request for request in browser.requests() if not request.startswith(site)} == set()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_formulas_and_curves_have_the_colours_of_the_palette(browser: Any, site: str, dark: bool) -> None:
    browser.visit(f"{site}methods/mtt/", dark=dark)
    colour = "return getComputedStyle(document.querySelector(arguments[0])).color"
    assert browser.run(colour, "article math mi") == browser.run(colour, "article p")
    curves = [image["src"].partition("#only-")[2] for image in loaded(browser) if ".svg" in image["src"]]
    assert curves == ["dark" if dark else "light"] * 2


@pytest.mark.parametrize("method", METHODS)
def test_a_phone_shows_all_of_a_method_below_each_other(browser: Any, site: str, method: str) -> None:
    browser.visit(f"{site}methods/{method}/", width=390)
    loaded(browser)
    assert browser.run("return document.documentElement.scrollWidth") == 390
    wide = "return [...document.querySelectorAll('.figures img')].filter((one) => one.clientWidth > 390).length"
    assert browser.run(wide) == 0


def test_a_link_of_a_method_leads_to_its_rows(browser: Any, site: str) -> None:
    browser.visit(f"{site}methods/dm/")
    for address in browser.run("return [...document.querySelectorAll('.links a')].map((one) => one.href)"):
        browser.visit(address)
        assert browser.complaints() == []
        if "board.html" in address:
            # Beside a name stand its marks: †, ✓, …
            names = (re.match(r"[\w.-]+", name) for name in browser.texts("tr.head .name"))
            assert {name[0] if name else "" for name in names} == {"dm"}


def test_the_front_page_shows_its_picture_whole_on_a_phone(browser: Any, site: str) -> None:
    browser.visit(site, width=390)
    picture = "document.querySelector('article pre code')"
    assert browser.run(f"return {picture}.textContent").startswith("real images")
    assert browser.run(f"return {picture}.scrollWidth - {picture}.clientWidth") <= 0

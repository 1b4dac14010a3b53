"""A headless Chromium for the tests of the page, and the page of the committed records."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ddbench.leaderboard.boards import committed_page

LEADERBOARDS = Path(__file__).resolve().parents[2] / "leaderboards"


@pytest.fixture(scope="session")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the committed records."""
    path = tmp_path_factory.mktemp("page") / "board.html"
    path.write_text(committed_page(LEADERBOARDS), encoding="utf-8")
    return path


class Browser:
    """What tests do with a page, and what they ask of it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, address: str = "", *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """The page, anew, with an address after its #, in a window of so many pixels."""
        self.visit(page.as_uri() + (f"#{address}" if address else ""), width=width, height=height, dark=dark)

    def visit(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """What lies at an address, anew, in a window of so many pixels."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get("about:blank")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(url)
        # Where the machine is busy, the driver has been seen to go on before the page was there.
        from selenium.webdriver.support.ui import WebDriverWait

        there = "return document.readyState === 'complete' && document.URL.split('#')[0] === arguments[0]"
        WebDriverWait(self.driver, 60).until(lambda _: self.run(there, url.partition("#")[0]))

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def click(self, selector: str) -> None:
        """Click the first element of a selector."""
        self.run("document.querySelector(arguments[0]).click()", selector)

    def choose(self, name: str, value: str) -> None:
        """Make a choice of the form, as a person does: the event follows the value."""
        self.run(
            "const field = document.forms.choices.elements[arguments[0]]; field.value = arguments[1];"
            "(field.length && !field.options ? [...field].find((one) => one.checked) : field)"
            ".dispatchEvent(new Event('input', {bubbles: true}))",
            name,
            value,
        )

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements of a selector."""
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector
        )
        return found

    def values(self, column: str, rows: str = "tr.head") -> list[str | None]:
        """What the rows of the table are sorted by in a column, from top to bottom; None where it is not known."""
        found: list[str | None] = self.run(
            "return [...document.querySelectorAll(`#board ${arguments[1]} [data-column=${arguments[0]}]`)]"
            ".map((cell) => cell.dataset.value ?? null)",
            column,
            rows,
        )
        return found

    @property
    def address(self) -> str:
        """What stands after the #."""
        text: str = self.run("return location.hash.slice(1)")
        return text

    def complaints(self) -> list[str]:
        """What the console said since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """What was asked for since the page was opened, the page itself included; what is inside a page is not."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url.partition("#")[0] for url in sent if not url.startswith(("data:", "about:"))]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[dev]'")
    from selenium.webdriver.chrome.service import Service

    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if not all(programs):
        pytest.skip("there is no Chromium with its driver: tests/browser/install.sh installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    yield Browser(driver)
    driver.quit()

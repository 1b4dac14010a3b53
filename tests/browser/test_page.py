"""The page as a person meets it: sorted, filtered, opened, on a phone, in the dark, without a network."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest

from ddbench.leaderboard.boards import local_board
from ddbench.leaderboard.page.render import render

pytestmark = pytest.mark.browser

CIFAR = "dataset=CIFAR-10&ipc=10&protocol=dsa%401&judge=convnet-d3"
SORTED = ("method", "accuracy", "sets", "random", "size", "seen", "time", "published")


def said(address: str) -> dict[str, str]:
    """The parts of an address."""
    return {name: values[0] for name, values in parse_qs(address).items()}


def document_of(page: Path) -> dict[str, Any]:
    """The document inside a page."""
    text = page.read_text(encoding="utf-8")
    start = text.index('id="document">') + len('id="document">')
    found: dict[str, Any] = json.loads(text[start : text.index("</script>", start)])
    return found


def rows_of(found: dict[str, Any], ipc: int, judge: str = "", name: str = "") -> list[dict[str, Any]]:
    """The rows of CIFAR-10 under dsa@1."""
    wanted = ("CIFAR-10", "dsa@1", ipc)
    places = [k for k, t in enumerate(found["tables"]) if (t["data_title"], t["protocol"], t["ipc"]) == wanted]
    rows = [row for row in found["rows"] if row["table"] in places]
    return [row for row in rows if judge in ("", row["judge"]) and name in ("", row["id"])]


@pytest.mark.parametrize("address", ["", CIFAR, "dataset=nobody&ipc=x&sort=-nothing&open=gone"])
def test_nothing_is_asked_of_a_network_and_the_console_is_quiet(browser: Any, board: Path, address: str) -> None:
    browser.open(board, address)
    browser.click(".sort[data-key=time]")
    browser.click("tr.head .opener")
    browser.choose("q", "m")
    assert browser.texts("tr.head .name")
    assert browser.complaints() == []
    assert browser.requests() == [board.as_uri()]


@pytest.mark.parametrize("column", SORTED)
@pytest.mark.parametrize("ipc", ["1", "10", "50"])
def test_what_stands_higher_is_not_lower(browser: Any, board: Path, column: str, ipc: str) -> None:
    browser.open(board, CIFAR.replace("ipc=10", f"ipc={ipc}"))
    seen = set()
    for _ in range(2):
        browser.click(f".sort[data-key={column}]")
        found = browser.values(column)
        known = [value for value in found if value is not None]
        assert found[: len(known)] == known, "what is not known stands last"
        numbers: list[Any] = known if column == "method" else [float(value) for value in known]
        direction = said(browser.address)["sort"].startswith("-")
        assert numbers == sorted(numbers, reverse=direction)
        assert len(set(numbers)) > 1 or (column, ipc) == ("seen", "50")  # students see as many images of every set
        headers = browser.run("return [...document.querySelectorAll('#board th[aria-sort]')].map((th) => th.ariaSort)")
        assert headers == ["descending" if direction else "ascending"]
        seen.add(direction)
    assert seen == {True, False}


def test_every_column_that_says_that_it_sorts_is_tested(browser: Any, board: Path) -> None:
    browser.open(board)
    keys = browser.run("return [...document.querySelectorAll('.sort')].map((button) => button.dataset.key)")
    assert tuple(keys) == SORTED


def test_letters_begin_at_the_top_under_every_protocol_and_judge(browser: Any, board: Path) -> None:
    found = document_of(board)
    for place, table in enumerate(found["tables"]):
        if not table["ipc"]:
            continue
        judge = table["judges"][-1]
        wanted = {name: table[name] for name in ("track", "protocol", "ipc")}
        wanted |= {"dataset": table["data_title"], "judge": judge}
        browser.open(board, urlencode(wanted))
        means = [float(value) for value in browser.values("accuracy") if value is not None]
        assert means == sorted(means, reverse=True)
        assert means, (wanted, browser.complaints())
        rows = {row["id"]: row for row in found["rows"] if (row["table"], row["judge"]) == (place, judge)}
        shown = browser.run("return [...document.querySelectorAll('tr.head')].map((row) => row.dataset.row)")
        letters = "".join(rows[name]["alike"] for name in shown)
        assert list(dict.fromkeys(letters)) == sorted(set(letters))


def test_a_table_has_one_track_and_says_what_it_learned_from(browser: Any, board: Path) -> None:
    found = document_of(board)
    browser.open(board, CIFAR)
    for track, recipes in (("soft", {"krr@1", "ld@1", "dsa-soft@1"}), ("hard", {"dsa@1", "mtt@1"})):
        browser.choose("track", track)
        offered = set(browser.run("return [...document.querySelector('[name=protocol]').options].map((o) => o.value)"))
        assert recipes <= offered
        here = [table for table in found["tables"] if (table["ipc"], table["data_title"]) == (10, "CIFAR-10")]
        tracks = {(table["protocol"], table["track"]) for table in here}
        assert {(recipe, track) for recipe in offered} == {pair for pair in tracks if pair[1] == track}
        assert said(browser.address)["track"] == track
    # An address without a track means that of its protocol.
    browser.open(board, CIFAR.replace("dsa%401", "krr%401"))
    assert said(browser.address)["track"] == "soft"
    assert browser.texts("#controls li")[0].startswith("Missing controls: random real images")
    assert browser.complaints() == []


def test_choices_search_and_address_agree(browser: Any, board: Path) -> None:
    browser.open(board)
    browser.choose("dataset", "CIFAR-10, JPEG copy")
    browser.choose("ipc", "1")
    assert browser.texts("#view") == ["CIFAR-10, JPEG copy, 1 image per class"]
    browser.choose("q", "mtt")
    assert [text.strip("*†✓§") for text in browser.texts("tr.head .name")] == ["mtt"]
    now = said(browser.address)
    assert (now["dataset"], now["ipc"], now["q"]) == ("CIFAR-10, JPEG copy", "1", "mtt")
    browser.choose("q", "no such method")
    assert browser.texts("tr.head") == []
    assert browser.texts("#nothing") == ["No method fits this search."]
    browser.choose("q", "")
    browser.choose("labels", "regression")
    shown = {text.strip("*†✓§") for text in browser.texts("tr.head .name")}
    kinds = {(row["method"], row["labels"]) for row in document_of(board)["rows"]}
    assert shown
    assert all((method, "regression") in kinds for method in shown)


def test_an_address_brings_back_what_was_seen(browser: Any, board: Path) -> None:
    browser.open(board, CIFAR)
    browser.choose("judge", "vgg11")
    browser.click(".sort[data-key=size]")
    browser.click("[data-row^=dsa-] .opener")
    address, seen = browser.address, browser.texts("main")
    assert said(address)["judge"] == "vgg11"
    assert said(address)["open"].startswith("dsa-")
    browser.open(board, address)
    assert browser.texts("main") == seen
    browser.run("location.hash = arguments[0]", CIFAR)
    browser.driver.execute_async_script("setTimeout(arguments[0], 50)")
    assert browser.texts("#data")[0].startswith("Protocol dsa@1, learned from classes, judged by convnet-d3")
    assert browser.texts(".details") == []


def test_a_row_opens_to_all_that_is_known(browser: Any, board: Path) -> None:
    browser.open(board, CIFAR)
    browser.click("[data-row^=dm-] .opener")
    found = document_of(board)
    (row,) = rows_of(found, 10, "convnet-d3", said(browser.address)["open"])
    run = found["runs"][row["runs"][0]["id"]]
    assert browser.run("return document.querySelector('[data-row^=dm-] .opener').ariaExpanded") == "true"
    text = browser.texts(".details")[0]
    option, value, source = run["options"][0]
    parts = [run["sha256"], run["reproduce"], run["commands"][0], run["commit"][:12], "arXiv 2110.04181", source]
    parts.append(f"{option} = {value}")
    for part in [*parts, *(f"seed {found['runs'][each['id']]['seed']}" for each in row["runs"])]:
        assert part in text
    dots = browser.run("return document.querySelectorAll('.strip .dot').length")
    assert dots == sum(len(each["accuracy"]) for each in row["runs"])
    browser.click(".details input[name=set]:not(:checked)")
    other = found["runs"][said(browser.address)["set"]]
    assert other["sha256"] in browser.texts(".details")[0]
    browser.click("[data-row^=dm-] .opener")
    assert browser.texts(".details") == []


def test_checks_are_told_in_an_opened_row_and_one_that_differs_under_the_table(
    browser: Any, board: Path, tmp_path: Path
) -> None:
    browser.open(board, CIFAR)
    browser.click("[data-row^=dsa-] .opener")
    (row,) = rows_of(document_of(board), 10, "convnet-d3", said(browser.address)["open"])
    (lines,) = [run["checks"] for run in row["runs"] if run["checks"]]
    for run in row["runs"]:
        browser.open(board, f"{CIFAR}&open={row['id']}&set={run['id']}")
        text = browser.texts(".details")[0]
        assert ("Trained again" in text) == bool(run["checks"])
        assert all(line in text for line in run["checks"])
    assert lines
    assert not any("a check differs" in text for text in browser.texts("#marks li"))
    found = document_of(board)
    rows_of(found, 10, "convnet-d3", row["id"])[0].update(differs="run <b>5</b>, 1 student: …")
    path = tmp_path / "differs.html"
    path.write_text(render(found, "title"), encoding="utf-8")
    browser.open(path, CIFAR)
    told = [text for text in browser.texts("#marks li") if "a check differs" in text]
    assert [text.endswith("so it is not verified: run <b>5</b>, 1 student: …") for text in told] == [True]
    assert told[0].startswith(row["name"])
    assert browser.complaints() == []


def test_other_settings_fold_out_under_their_method(browser: Any, board: Path) -> None:
    browser.open(board, CIFAR.replace("ipc=10", "ipc=50"))
    assert browser.texts("tr.folded") == []
    browser.click("[data-row^=kip-] .fold")
    kip = [row for row in rows_of(document_of(board), 50, "convnet-d3") if row["method"] == "kip"]
    assert len(browser.texts("tr.folded")) == len(kip) - 1 > 1
    methods = browser.run("return [...document.querySelectorAll('tr.folded')].map((tr) => tr.dataset.method)")
    assert set(methods) == {"kip"}
    means = [float(value) for value in browser.values("accuracy", "tr.folded")]
    assert means == sorted(means, reverse=True)
    browser.click("[data-row^=kip-] .fold")
    assert browser.texts("tr.folded") == []


def test_mosaics_of_real_images_stand_apart_from_single_ones(browser: Any, board: Path) -> None:
    browser.open(board, "dataset=cifar10&ipc=10&protocol=dance@2")
    names = browser.run("return [...document.querySelectorAll('tr.head .name')].map((one) => one.textContent)")
    assert {"random§", "random mosaics§"} <= set(names)


def test_an_address_unfolds_what_it_opens(browser: Any, board: Path) -> None:
    address = CIFAR.replace("ipc=10", "ipc=50")
    rows = rows_of(document_of(board), 50, "convnet-d3")
    name = next(row["id"] for row in rows if row["method"] == "kip" and row["alike"] is None)
    browser.open(board, f"{address}&open={name}")
    assert len(browser.texts(f"tr.folded[data-row={name}]")) == len(browser.texts(".details")) == 1
    browser.click("[data-row^=kip-].head .fold")
    assert browser.texts("tr.folded") == browser.texts(".details") == []
    assert "open" not in said(browser.address)


def test_keys_alone_sort_and_open(browser: Any, board: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(board, CIFAR)
    browser.run("document.querySelector('.sort[data-key=size]').focus()")
    for _ in range(2):  # the header is drawn anew, and the focus stays on it
        browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert said(browser.address)["sort"] == "-size"
    browser.run("document.querySelector('tr.head .opener').focus()")
    browser.driver.switch_to.active_element.send_keys(Keys.SPACE)
    assert len(browser.texts(".details")) == 1
    assert browser.run("return document.activeElement.className") == "opener"


@pytest.mark.parametrize("ipc", ["1", "10", "50"])
def test_a_desk_shows_every_column(browser: Any, board: Path, ipc: str) -> None:
    browser.open(board, CIFAR.replace("ipc=10", f"ipc={ipc}"), width=1280)
    place = "document.querySelector('#board').parentElement"
    assert browser.run(f"return {place}.scrollWidth - {place}.clientWidth") <= 0


@pytest.mark.parametrize("opened", [False, True])
def test_a_phone_scrolls_the_table_and_not_the_page(browser: Any, board: Path, *, opened: bool) -> None:
    browser.open(board, CIFAR, width=390, height=844)
    if opened:
        browser.click("tr.head .opener")
    assert len(browser.texts(".details")) == opened
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    scroll = "document.querySelector('#board').parentElement"
    assert browser.run(f"return {scroll}.scrollWidth > {scroll}.clientWidth")
    left = "return document.querySelector('tr.head th').getBoundingClientRect().left"
    before = browser.run(left)
    browser.run(f"{scroll}.scrollLeft = 300")
    assert browser.run(f"return {scroll}.scrollLeft") == 300
    assert browser.run(left) == before
    rights = "[...document.querySelectorAll('#pictures svg')].map((one) => one.getBoundingClientRect().right)"
    assert max(browser.run(f"return {rights}")) <= 390
    assert browser.complaints() == []


def test_the_dark_has_light_letters(browser: Any, board: Path) -> None:
    def colours() -> tuple[int, int]:
        style = "const style = getComputedStyle(document.documentElement); return [style.color, style.backgroundColor]"
        ink, paper = (sum(map(int, text[4:-1].split(","))) for text in browser.run(style))
        return ink, paper

    browser.open(board)
    ink, paper = colours()
    assert ink < 200 < 600 < paper
    browser.open(board, dark=True)
    ink, paper = colours()
    assert paper < 200 < 600 < ink


def test_pictures_show_every_row_and_a_front_that_rises(browser: Any, board: Path) -> None:
    browser.open(board, CIFAR)
    found = document_of(board)
    shown = [row for ipc in (1, 10, 50) for row in rows_of(found, ipc, "convnet-d3")]
    figures = "document.querySelectorAll('#pictures figure')"
    assert browser.run(f"return {figures}.length") == 4
    assert browser.run(f"return {figures}[0].querySelectorAll('.dot').length") == len(shown)
    for picture in (0, 1):
        front = browser.run(
            f"return [...{figures}[{picture}].querySelectorAll('.dot.best')].map((dot) => [+dot.getAttribute('cx'), "
            "+dot.getAttribute('cy')]).sort((a, b) => a[0] - b[0])"
        )
        others = browser.run(
            f"return [...{figures}[{picture}].querySelectorAll('.dot:not(.best)')].map((dot) => "
            "[+dot.getAttribute('cx'), +dot.getAttribute('cy')])"
        )
        assert [y for _, y in front] == sorted((y for _, y in front), reverse=True)
        assert all(any(x <= cx and y <= cy for x, y in front) for cx, cy in others)
    cells = browser.run(f"return {figures}[3].querySelectorAll('td.num').length")
    assert cells == sum(row["alike"] is not None and row["mean"] is not None for row in rows_of(found, 10))


def test_a_picture_of_one_point_has_its_axes(browser: Any, board: Path) -> None:
    browser.open(board, "dataset=CIFAR-10&ipc=10&protocol=hard-truths-sl%401")
    figures = "[...document.querySelectorAll('#pictures figure')].slice(0, 2)"
    dots = browser.run(
        f"return {figures}.flatMap((one) => [...one.querySelectorAll('.dot')].map((dot) => +dot.getAttribute('cy')))"
    )
    assert len(dots) == 2
    for marks in browser.run(
        f"return {figures}.map((one) => [...one.querySelectorAll('text')].map((text) => text.textContent))"
    ):
        levels = [float(text) for text in marks if re.fullmatch(r"\d+(\.\d)?", text)]
        assert len(levels) > 2
        assert min(levels) < 40.1 < max(levels)
        assert [text for text in marks if re.search(r"\d{4}|\.\d\d", text)] == []


def test_hollow_points_are_explained_where_there_are_any(browser: Any, board: Path) -> None:
    for address, there in ((CIFAR, True), ("dataset=CIFAR-10&ipc=10&protocol=hard-truths-sl%401", False)):
        browser.open(board, address)
        assert bool(browser.texts("#pictures .dot.small")) == there
        assert any("Hollow" in text for text in browser.texts("#pictures figcaption")) == there


def test_a_point_of_a_picture_opens_its_row(browser: Any, board: Path) -> None:
    browser.open(board, CIFAR)
    browser.run("document.querySelector('#pictures .dot.best').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert len(browser.texts(".details")) == 1


def test_texts_of_records_stay_texts(browser: Any, board: Path, tmp_path: Path) -> None:
    found = document_of(board)
    evil = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
    for table in found["tables"]:
        table["data_title"] += evil
    for row in found["rows"]:
        row |= {"method": row["method"] + evil, "setting": evil, "title": evil, "failed": evil, "differs": evil}
        row["runs"] = [run | {"checks": [evil]} for run in row["runs"]]
    for run in found["runs"].values():
        run |= {name: evil for name in ("provided_by", "commit", "backbone", "started")}
        run |= {"options": [[evil, evil, evil]], "devices": [evil], "commands": [evil], "reproduce": evil}
    path = tmp_path / "evil.html"
    path.write_text(render(found, f"title{evil}"), encoding="utf-8")
    browser.open(path)
    browser.click("tr.head .opener")
    assert "onerror" in browser.texts(".details")[0]
    assert browser.driver.title == f"title{evil}"
    # The picture of the set is one that the page itself has drawn.
    strange = "main img:not([src^='data:image/webp']), main script"
    assert browser.run("return document.querySelectorAll(arguments[0]).length", strange) == 0
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]


def test_a_page_without_results_says_so(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "empty.html"
    path.write_text(local_board(tmp_path / "runs", form="html"), encoding="utf-8")
    browser.open(path)
    assert browser.texts("#view") == ["No results yet"]
    assert browser.complaints() == []


def test_words_of_published_numbers_are_whole_on_a_phone(browser: Any, board: Path) -> None:
    browser.open(board, CIFAR, width=390, height=844)
    browser.click("[data-row^=dm-] .opener")
    # A line of a cell holds its longest word where the cell is as wide as what is in it, and scrolls where it is not.
    broken = browser.run(
        """
        const broken = [];
        for (const cell of document.querySelectorAll(".mini.words td, .mini.words th")) {
          const range = document.createRange();
          const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
          for (let node = walker.nextNode(); node; node = walker.nextNode()) {
            for (const word of node.data.matchAll(/[^\\s-]+/g)) {
              range.setStart(node, word.index); range.setEnd(node, word.index + word[0].length);
              if (range.getClientRects().length > 1) broken.push(word[0]);
            }
          }
        }
        return broken;
        """
    )
    assert browser.texts(".mini.words td")
    assert broken == []
    assert browser.run("return document.documentElement.scrollWidth") == 390

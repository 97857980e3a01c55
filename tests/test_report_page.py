"""The report in a browser: it sorts, shows the videos of a cell, plays, stays text, fits a phone and paper."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import write_video
from test_predictions import write_predictions
from test_report import EVIL, evil_predictions

from cnnbert.cli import main

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    if CHROMIUM is None or DRIVER is None:
        missing = "Chromium" if CHROMIUM is None else "chromedriver"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(f"REQUIRE_BROWSER=1, but there is no {missing}")
        pytest.skip(f"there is no {missing}")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    for name in ("0.mp4", "1.mp4"):
        write_video(folder / name, (200, 30, 30), num_frames=24, size=160)
    (folder / "2.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def report(videos: Path) -> Path:
    """A report of three classes in which run is taken for walk twice, compared with a model that takes all for jump."""
    names = ["walk", "run", "jump"]
    rows: list[tuple[str, str, str, Any]] = [
        (f"{videos}/0.mp4", "run", "walk", [0.9, 0.1, 0]),
        (f"{videos}/1.mp4", "run", "walk", [0.8, 0.2, 0]),
        (f"{videos}/2.mp4", "walk", "run", [0.3, 0.7, 0]),
        (f"{videos}/3.mp4", "jump", "jump", [0.1, 0.1, 0.8]),
        *((f"{videos}/walk{i}.mp4", "walk", "walk", [0.6, 0.4, 0]) for i in range(70)),
        (f"{videos}/4.mp4", "jump", "", "it is cut off"),
    ]
    first = write_predictions(videos / "a" / "predictions.csv", names, rows)
    others = [(path, label, "jump", [0.1, 0.1, 0.8]) for path, label, *_ in rows]
    second = write_predictions(videos / "b" / "predictions.csv", names, others)
    out = videos / "report.html"
    assert main(["report", str(first), "--compare", str(second), "--out", str(out)]) == 0
    return out


def opened(browser: Any, page: Path, width: int = 1280) -> Callable[..., Any]:
    """Open a page of a width, and return what runs a script in it."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    return browser.execute_script


def texts(browser: Any, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements("css selector", selector)]


def until(browser: Any, script: str) -> None:
    """Wait until a script returns something true."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(script))


def test_the_matrix_sorts_and_shows_videos(browser: Any, report: Path) -> None:
    opened(browser, report)
    assert texts(browser, "#matrix tbody th") == ["walk", "run", "jump"]
    assert texts(browser, "#matrix td") == ["70", "1", "", "2", "", "", "1", "1"]
    order = browser.find_element("id", "order")
    order.find_element("css selector", "[value=accuracy]").click()
    assert texts(browser, "#matrix tbody th") == ["run", "jump", "walk"]
    order.find_element("css selector", "[value=size]").click()
    assert texts(browser, "#matrix tbody th") == ["walk", "run", "jump"]
    assert not browser.find_element("id", "cell").is_displayed()
    browser.find_element("css selector", "[data-truth='1'][data-said='0']").click()
    assert texts(browser, "#cell-title") == ["run predicted as walk: 2"]
    assert texts(browser, "#cell-clips .path") == ["0.mp4", "1.mp4"]
    assert "walk\n90.0 %" in texts(browser, "#cell-clips figcaption")[0]
    link = browser.find_element("css selector", "#cell-clips a").get_attribute("href")
    assert link == (report.parent / "0.mp4").as_uri()
    browser.find_element("id", "close").click()
    assert not browser.find_element("id", "cell").is_displayed()


def test_many_videos_are_shown_some_at_a_time(browser: Any, report: Path) -> None:
    opened(browser, report)
    browser.find_element("css selector", "[data-truth='0'][data-said='0']").click()
    assert len(texts(browser, "#cell-clips figure")) == 60
    (more,) = browser.find_elements("css selector", "#cell-clips > button")
    assert more.text == "Show 10 more of 70"
    browser.execute_script("arguments[0].click()", more)
    assert len(texts(browser, "#cell-clips figure")) == 70
    assert not more.is_displayed()


def test_keys_are_enough(browser: Any, report: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    run = opened(browser, report)
    run("document.querySelector(\"#matrix button[tabindex='0']\").focus()")
    assert browser.switch_to.active_element.text == "70"
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element.get_attribute("aria-label") == "walk predicted as run: 1 of 71"
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert browser.switch_to.active_element.text == "2"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.text == "run predicted as walk: 2"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert browser.switch_to.active_element.text == "2"


def test_tables_sort(browser: Any, report: Path) -> None:
    opened(browser, report)
    names, recall = "#class-table tbody th", "#class-table thead th:nth-child(4)"
    assert texts(browser, names) == ["walk", "run", "jump"]
    browser.find_element("css selector", f"{recall} button").click()
    assert texts(browser, names) == ["walk", "jump", "run"]
    browser.find_element("css selector", f"{recall} button").click()
    assert texts(browser, names) == ["run", "jump", "walk"]
    assert browser.find_element("css selector", recall).get_attribute("aria-sort") == "ascending"
    browser.find_element("css selector", "#class-table thead button").click()
    assert texts(browser, names) == ["walk", "run", "jump"]


def test_previews_play(browser: Any, report: Path) -> None:
    run = opened(browser, report)
    run("document.getElementById('worst').scrollIntoView()")
    video = "document.querySelector('[data-list=worst] video')"
    until(browser, f"return {video}.currentTime > 0.2 && {video}.readyState > 2")
    assert run(f"return [{video}.muted, {video}.loop, {video}.videoWidth, {video}.videoHeight]") == [
        True,
        True,
        128,
        128,
    ]
    assert abs(run(f"return {video}.duration") - 2) < 0.1
    browser.find_element("id", "pause").click()
    until(browser, f"return {video}.paused")
    assert texts(browser, "#pause") == ["Play previews"]
    browser.find_element("id", "pause").click()
    until(browser, f"return !{video}.paused")
    (missing,) = texts(browser, "[data-list=worst] .missing")
    assert missing.startswith("no preview: ")


def test_pairs_and_what_either_has_right_alone(browser: Any, report: Path) -> None:
    opened(browser, report)
    (pair, *_) = browser.find_elements("css selector", ".pair")
    pair.click()
    assert texts(browser, "#cell-title") == ["run predicted as walk: 2"]
    assert texts(browser, "#only-first, #only-second") == ["Right by A alone: 70", "Right by B alone: 1"]
    assert texts(browser, "[data-list=only-second] .path") == ["4.mp4"]
    assert "not read: it is cut off" in texts(browser, "[data-list=only-second] figcaption")[0]


@pytest.mark.parametrize("width", [360, 1280])
def test_everything_stays_text(browser: Any, tmp_path: Path, videos: Path, width: int) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    path = evil_predictions(tmp_path, [str(videos / "0.mp4")])
    assert main(["report", str(path), "--out", str(tmp_path / "r.html")]) == 0
    run = opened(browser, tmp_path / "r.html", width)
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert.text
    assert texts(browser, "#class-table tbody th") == EVIL
    assert texts(browser, "#matrix tbody th") == EVIL
    for button in browser.find_elements("css selector", "#matrix button"):
        run("arguments[0].click()", button)
        assert browser.find_element("id", "cell").is_displayed()
    assert "x/</script><script>alert(2)</script>.mp4" in texts(browser, "#cell-clips .path, tbody th.path")
    assert "<img src=x onerror=alert(3)>" in texts(browser, "td")
    assert not browser.find_elements("css selector", "img")
    assert run("return document.scripts.length") == 2
    assert run("return document.documentElement.scrollWidth") <= width
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


@pytest.mark.parametrize("width", [360, 390, 1280])
@pytest.mark.parametrize("num_classes", [2, 120])
def test_the_page_is_no_wider_than_the_screen(browser: Any, tmp_path: Path, num_classes: int, width: int) -> None:
    names = [f"{'a_class_whose_name_is_long_' * 3}{i}" for i in range(num_classes)]
    share = 0.1 / (num_classes - 1)
    rows = [
        (
            f"/{'folder/' * 9}{i}.mp4",
            names[i],
            names[-1 - i],
            [0.9 if n == num_classes - 1 - i else share for n in range(num_classes)],
        )
        for i in range(num_classes)
    ]
    path = write_predictions(tmp_path / "predictions.csv", names, rows)
    assert main(["report", str(path), "--out", str(tmp_path / "r.html"), "--previews=0"]) == 0
    run = opened(browser, tmp_path / "r.html", width)
    run("document.querySelector('#matrix button').click()")
    assert run("return document.documentElement.scrollWidth") <= width
    box = "document.querySelector('.matrix-box')"
    if num_classes > 2:
        assert run(f"return {box}.scrollWidth > {box}.clientWidth")
        corner = "document.querySelector('#matrix tbody tr:nth-child(60) th').getBoundingClientRect().left"
        before = run(f"return {corner}")
        run(f"{box}.scrollTo(900, 400)")
        assert run(f"return {corner}") == before  # names stay where they are


def test_it_prints(browser: Any, report: Path) -> None:
    opened(browser, report)
    document = base64.b64decode(browser.print_page())
    assert document.startswith(b"%PDF") and len(document) > 20_000
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not browser.find_element("css selector", "nav").is_displayed()
        assert browser.find_element("id", "matrix").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_dark_by_preference(browser: Any, report: Path) -> None:
    run = opened(browser, report)
    colour = "return getComputedStyle(document.body).backgroundColor"
    seen = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        seen.append(run(colour))
    assert seen == ["rgb(246, 247, 249)", "rgb(16, 19, 23)"]


def test_less_motion_by_preference(browser: Any, report: Path) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    )
    try:
        run = opened(browser, report)
        run("document.getElementById('worst').scrollIntoView()")
        video = "document.querySelector('[data-list=worst] video')"
        until(browser, f"return {video}.readyState > 1")
        assert run(f"return {video}.paused")
        browser.find_element("css selector", "[data-list=worst] .play").click()
        until(browser, f"return {video}.currentTime > 0.1")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

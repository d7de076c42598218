"""The pages of reports, looked at in a real browser: no errors, nothing cut off, pictures to scale."""

from __future__ import annotations

import copy
import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from . import drills

record, pages = drills.util("_drill_record"), drills.util("_drill_page")
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"
WIDTHS = {"desk": 1200, "tablet": 800, "phone": 360}
SEEN = Path(__file__).parents[3] / "build" / "drill-pages"
"""Pictures of the last run, for people to look at."""


def aborted() -> dict[str, Any]:
    """A report of a drill that stopped, with as much that is odd as fits in."""
    raw = drills.raw()
    bad = drills.leg("dir1", 4.0, "node-a", "node-b", 5, outcome="failed", protected=None,
                     reason=f"VM dir1 is not healthy where it runs now: {EVIL}")  # fmt: skip
    raw.update(
        legs=[bad], stopped=f"VM dir1 is not healthy: {EVIL}", remarks=[EVIL],
        final={"dir1": {**drills.status("need_secondary", secondary=""), "reason": "x" * 300}, "db1": {}},
        probes={"dir1": drills.seen([[4.0, None]])},
        events={"dir1": {"events": drills.failover(4.0, "node-a", "node-b", 4)[:7],
                         "hosts": {"node-a": {"ok": False}}}},
    )  # fmt: skip
    raw["steps"][0]["group"] = EVIL
    for name in ("before", "final", "events", "probes", "checks"):
        raw[name] = {key.replace("db1", EVIL): value for key, value in raw[name].items()}
    raw["steps"][1]["name"] = EVIL
    raw["checks"]["dir1"].append(drills.check(9.0, "running", ok=False, attempts=13, detail=EVIL))
    made: dict[str, Any] = record.report(raw)
    return made


def many() -> dict[str, Any]:
    """A planned drill of 24 VMs with long names, there and back, that took 50 minutes."""
    raw = drills.raw(mode="planned", ended=drills.BEGIN + 3000.0, legs=[], steps=[])
    for number in range(24):
        name = f"application-server-with-a-long-name-{number:02d}"
        step = drills.step(name, f"group {number // 6}", 8080, rto_ms=1000)
        at = 10.0 + 120 * number
        raw["steps"].append(step)
        raw["legs"] += [drills.leg(name, at, "node-a", "node-b", 5),
                        drills.leg(name, at + 60, "node-b", "node-a", 7, back=True)]  # fmt: skip
        raw["events"][name] = {"hosts": {}, "events": [
            *drills.failover(at, "node-a", "node-b", 4), *drills.failover(at + 60, "node-b", "node-a", 6)]}  # fmt: skip
        raw["probes"][name] = drills.seen([[at, at + 0.3], [at + 60, at + 60.2]], until=3000.0)
        raw["before"][name] = raw["final"][name] = drills.status(primary="node-a", secondary="node-b")
    made: dict[str, Any] = record.report(raw)
    return made


REPORTS = {"passed": lambda: record.report(drills.raw()), "aborted": aborted, "many": many}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path, "chromium is missing; ./dev installs it"
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module", params=REPORTS)
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    made = copy.deepcopy(REPORTS[request.param]())
    made["_name"] = request.param
    return made


@pytest.fixture(scope="module")
def opened(browser: Browser, report: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page as a file, from which nothing else may be asked."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(pages.page(report))
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.said = []  # type: ignore[attr-defined]
    page.on("console", lambda message: page.said.append(message.text))  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: page.said.append(str(error)))  # type: ignore[attr-defined]
    page.on("dialog", lambda dialog: page.said.append(dialog.message))  # type: ignore[attr-defined]
    page.on("request", lambda asked: None if asked.url == path.as_uri() else page.said.append(asked.url))  # type: ignore[attr-defined]
    page.goto(path.as_uri())
    yield page
    assert page.said == []  # type: ignore[attr-defined]
    page.close()


def test_it_tells_the_outcome_first(opened: Page, report: dict[str, Any]) -> None:
    assert opened.locator(".verdict").inner_text() == report["outcome"]
    assert report["reason"] in opened.locator("header .lead").first.inner_text()
    assert opened.locator("section.vm").count() == len(report["vms"])
    assert opened.locator(".results tbody tr").count() == len(report["vms"])
    assert opened.title().endswith(report["outcome"])


def test_what_came_from_others_is_text_and_no_markup(opened: Page, report: dict[str, Any]) -> None:
    assert opened.locator("script, img, [onerror]").count() == 0
    if report["_name"] == "aborted":
        assert opened.locator("section.vm h2").nth(1).inner_text() == EVIL


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(opened: Page, report: dict[str, Any], width: str) -> None:
    opened.set_viewport_size({"width": WIDTHS[width], "height": 900})
    try:
        wide = opened.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1]
        beside = opened.evaluate("""() => [...document.querySelectorAll('main > *, .card > :not(.wide):not(.picture)')]
            .filter(each => each.getBoundingClientRect().right > window.innerWidth + 0.5).length""")
        assert beside == 0
    finally:
        opened.set_viewport_size({"width": 1200, "height": 900})


def test_nothing_is_cut_off_on_paper(opened: Page) -> None:
    """Between A4's margins there are 184 mm; what is wider cannot be scrolled to on paper."""
    opened.set_viewport_size({"width": 695, "height": 1000})
    opened.emulate_media(media="print")
    try:
        wide = opened.evaluate("""() => [...document.querySelectorAll('main, .wide, .picture')]
            .filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.innerHTML.slice(0, 60))""")
        assert wide == []
    finally:
        opened.emulate_media(media="screen")
        opened.set_viewport_size({"width": 1200, "height": 900})


def test_each_state_is_as_long_as_it_was(opened: Page, report: dict[str, Any]) -> None:
    """Drawn widths are to each other as the times in the data, up to a pixel."""
    drawn = opened.evaluate("""() => [...document.querySelectorAll('svg.timeline .seg')].map(each => {
        const box = each.getBoundingClientRect();
        return [each.classList[1], +each.dataset.from, +each.dataset.to, box.left, box.width]; })""")
    wanted = [(each["state"], each["from_ms"], each["to_ms"]) for vm in report["vms"] for each in vm["segments"]]
    assert [(state, pytest.approx(a), pytest.approx(b)) for state, a, b, __, __ in drawn] == wanted
    left = min(each[3] for each in drawn)
    whole = max(each[3] + each[4] for each in drawn) - left
    assert whole > 500
    for state, begin, end, x, width in drawn:
        share = report["duration_ms"]
        assert width == pytest.approx((end - begin) / share * whole, abs=1.0), state
        assert x - left == pytest.approx(begin / share * whole, abs=1.0), state


def test_a_close_up_shows_the_silence_to_scale(opened: Page, report: dict[str, Any]) -> None:
    legs = [leg for vm in report["vms"] for leg in vm["legs"] if leg["running_ms"] is not None]
    assert opened.locator("svg.close-up").count() == len(legs)
    if report["_name"] == "aborted":
        return
    ratios = opened.evaluate("""() => [...document.querySelectorAll('svg.close-up')].map(picture => {
        const failing = picture.querySelector('.seg.failing_over'), quiet = picture.querySelector('.silence');
        const ms = each => each.dataset.to - each.dataset.from, px = each => each.getBoundingClientRect().width;
        return [px(quiet) / px(failing), ms(quiet) / ms(failing)]; })""")
    assert ratios and all(drawn == pytest.approx(told, rel=0.03) for drawn, told in ratios)


def test_no_two_texts_of_a_picture_lie_on_one_another(opened: Page) -> None:
    over = opened.evaluate("""() => [...document.querySelectorAll('.picture svg')].flatMap(picture => {
        const boxes = [...picture.querySelectorAll('text')].map(each => [each.textContent, each.getBoundingClientRect()]);
        return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([, q]) => p.left < q.right - 1 &&
            q.left < p.right - 1 && p.top < q.bottom - 3 && q.top < p.bottom - 3).map(([b]) => [a, b])); })""")
    assert over == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(opened: Page, report: dict[str, Any], scheme: Any) -> None:
    """Contrast of at least 4.5 to 1 (WCAG 2.1, 1.4.3) for the page's texts, by their computed colours."""
    opened.emulate_media(color_scheme=scheme)
    try:
        weak = opened.evaluate("""() => {
            const light = text => { const c = text.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255).map(
                v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]; };
            const behind = each => { for (; each; each = each.parentElement) {
                const colour = getComputedStyle(each).backgroundColor;
                if (!/, 0\\)$|transparent/.test(colour)) return colour; } return 'rgb(255, 255, 255)'; };
            return [...document.querySelectorAll('h1,h2,h3,p,small,td,th,dt,dd,li,b,span,footer')]
                .filter(each => each.textContent.trim()).map(each => {
                    const a = light(getComputedStyle(each).color), b = light(behind(each));
                    return [each.textContent.slice(0, 30), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; })
                .filter(([, ratio]) => ratio < 4.5); }""")
        assert weak == []
        SEEN.mkdir(parents=True, exist_ok=True)
        opened.screenshot(path=SEEN / f"{report['_name']}-{scheme}.png", full_page=True)
    finally:
        opened.emulate_media(color_scheme="light")


def test_it_prints_on_a_sane_number_of_a4_pages(opened: Page, report: dict[str, Any]) -> None:
    printed = opened.pdf(path=SEEN / f"{report['_name']}.pdf", prefer_css_page_size=True)
    count = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 1 < count <= 2 + 1.75 * len(report["vms"])
    box = re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)", printed)
    assert box and (round(float(box[1])), round(float(box[2]))) == (595, 842)


def test_the_page_asks_for_nothing_and_is_small(report: dict[str, Any]) -> None:
    page = pages.page(report)
    assert re.findall(r"(?i)\b(?:src|href|srcset|action)=|url\(|@import", page.replace(html.escape(EVIL), "")) == []
    assert len(page) < 30_000 + 4 * len(json.dumps(report))

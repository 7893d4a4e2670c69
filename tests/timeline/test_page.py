"""The page, in a real browser without a network: what can be seen, and that nothing is executed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rdzv.cli.app import app

from ..local_servers import missing
from .made import Made, names, story

LEAST_CONTRAST = 4.5

# Every text that can be seen, with its colour and what is behind it. A text in a picture stands on
# the shape before it, or on what is behind the picture.
CONTRASTS = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const [r, g, b, a] = rgba(getComputedStyle(e).backgroundColor);
      if (a === 255) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const light = ([r, g, b]) => {
    const part = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || element.closest("title, style") || !element.getClientRects().length) continue;
    const svg = element.closest("svg");
    const shape = svg && element.previousElementSibling?.matches("rect")
      ? element.previousElementSibling : null;
    const colour = rgba(getComputedStyle(element)[svg ? "fill" : "color"]).slice(0, 3);
    const ground = shape ? rgba(getComputedStyle(shape).fill).slice(0, 3) : behind(element);
    const [a, b] = [light(colour), light(ground)].sort((x, y) => y - x);
    found.push({text, contrast: (a + 0.05) / (b + 0.05)});
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        missing("playwright", "pip install playwright")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if found is None:
        missing("a browser", "install Chromium, by apt-get install chromium, say")
    with sync_playwright() as running:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = running.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def see(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open pages; after the test none of them has said or asked for anything."""
    heard: list[str] = []
    contexts = []

    def show(path: Path, scheme: str = "light") -> Any:
        context = browser.new_context(
            offline=True, color_scheme=scheme, viewport={"width": 1280, "height": 900}
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: heard.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: heard.append(request.url))
        page.goto(path.as_uri())
        assert heard == [path.as_uri()]
        heard.clear()
        return page

    yield show
    for context in contexts:
        context.close()
    assert heard == []


def made(run: Made, tmp_path: Path, code: int = 0) -> Path:
    """The page of a run, as the command makes it."""
    output = tmp_path / "report.html"
    folder = run.write(tmp_path / "logs")
    result = CliRunner().invoke(app, ["timeline", str(folder), "-o", str(output)])
    assert result.exit_code == code, result.output
    return output


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("count", [3, 64])
def test_every_node_has_its_bar_and_every_text_can_be_read(see, tmp_path, count, scheme):
    page = see(made(story(count), tmp_path), scheme)
    assert page.locator("h1").inner_text() == "Run job1"
    rows = page.locator(".chart svg.row")
    assert rows.count() == count + 2
    members = page.locator(".block > .member")
    assert members.count() == count + (count - 1) + count
    box = members.first.bounding_box()
    assert box["width"] > 50
    assert box["height"] > 8
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(246, 247, 249)") is (scheme == "light")
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    low = [each for each in contrasts if each["contrast"] < LEAST_CONTRAST]
    assert not low, low[:5]


def test_blocks_stand_where_their_times_say(see, tmp_path):
    page = see(made(story(3), tmp_path))
    names_ = page.locator(".chart .name").all_inner_texts()
    victim = page.locator(".chart svg.row").nth(names_.index(names(3)[2]))
    [member] = [each.bounding_box() for each in victim.locator(".member").all()]
    [silent] = [each.bounding_box() for each in victim.locator(".silent").all()]
    assert silent["x"] == pytest.approx(member["x"] + member["width"], abs=1)
    other = page.locator(".chart svg.row").nth(names_.index(names(3)[0])).locator(".member")
    again = other.nth(1).bounding_box()
    # Round 2 begins 4 s after the loss was seen, which took 5.5 s.
    wait = again["x"] - (silent["x"] + silent["width"])
    assert wait / silent["width"] == pytest.approx(4.0 / 5.5, abs=0.02)


def test_each_forming_has_a_bar_of_its_stages_and_their_seconds(see, tmp_path):
    page = see(made(story(3), tmp_path))
    row = page.locator("table.formings tbody tr").nth(1)
    numbers = [cell.strip() for cell in row.locator("td.n").all_inner_texts()]
    assert numbers[:4] == ["2", "5.5 s", "2.0 s", "2.0 s"]
    assert numbers[4].endswith(" ms")
    assert numbers[5] == "9.5 s"
    widths = [each.bounding_box()["width"] for each in row.locator("td.bar rect").all()]
    assert len(widths) == 4
    assert widths[0] / widths[1] == pytest.approx(5.5 / 2.0, abs=0.05)
    assert "detection 5.5 s" in row.locator("td.bar svg").get_attribute("aria-label")


def test_what_is_drawn_is_said_to_who_cannot_see_it(see, tmp_path):
    page = see(made(story(3), tmp_path))
    label = page.locator(".chart svg.row").first.get_attribute("aria-label")
    assert "round 1 as rank 0 of 3" in label
    assert "it left" in label
    for svg in page.locator("svg[role=img]").all():
        assert svg.get_attribute("aria-label")
    titles = page.locator(".block title").all_text_contents()
    assert any("round 2, rank 1 of 2" in title for title in titles)
    # The chart can be scrolled by the keyboard.
    assert page.locator(".scroll").first.get_attribute("tabindex") == "0"


def test_many_nodes_scroll_below_an_axis_that_stays(see, tmp_path):
    page = see(made(story(512), tmp_path))
    assert page.locator(".chart svg.row").count() == 514
    scroll = page.locator(".scroll").first
    axis = page.locator(".chart .axis")
    before = axis.bounding_box()["y"]
    assert scroll.bounding_box()["height"] < 900
    scroll.evaluate("e => { e.scrollTop = e.scrollHeight }")
    assert axis.bounding_box()["y"] == pytest.approx(before, abs=1)
    last = page.locator(".chart .name").last
    assert last.is_visible()
    assert not page.locator("details", has_text="Nodes (514)").get_attribute("open")
    # The page itself never has to be scrolled sideways.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_on_a_small_screen_the_chart_scrolls_and_the_page_does_not(see, tmp_path):
    page = see(made(story(3), tmp_path))
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".scroll").first.evaluate("e => e.scrollWidth > e.clientWidth")


EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "</title></svg><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "<a href=javascript:alert(1)>&amp;",
    "http://example.com/<iframe src=//example.com>",
    "{{7*7}} `${alert(1)}` \u202egnp.exe \x00\x1b[2J\u2028",
]


def test_names_and_errors_that_are_code_are_shown_and_never_run(see, tmp_path):
    run = Made(run_id=EVIL[0])
    for number, evil in enumerate(EVIL):
        run.tell(number, evil, "Joined")
        run.tell(number + 20.0, evil, "Reopened", 1, reason=evil)
        run.tell(number + 30.0, evil, evil)
        run.tell(number + 31.0, evil, "Lost", 1, lost=[evil, "x" + evil], silent=1.0)
        run.tell(number + 40.0, evil, "Failed", 2, error=evil, backend=evil)
    run.complete(10.0, 1, EVIL)
    run.complete(35.0, 2, EVIL)
    run.run_id = "job1"  # for the files' names
    output = made(run, tmp_path)
    page = see(output)
    assert page.locator("script, img, iframe, a, link, object, embed, base").count() == 0
    assert page.locator("h1").inner_text() == f"Run {EVIL[0]}"
    assert "\u202e" not in output.read_text()
    assert "\\u202e" in page.locator("table.nodes").inner_text()
    handlers = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
    assert not [each for each in page.evaluate(handlers) if each.startswith("on")]


def test_the_policy_of_the_page_lets_no_script_run(see, tmp_path):
    output = made(story(3), tmp_path)
    page = see(output)
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert policy.startswith("default-src 'none'")
    assert "script" not in policy


def test_lines_that_could_not_be_read_are_listed_on_the_page(see, tmp_path):
    run = story(3)
    folder = run.write(tmp_path / "logs")
    (folder / "<b>x.jsonl").write_text('{"event": "<script>"}\nnonsense\n')
    output = made(run, tmp_path, code=1)
    page = see(output)
    cells = page.locator("table.problems tbody tr").first.locator("td").all_inner_texts()
    assert cells[0].endswith("<b>x.jsonl")
    assert cells[1] == "1"
    assert "required field" in cells[2]
    assert page.locator("table.problems tbody tr").count() == 2


def test_corrected_clocks_are_told_with_their_seconds(see, tmp_path):
    page = see(made(story(3, {names(3)[1]: 3.7}), tmp_path))
    note = page.locator(".note").inner_text()
    assert f"of 1 node, by 3.7 s at most ({names(3)[1]})" in note
    assert "-3.6" in page.locator("table.nodes").inner_text()


def test_a_page_of_the_events_of_a_run_that_formed_nothing(see, tmp_path):
    run = Made()
    run.tell(0.0, "a", "Joined")
    page = see(made(run, tmp_path))
    assert "No round was completed." in page.locator("header p").inner_text()
    assert page.locator(".chart svg.row").count() == 1


# ---------------------------------------------------------------- the command


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["timeline", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command_says_what_the_page_is_made_of(tmp_path):
    folder = story(3).write(tmp_path / "logs")
    code, said = command(folder, "-o", tmp_path / "r.html")
    assert code == 0
    assert "1 run(s), 5 node(s), 3 round(s), from 39 events in 5 file(s)" in said


def test_lines_that_could_not_be_read_are_told_and_the_exit_code_is_1(tmp_path):
    folder = story(3).write(tmp_path / "logs")
    (folder / "x\x1b[2J.jsonl").write_text("nonsense\n")
    code, said = command(folder, "-o", tmp_path / "r.html")
    assert code == 1
    assert "\\u001b[2J.jsonl:1: " in said
    assert "\x1b" not in said
    assert (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    "what", ["nothing there", "empty folder", "no event", "other run", "target"]
)
def test_where_no_page_can_be_made_the_reason_is_told_and_the_exit_code_is_2(tmp_path, what):
    folder = tmp_path / "logs"
    output = tmp_path / "r.html"
    arguments: list[object] = [folder, "-o", output]
    if what != "nothing there":
        folder.mkdir()
    if what == "no event":
        (folder / "a.jsonl").write_text(json.dumps({"level": "info"}) + "\n")
    if what in ("other run", "target"):
        story(3).write(folder)
    if what == "other run":
        arguments += ["--run", "job2"]
    if what == "target":
        output = tmp_path / "missing" / "r.html"
        arguments[2] = output
    code, said = command(*arguments)
    expected = {
        "nothing there": "no file or folder",
        "empty folder": "Set RDZV_EVENTS",
        "no event": "no event in 1 file(s)",
        "other run": "There are: job1",
        "target": "cannot be written",
    }
    assert code == 2
    assert expected[what] in said.replace("\n", " ")
    assert not output.exists()


def test_a_page_that_could_not_be_made_leaves_the_old_one(tmp_path):
    output = tmp_path / "r.html"
    output.write_text("the old one")
    (tmp_path / "a.jsonl").write_text("nonsense\n")
    assert command(tmp_path / "a.jsonl", "-o", output)[0] == 2
    assert output.read_text() == "the old one"

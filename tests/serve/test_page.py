"""The page in a real browser: what people do with it, by pointer and by keyboard, and what it may not do."""

from __future__ import annotations

import os
import re
import shutil

import pytest

from support.paths import EXAMPLES
from support.serving import IMAGES, SQUARES, running

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 30_000


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def open_page(browser, server):
    """Opens the page; at the end nothing must have gone wrong in it, and nothing gone elsewhere."""
    contexts, problems = [], []

    def open_one(url=server.url, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.on(
            "request", lambda request: request.url.startswith((url, "blob:", "data:")) or problems.append(request.url)
        )
        page.goto(url)
        sync_api.expect(page.locator("#model")).not_to_be_empty(timeout=PATIENCE_MS)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert problems == []


def expect(page, selector):
    return sync_api.expect(page.locator(selector))


def choose(page, image, caption):
    page.locator("#file").set_input_files(image)
    expect(page, "#caption").to_have_text(caption, timeout=PATIENCE_MS)


def screenshot(page, name):
    """Kept where GITFAST_SCREENSHOTS says, for people to look at."""
    if folder := os.environ.get("GITFAST_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_a_picture_and_everything_about_it(open_page, model):
    page = open_page(viewport={"width": 1180, "height": 860})
    expect(page, "#model").to_have_text("git-tiny")
    screenshot(page, "page-empty")
    choose(page, SQUARES, "five red squares")
    expect(page, "#timing").to_contain_text("first word after")

    page.locator("#question").fill("what color are the squares?")
    page.locator("#question").press("Enter")
    expect(page, "#answers dd").to_have_text("red", timeout=PATIENCE_MS)
    expect(page, "#answers dt").to_have_text("what color are the squares?")

    page.locator("#labels").fill("a blue circle, five red squares\nfour red squares")
    page.locator("#classify button").click()
    expect(page, "#ranking li").to_have_count(3, timeout=PATIENCE_MS)
    labels = ["a blue circle", "five red squares", "four red squares"]
    ranked = model.classify(SQUARES, labels)
    shown = page.locator("#ranking li").all()
    assert [item.locator("span").first.inner_text() for item in shown] == [label.text for label in ranked]
    assert shown[0].locator(".share").inner_text() == f"{100 * ranked[0].probability:.1f} %"
    widest, narrowest = (item.locator(".track div") for item in (shown[0], shown[-1]))
    widest.evaluate("bar => Promise.all(bar.getAnimations().map(a => a.finished))")
    assert widest.bounding_box()["width"] > narrowest.bounding_box()["width"] + 50

    page.locator("#more").click()
    expect(page, "#best li").to_have_count(5, timeout=PATIENCE_MS)
    best = model.caption(SQUARES, num_beams=5, num_return_sequences=5)
    expect(page, "#best li >> nth=1").to_contain_text(best.alternatives[0].text)
    expect(page, "#best li >> nth=0").to_contain_text(f"{-best.score:.2f}")

    page.locator(".word", has_text="squares").hover()
    expect(page, "#heat").to_have_class("shown")
    expect(page, "#where").to_contain_text("“squares”: looked most")
    page.locator("#heat").evaluate("heat => Promise.all(heat.getAnimations().map(a => a.finished))")
    screenshot(page, "page")


def test_the_heat_map_is_the_models_attention(open_page, model):
    """Brightest where the largest weight is: at least the patch of the darkest veil is none of the brightest."""
    page = open_page()
    choose(page, SQUARES, "five red squares")
    page.locator(".word", has_text="red").hover()
    expect(page, "#heat").to_have_class("shown")
    weights = model.attend(SQUARES, "five red squares")[1, 1:].reshape(8, 8)
    row, column = divmod(int(weights.argmax()), 8)
    dark_row, dark_column = divmod(int(weights.argmin()), 8)
    alpha = """(heat, [x, y]) => heat.getContext("2d").getImageData(
        Math.round(x * heat.width), Math.round(y * heat.height), 1, 1).data[3]"""
    heat = page.locator("#heat")
    brightest = heat.evaluate(alpha, [(column + 0.5) / 8, (row + 0.5) / 8])
    darkest = heat.evaluate(alpha, [(dark_column + 0.5) / 8, (dark_row + 0.5) / 8])
    assert darkest > brightest + 40


def test_by_keyboard_alone(open_page):
    page = open_page()
    choose(page, SQUARES, "five red squares")
    expect(page, ".word").to_have_count(3, timeout=PATIENCE_MS)
    page.locator(".word").first.focus()
    expect(page, ".word >> nth=0").to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowRight")
    expect(page, ".word >> nth=1").to_be_focused()
    expect(page, "#where").to_contain_text("“red”")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page, "#question").to_be_focused()
    page.keyboard.type("what color are the squares?")
    page.keyboard.press("Enter")
    expect(page, "#answers dd").to_have_text("red", timeout=PATIENCE_MS)


def test_a_screen_reader_is_told(open_page):
    page = open_page()
    choose(page, SQUARES, "five red squares")
    expect(page, "#announce").to_have_text("Caption: five red squares")
    for name in ("Question", re.compile("^Labels, one a line")):
        assert page.get_by_label(name).count() == 1
    assert page.get_by_role("button", name="Compare").is_enabled()
    unnamed = """() => [...document.querySelectorAll("button, input, textarea")].filter(e => e.offsetParent &&
        !e.textContent.trim() && !e.labels?.length && !e.getAttribute("aria-labelledby")).map(e => e.outerHTML)"""
    assert page.evaluate(unnamed) == []


def test_drop_and_paste(open_page):
    page = open_page()
    data = list(SQUARES.read_bytes())
    transfer = page.evaluate_handle(
        """data => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(data)], "a.png", {type: "image/png"}));
            return transfer;
        }""",
        data,
    )
    page.dispatch_event("#stage", "drop", {"dataTransfer": transfer})
    expect(page, "#caption").to_have_text("five red squares", timeout=PATIENCE_MS)
    other = list(IMAGES[1].read_bytes())
    page.evaluate(
        """data => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(data)], "b.png", {type: "image/png"}));
            dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer}));
        }""",
        other,
    )
    expect(page, "#caption").to_have_text("a large orange square", timeout=PATIENCE_MS)


def test_the_next_picture_clears_what_was_said(open_page):
    page = open_page()
    choose(page, SQUARES, "five red squares")
    page.locator("#question").fill("what color are the squares?")
    page.locator("#question").press("Enter")
    expect(page, "#answers dd").to_have_text("red", timeout=PATIENCE_MS)
    choose(page, IMAGES[1], "a large orange square")
    expect(page, "#answers dd").to_have_count(0)


def test_an_example(open_page):
    page = open_page()
    page.locator("#example").click()
    expect(page, "#caption").to_have_text(re.compile(r"^an? \w+ \w+ (to the|above|below|on)"), timeout=PATIENCE_MS)


def test_a_file_that_is_no_picture(browser, server, tmp_path):
    page = browser.new_page()
    page.goto(server.url)
    expect(page, "#model").to_have_text("git-tiny", timeout=PATIENCE_MS)
    file = tmp_path / "notes.png"
    file.write_text("not a picture")
    page.locator("#file").set_input_files(file)
    expect(page, "#problem").to_contain_text("not an image", timeout=PATIENCE_MS)
    choose(page, SQUARES, "five red squares")
    expect(page, "#problem").to_be_hidden()
    page.close()


def test_a_phone_in_the_dark(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme="dark", device_scale_factor=2, has_touch=True)
    choose(page, IMAGES[0], "a green cross to the left of a red triangle")
    expect(page, ".word").to_have_count(10, timeout=PATIENCE_MS)
    page.locator(".word", has_text="triangle").tap()
    expect(page, "#heat").to_have_class("shown")
    page.locator("#heat").evaluate("heat => Promise.all(heat.getAnimations().map(a => a.finished))")
    screenshot(page, "page-phone-dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_clips(open_page):
    clip = next(EXAMPLES.glob("clips/*.gif"))
    with running(["--model", "git-tiny-video"]) as server:
        page = open_page(server.url)
        page.locator("#file").set_input_files(clip)
        expect(page, ".word").not_to_have_count(0, timeout=PATIENCE_MS)
        page.locator(".word").last.hover()
        expect(page, "#frames canvas").to_have_count(6)
        screenshot(page, "page-clip")


@pytest.mark.slow
def test_a_key(open_page, browser):
    with running(["--api-key", "open sesame"]) as server:
        page = browser.new_page()
        page.goto(server.url)
        expect(page, "#unlock").to_be_visible(timeout=PATIENCE_MS)
        page.locator("#key").fill("open sesame")
        page.locator("#key").press("Enter")
        expect(page, "#model").to_have_text("git-tiny", timeout=PATIENCE_MS)
        choose(page, SQUARES, "five red squares")
        page.close()


def test_the_documentation(open_page, server):
    page = open_page()
    page.goto(f"{server.url}/docs")
    page.locator("summary", has_text="/v1/chat/completions").click()
    expect(page, "details[open]").to_contain_text("temperature")
    screenshot(page, "docs")


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_policy(client, path):
    policy = client.get(path).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy

"""The report in a real browser, headless Chromium driven by selenium; skipped, with the reason, where there is none."""

import base64
import io
import json
import re
import shutil
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest
import torch

from dpdmd.evaluate.manifest import ImageEntry, write_manifest
from dpdmd.report.build import report_from_runs
from dpdmd.report.colours import ARM_COLOURS, OTHER_COLOURS
from dpdmd.store.files import write_json
from dpdmd.store.png import write_png

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1100,900",
)
# Each tries to leave its place: an element, the page's style, an attribute, the data of the table, a link.
HOSTILE = (
    "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>",
    "</style></script><!--<script>window.hit = 1</script>",
    "\"'`> onmouseover=window.hit=1 autofocus onfocus=window.hit=1",
    "javascript:window.hit=1",
    "https://example.com/?q={{ 7 * 7 }} ${window.hit = 1}",
    "\u202eevil \u2028 &lt;b&gt;",
)
COLOURS = (*ARM_COLOURS.values(), *OTHER_COLOURS)
# What the browser makes of the colours of text in a plot.
FILLS = """const text = document.querySelector("svg text"), own = text.style.fill;
const fills = arguments[0].map(fill => { text.style.fill = fill; return [fill, getComputedStyle(text).fill]; });
text.style.fill = own;
return fills;"""
FOCUSED = "return document.activeElement.querySelector('img')?.alt"
WORDS = ("red circle", "blue cross", "green square")
PLAIN = [f"a {WORDS[i % 3]} number {i}" for i in range(1000 - len(HOSTILE))]
ARMS = ("teacher", "dmd", HOSTILE[0].replace("/", "|"))
DESKTOP, PHONE = (1400, 900), (390, 844)
# The bottom of the first row of the picture, the right end of all its images, and the verdict.
FIRST_SCREEN = """const box = e => e.getBoundingClientRect(), images = [...document.querySelectorAll(".picture img")];
const row = [...document.querySelector(".picture .prompt").querySelectorAll("img")];
return {width: document.documentElement.scrollWidth, verdict: box(document.querySelector(".verdict")).bottom,
        row: Math.max(...row.map(e => box(e).bottom)), right: Math.max(...images.map(e => box(e).right)),
        arms: new Set(row.map(e => e.alt.split(" · ").at(-2))).size};"""
# The sizes of all visible text, in pixels as shown: text in a plot is scaled with it.
TEXT_SIZES = """const sizes = {}, walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode, e = text.parentElement;
  if (!text.data.trim() || ["SCRIPT", "STYLE", "OPTION"].includes(e.tagName) || !e.checkVisibility()) continue;
  const svg = e.closest("svg"), scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  sizes[text.data.trim().slice(0, 40)] = scale * parseFloat(getComputedStyle(e).fontSize);
}
return Object.entries(sizes).sort((a, b) => a[1] - b[1])[0];"""
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
AXE = """const done = arguments[0];
axe.run(document, {runOnly: {type: "tag", values: %s}}).then(found => done(found.violations.map(
  violation => [violation.id, violation.nodes.length, violation.nodes[0].html.slice(0, 200)])));"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A driver of headless Chromium; it is closed at the end."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no browser: install chromium and chromedriver (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of 1,000 prompts, some of them hostile, three of which have nine images of every arm."""
    folder = tmp_path_factory.mktemp("browser")
    prompts = [*HOSTILE, *PLAIN]
    for number, arm in enumerate(ARMS):
        samples = folder / "demo" / arm / "samples"
        entries = []
        for i, prompt in enumerate(prompts[:12]):
            for seed in range(9):
                file = f"{i}-{seed}{HOSTILE[2] if seed == 0 else ''}.png"
                write_png(
                    samples / file, torch.tensor(colour_of(number, i, seed)).view(3, 1, 1).expand(3, 8, 8) / 127.5 - 1
                )
                entries.append(ImageEntry(prompt, seed, file))
        write_manifest(samples, entries, {"model": HOSTILE[1], "num_inference_steps": 4})
        # What dmd keeps rises from prompt to prompt.
        shares = [1.0 - number * (0.9 - 0.8 * i / len(prompts)) / 2 for i in range(len(prompts))]
        rows = [
            {"prompt": prompt, "diversity": 0.4 * share, "reference_diversity": 0.4, "clip_score": 30 + i % 7}
            for i, (prompt, share) in enumerate(zip(prompts, shares, strict=True))
        ]
        metrics = {"diversity": 0.4, "diversity_share": sum(shares) / 1000, "clip_score": 31 + number, HOSTILE[0]: 1.0}
        metrics["intervals"] = {"clip_score": [30.5, 33.5], "diversity_share": [0.4, 0.9]}
        write_json(samples.parent / "metrics.json", metrics | {"per_prompt": rows[:: -1 if number else 1]})
        log = "".join(json.dumps({"step": i, "loss/dmd": 1 / i, "loss/<i>": 1.0}) + "\n" for i in range(1, 30))
        (samples.parent / "metrics.jsonl").write_text(log)
        (samples.parent / "recipe.toml").write_text(f"# {HOSTILE[1]}\n[train]\nnum_updates = 29\n")
    return report_from_runs([folder / "demo"], folder / "report.html", title=HOSTILE[1])


def colour_of(arm, prompt, seed):
    """The colour of an image, which no other has."""
    return 10 + 20 * prompt, 10 + 25 * seed, 50 + 60 * arm


def visit(driver, address):
    """Open a page and wait for its script's end: on a busy machine the driver's own wait may return before it."""
    from selenium.webdriver.support.wait import WebDriverWait

    driver.execute_script("window.isLeft = true")
    driver.get(address)
    ready = "return window.isLeft === undefined && document.readyState === 'complete'"
    WebDriverWait(driver, 60).until(lambda driver: driver.execute_script(ready))


@pytest.fixture
def opened(chromium, page):
    chromium.get_log("browser")
    chromium.get_log("performance")
    visit(chromium, page.as_uri())
    yield chromium
    assert chromium.get_log("browser") == []
    assert chromium.execute_script("return window.hit === undefined")


def texts(driver, selector):
    """What is on the page, on the screen or below it, and neither filtered out nor folded."""
    script = """const hidden = element => element.closest("[hidden], details:not([open])");
    return [...document.querySelectorAll(arguments[0])].filter(e => !hidden(e)).map(e => e.textContent);"""
    return driver.execute_script(script, selector)


def type_filter(driver, text):
    box = driver.find_element("id", "filter")
    box.clear()
    box.send_keys(text, " ")


def sort_by(driver, column):
    button = driver.find_elements("css selector", "#prompts-table thead button")[column]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()


def test_it_renders_and_asks_for_nothing(opened):
    from selenium.webdriver.support.ui import WebDriverWait

    assert len(texts(opened, "svg")) == 5 and opened.find_element("tag name", "svg").rect["height"] > 100
    assert texts(opened, ".question thead bdi")[:3] == ["Teacher", "DMD", ARMS[2]]
    assert texts(opened, "#prompts-table thead bdi")[1:] == ["Teacher", "DMD", ARMS[2]]
    widths = "return [...document.querySelectorAll('#shown-1 img')].map(image => image.naturalWidth)"
    WebDriverWait(opened, 20).until(lambda driver: driver.execute_script(widths) == [8] * 27)
    requests = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    addresses = [r["params"]["request"]["url"] for r in requests if r["method"] == "Network.requestWillBeSent"]
    # "chrome:" are the browser's own pages, such as the empty tab that it starts with.
    assert {address.split(":")[0] for address in addresses} <= {"file", "data", "chrome"}
    assert sum(address.startswith("file:") for address in addresses) == 1


def test_hostile_text_is_shown_as_it_is(opened):
    assert set(HOSTILE) < set(texts(opened, ".by-prompt .prompt h3")) and set(HOSTILE) < set(
        texts(opened, "#prompts-table tbody a")
    )
    assert texts(opened, "h1") == [HOSTILE[1]]
    type_filter(opened, "javascript:")
    assert texts(opened, "#prompts-table tbody a") == [HOSTILE[3]]
    link = opened.find_element("css selector", "#prompts-table tbody a")
    assert link.get_attribute("href").startswith("file:") and "#shown-" in link.get_attribute("href")
    # The page holds one script that runs and no handler; a script that comes in otherwise is refused.
    assert opened.execute_script("return document.querySelectorAll('script:not([type])').length") == 1
    assert opened.execute_script(
        "return [...document.all].every(e => ![...e.attributes].some(a => /^on/.test(a.name)))"
    )
    opened.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.hit = 1'; document.body.append(s)"
    )
    refused = opened.get_log("browser")
    assert len(refused) == 1 and "Content Security Policy" in refused[0]["message"]


def test_the_filter_applies_to_images_and_table(opened):
    assert texts(opened, "#found") == ["1000 of 1000 prompts, 12 of 12 with images"]
    type_filter(opened, "CROSS blue 31")
    expected = sum("blue cross" in prompt and "31" in prompt for prompt in PLAIN)
    assert len(texts(opened, "#prompts-table tbody tr")) == expected > 0
    assert all("blue cross" in text and "31" in text for text in texts(opened, "#prompts-table tbody th"))
    assert texts(opened, ".by-prompt .prompt h3") == [] and texts(opened, "#found")[0].startswith(
        f"{expected} of 1000 prompts, 0 of"
    )
    type_filter(opened, "number 2")
    assert texts(opened, ".by-prompt .prompt h3") == [PLAIN[2]]


def test_the_table_begins_with_what_collapsed_and_sorts_by_any_column(opened):
    prompts = [*HOSTILE, *PLAIN]
    first = texts(opened, "#prompts-table tbody th")
    assert len(first) == 50 and first[6:] == prompts[6:50]
    assert opened.execute_script("return document.querySelectorAll('#prompts-table th')[2].ariaSort") == "ascending"
    sort_by(opened, 2)
    assert texts(opened, "#prompts-table tbody th")[:3] == prompts[:-4:-1]
    sort_by(opened, 0)
    opened.find_element("css selector", "#metric option:last-child").click()
    type_filter(opened, PLAIN[-1])
    assert texts(opened, "#prompts-table tbody td") == ["35.0"] * 3


def test_the_whole_table_is_shown_on_request(opened):
    more = opened.find_element("id", "more")
    assert more.text == "Show all 1000"
    more.click()
    rows = "return document.querySelectorAll('#prompts-table tbody tr').length"
    assert opened.execute_script(rows) == 1000
    more.click()
    assert opened.execute_script(rows) == 50


def test_the_keyboard_enlarges_an_image_and_goes_to_the_same_seed_of_the_next_arm(opened):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    type_filter(opened, "number 0")
    button = opened.find_elements("css selector", ".by-prompt .prompt:not([hidden]) .grid button")[1]
    button.send_keys(Keys.ENTER)
    dialog, about = opened.find_element("id", "zoom"), opened.find_element("id", "about")
    assert dialog.is_displayed() and about.text == f"{PLAIN[0]} · Teacher · seed 1"
    for key, place in ((Keys.ARROW_RIGHT, "Teacher · seed 2"), (Keys.ARROW_DOWN, "DMD · seed 2")):
        opened.switch_to.active_element.send_keys(key)
        assert about.text == f"{PLAIN[0]} · {place}"
    assert dialog.find_element("tag name", "img").get_property("naturalWidth") == 8
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()
    # A dialog gives the focus back to what opened it, and only then reports that it has closed.
    left = f"{PLAIN[0]} · DMD · seed 2"
    WebDriverWait(opened, 10).until(lambda _: opened.execute_script(FOCUSED) == left, f"the focus is not at {left}")


def test_every_image_and_plot_has_a_name_and_every_text_enough_contrast(opened):
    assert opened.execute_script("return [...document.querySelectorAll('.grid img')].every(e => e.alt.length > 0)")
    named = "return [...document.querySelectorAll('svg, input, dialog, .wide')].every(e => e.ariaLabel)"
    assert opened.execute_script(named)
    for scheme, is_dark in (("light", False), ("dark", True)):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        page = colour(opened, "body", "backgroundColor")
        assert (luminance(page) < 0.1) == is_dark
        for selector in ("h1", "p.soft", "nav a", ".verdict", "td small", "svg text", "#prompts-table th"):
            ratio = contrast(colour(opened, selector, "fill" if selector == "svg text" else "color"), page)
            assert ratio >= 4.5, (scheme, selector, ratio)  # WCAG 1.4.3
        mixed = {
            text: re.fullmatch(r"color\(srgb (.*)\)", fill)[1].split()
            for text, fill in opened.execute_script(FILLS, [f"color-mix(in srgb, {c}, currentColor)" for c in COLOURS])
        }
        assert len(mixed) == len(COLOURS)
        for text, rgb in mixed.items():
            assert contrast([255 * float(value) for value in rgb], page) >= 4.5, (scheme, text)


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_the_first_screen_has_the_verdict_and_the_picture_within_its_width(opened, size):
    width, height = size
    resize(opened, size)
    found = opened.execute_script(FIRST_SCREEN)
    assert found["width"] <= width and found["right"] <= width - 16
    assert found["arms"] == 3 and found["verdict"] < found["row"] <= height
    text, pixels = opened.execute_script(TEXT_SIZES)
    assert pixels >= 11, text
    # The arms' names are at the numbers of a narrow table, and nothing leaves the screen but what scrolls by itself.
    wide = (
        "return [...document.querySelectorAll('.numbers td')].every(e => e.getBoundingClientRect().right <= innerWidth)"
    )
    assert opened.execute_script(wide)


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_axe_finds_no_violation_of_levels_a_and_aa(opened, size, scheme):
    places = (Path(sys.prefix), Path(__file__).parents[2])
    axe = next(filter(Path.exists, (place / "node_modules/axe-core/axe.min.js" for place in places)), None)
    if axe is None:
        pytest.skip("no axe-core: npm install --no-save --prefix .venv axe-core")
    resize(opened, size)
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    opened.set_script_timeout(300)  # on a busy machine
    opened.execute_script(axe.read_text(encoding="utf-8"))
    assert opened.execute_async_script(AXE % json.dumps(LEVELS)) == []
    levels = opened.execute_script("return [...document.querySelectorAll('h1, h2, h3, h4')].map(e => +e.tagName[1])")
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))


def test_the_printed_page_has_every_column_and_cuts_no_grid(opened):
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")
    printed = opened.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    pages = pypdf.PdfReader(io.BytesIO(base64.b64decode(printed["data"]))).pages
    shown = [{image.image.convert("RGB").getpixel((4, 4)) for image in page.images} for page in pages]
    grids = [{colour_of(arm, prompt, seed) for seed in range(9)} for arm in range(3) for prompt in range(12)]
    assert all(any(grid <= colours for colours in shown) for grid in grids)
    strips = [{colour_of(arm, prompt, seed) for seed in range(6)} for arm in range(3) for prompt in (0, 11)]
    assert all(strip <= shown[0] for strip in strips)


def test_a_page_from_a_server_asks_for_nothing_either(chromium, page):
    class Quiet(SimpleHTTPRequestHandler):
        requested: list = []  # noqa: RUF012

        def log_message(self, *args):
            self.requested.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=page.parent)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        visit(chromium, f"http://127.0.0.1:{server.server_port}/report.html")
        assert len(texts(chromium, "#prompts-table tbody tr")) == 50
        server.shutdown()
    assert Quiet.requested == ["/report.html"]


def resize(driver, size):
    screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def colour(driver, selector, name):
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]].match(/[0-9.]+/g).map(Number)"
    return driver.execute_script(script, selector, name)[:3]


def luminance(rgb):
    """Relative luminance of an sRGB colour of 0 to 255 (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)

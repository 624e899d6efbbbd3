"""The report in a real browser: what people do with it, and what it must never do."""

import json

import chromium
import pytest
from synthetic import make_workdir, write_claims

from cai_jax.page.browser import embedded
from cai_jax.stages import report

pytestmark = pytest.mark.skipif(
    not (chromium.BROWSER and chromium.DRIVER),
    reason="needs Chromium and chromedriver (Debian: chromium, chromium-driver)",
)
HOSTILE = (
    "</script><script>window.broken = 1</script><!--<script>"
    "<img src=http://127.0.0.1:9/x onerror='window.broken = 2'>&lt;b&gt; \u2028 \\u003c {{7*7}} ']"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    workdir = make_workdir(folder / "w", hostile=HOSTILE)
    write_claims(workdir, HOSTILE)
    path = folder / "index.html"
    path.write_text(report.page(report.default_config(), *report.discover(workdir)), "utf-8")
    return path


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with chromium.chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(window, page):
    """The page, newly opened; after the test, nothing was complained of and nothing asked for."""
    window.size(1200, 900)
    for kind in ("browser", "performance"):
        window.log(kind)
    window.open(page.as_uri())
    yield window
    assert window.log("browser") == []
    events = "".join(entry["message"] for entry in window.log("performance"))
    assert "requestWillBeSent" in events  # of the file itself
    assert "http://" not in events and "https://" not in events
    assert window.run("return performance.getEntriesByType('resource').length") == 0
    assert window.run("return window.broken") is None


def choose(browser, select, text):
    """The option whose text begins so."""
    browser.run(
        "const select = document.getElementById(arguments[0]);"
        "const wanted = [...select.options].find((o) => o.text.startsWith(arguments[1]));"
        "select.value = wanted.value; select.dispatchEvent(new Event('change'));",
        select,
        text,
    )


def record(browser):
    return browser.run("return document.getElementById('record').textContent")


def revealed(browser):
    browser.click("#reveal")
    return browser


def test_harmful_text_is_behind_a_click(browser):
    assert not browser.run("return document.getElementById('browser').checkVisibility()")
    assert "offensive or harmful" in browser.text("#warning")
    assert "window.broken" not in browser.run("return document.body.innerText.split('Records')[2]")
    browser.click("#reveal")
    assert browser.run("return document.getElementById('browser').checkVisibility()")
    assert not browser.run("return document.getElementById('warning').checkVisibility()")
    assert browser.text("#position") == "1 of 12"


def test_what_the_page_leaves_out_is_said(browser, page):
    revealed(browser)
    assert browser.text("#left-out") == "All 12 records of revise/chains.jsonl."
    config = report.default_config()
    config.num_records = 5
    short = page.with_name("short.html")
    short.write_text(report.page(config, *report.discover(page.parent / "w")), "utf-8")
    browser.open(short.as_uri())
    revealed(browser)
    assert browser.text("#position") == "1 of 5"
    assert browser.text("#left-out") == (
        "This page holds 5 of 12 records, evenly spaced; revise/chains.jsonl has all."
    )


def test_text_is_shown_as_it_is(browser):
    revealed(browser)
    assert record(browser).count(HOSTILE) >= 5
    assert (
        browser.run("return document.querySelectorAll('#browser img, #browser script').length") == 0
    )
    for name in ("labels", "rl_cai", "evaluate", "rate"):
        choose(browser, "collection", name)
        assert HOSTILE in record(browser)


def test_next_and_previous_by_button_key_and_slider(browser):
    revealed(browser)
    first = record(browser)
    browser.click("#next")
    second = record(browser)
    assert browser.text("#position") == "2 of 12" and second != first
    browser.click("#previous")
    assert record(browser) == first
    browser.run("document.activeElement.blur()")
    browser.press("j", "j", "Right", "k")
    assert browser.text("#position") == "3 of 12"
    browser.press("Left", "k", "k", "k")
    assert browser.text("#position") == "1 of 12" and record(browser) == first
    browser.run(
        "const slider = document.getElementById('slider');"
        "slider.value = 12; slider.dispatchEvent(new Event('input'))"
    )
    assert browser.text("#position") == "12 of 12"
    browser.press("j")
    assert browser.text("#position") == "12 of 12"
    browser.run("document.getElementById('hits').focus()")
    browser.run("document.getElementById('hit-4').click()")
    browser.press("Down")
    assert browser.text("#position") == "6 of 12"
    assert browser.run("return document.querySelector('[aria-selected]').id") == "hit-5"


def test_search_finds_a_record_and_marks_what_was_sought(browser):
    revealed(browser)
    choose(browser, "collection", "rl_cai")
    assert browser.text("#position") == "1 of 40"
    browser.run("document.activeElement.blur()")
    browser.press("/")
    assert browser.focused() == "search"
    browser.press(*"ITERATION 36")
    assert browser.text("#position") == "1 of 4"
    browser.press(*" j")  # in the field, a letter is a letter
    browser.press("Escape")
    assert browser.focused() == "record"
    shown = browser.run("return [...document.querySelectorAll('#hits li')].length")
    assert browser.text("#position") in (f"1 of {shown}", "none")
    browser.run(
        "const search = document.getElementById('search');"
        "search.value = 'will help zzz'; search.dispatchEvent(new Event('input'))"
    )
    assert browser.text("#position") == "none" and "No record has" in record(browser)
    browser.run(
        "const search = document.getElementById('search');"
        "search.value = 'score window'; search.dispatchEvent(new Event('input'))"
    )
    marks = browser.run(
        "return [...document.querySelectorAll('#record mark')].map((m) => m.textContent)"
    )
    assert set(marks) == {"score", "window"} and HOSTILE in record(browser)


def test_groups_and_orders(browser):
    revealed(browser)
    choose(browser, "collection", "rl_cai")
    choose(browser, "group", "iteration 20")
    assert browser.text("#position") == "1 of 4"
    choose(browser, "group", "every iteration")
    choose(browser, "order", "PM score, highest first")
    assert "PM score 3.63" in record(browser)
    choose(browser, "order", "PM score, lowest first")
    assert "PM score 0," in record(browser)


DIFFERENCES = [
    ("a b c", "a b c", [["same", "a b c"]]),
    ("a b c d", "a x y d", [["same", "a "], ["out", "b c"], ["in", "x y"], ["same", " d"]]),
    ("a", "", [["out", "a"]]),
    ("", "a b", [["in", "a b"]]),
    ("one two", "one <two>", [["same", "one "], ["out", "two"], ["in", "<two>"]]),
    ("a b", "a x b", [["same", "a "], ["in", "x "], ["same", "b"]]),
    ("x a y", "a y x", [["out", "x "], ["same", "a y"], ["in", " x"]]),
]


def test_differences_are_of_words(browser):
    pairs = [[before, after] for before, after, _ in DIFFERENCES]
    found = browser.run("return arguments[0].map(([a, b]) => differences(a, b))", pairs)
    assert found == [pieces for *_, pieces in DIFFERENCES]
    # Whatever is found, both texts can be read off it; also of texts too long to compare.
    words = ["alpha", "beta", "gamma  ", "\n"]
    texts = [" ".join(words[i * j % 4] for j in range(40)) for i in range(5)]
    long = [" ".join(f"{side}{i}" for i in range(1500)) for side in "ab"]
    cases = [[a, b] for a in texts for b in texts] + [long]
    for (before, after), pieces in zip(
        cases, browser.run("return arguments[0].map(([a, b]) => differences(a, b))", cases)
    ):
        assert "".join(text for kind, text in pieces if kind != "in") == before
        assert "".join(text for kind, text in pieces if kind != "out") == after


def test_changes_of_a_revision_are_marked_and_can_be_hidden(browser):
    revealed(browser)
    choose(browser, "group", "revised once")
    count = "return document.querySelectorAll('#record ins, #record del').length"
    assert browser.run(count) >= 2
    browser.run("document.activeElement.blur()")
    browser.press("d")
    assert browser.run(count) == 0
    assert browser.run("return document.getElementById('changes').ariaPressed") == "false"
    browser.click("#changes")
    assert browser.run(count) >= 2


def test_a_plot_says_its_values_under_the_pointer(browser):
    script = """
        const svg = [...document.querySelectorAll('figure')].find(
            (figure) => figure.textContent.startsWith('PM score')).querySelector('svg');
        svg.scrollIntoView();
        const box = svg.getBoundingClientRect(), x = box.left + arguments[0] * box.width;
        const values = JSON.parse(svg.dataset.series)[0].points;
        svg.dispatchEvent(new PointerEvent('pointermove', {clientX: x, clientY: box.top + 9}));
        const text = svg.parentNode.querySelector('output').textContent;
        svg.dispatchEvent(new PointerEvent('pointerleave'));
        return [text, svg.parentNode.querySelector('output'), values.at(-1)[1], values[0][1]];
    """
    text, gone, last, first = browser.run(script, 0.99)
    assert text == f"step 39: {float(f'{last:.4g}'):g}" and gone is None
    assert browser.run(script, 0.01)[0] == f"step 0: {float(f'{first:.4g}'):g}"


def test_a_phone_needs_no_horizontal_scroll(browser):
    browser.size(360, 740)
    revealed(browser)
    options = browser.run("return [...document.getElementById('collection').options].length")
    for i in range(options):
        browser.run(
            "const c = document.getElementById('collection');"
            "c.value = arguments[0]; c.dispatchEvent(new Event('change'))",
            i,
        )
        browser.run("document.querySelectorAll('details').forEach((one) => one.open = true)")
        width = (
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        scroll, client = browser.run(width)
        assert client == 360 and scroll <= client


def test_dark_and_light_differ_and_both_can_be_read(browser):
    # WCAG: relative luminance, and at least 4.5 to 1 for text.
    script = """
        const probe = document.createElement('i');
        document.body.append(probe);
        const luminance = (name) => {
            probe.style.color = `var(${name})`;
            const [r, g, b] = getComputedStyle(probe).color.match(/\\d+/g).map((v) => {
                const s = v / 255;
                return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const pairs = [['--ink', '--paper'], ['--soft', '--paper'], ['--soft', '--card'],
            ['--warn', '--warn-card'], ['--in-ink', '--in'], ['--out-ink', '--out'],
            ['--ink', '--mark'], ...[0, 1, 2, 3, 4, 5].map((i) => [`--s${i}`, '--paper'])];
        const found = pairs.map(([a, b]) => {
            const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
            return [a, b, (x + 0.05) / (y + 0.05)];
        });
        return [getComputedStyle(document.body).backgroundColor, found];
    """
    papers = []
    for scheme in ("light", "dark"):
        browser.size(1200, 900, scheme)
        paper, pairs = browser.run(script)
        papers.append(paper)
        assert [pair for pair in pairs if pair[2] < 4.5] == []
    assert papers == ["rgb(252, 252, 250)", "rgb(21, 23, 26)"]


def test_everything_is_reached_by_tab_has_a_name_and_shows_its_focus(browser):
    revealed(browser)
    assert browser.focused() == "collection"
    reached = []
    for _ in range(8):
        reached.append(browser.focused())
        outline = "const s = getComputedStyle(document.activeElement); return s.outlineStyle"
        assert browser.run(outline) != "none", reached
        browser.press("Tab")
    order = ["collection", "search", "group", "order", "hits", "next", "slider", "changes"]
    assert [name for name in reached if name] == order
    unnamed = browser.run("""
        return [...document.querySelectorAll('button, input, select, [role], article')].filter(
            (node) => !(node.ariaLabel || node.labels?.length || node.textContent.trim())
        ).map((node) => node.outerHTML)
    """)
    assert unnamed == []


def test_a_long_list_of_records_is_made_as_it_is_read(browser, page, tmp_path):
    """20,000 records: opened, searched and walked through without making 20,000 items at once."""
    text = page.read_text("utf-8")
    start = text.index('<script id="records" type="application/json">')
    start = text.index(">", start) + 1
    data = json.loads(text[start : text.index("</script>", start)])
    (one, *_) = [of for of in data["collections"] if of["what"] == "RL samples"]
    record_of = one["records"][0]
    one["records"] = [record_of | {"id": f"r{i}", "title": f"title {i}"} for i in range(20_000)]
    many = tmp_path / "many.html"
    rest = text[text.index("</script>", start) :]
    many.write_text(text[:start] + embedded({"collections": [one]}) + rest, "utf-8")
    browser.open(many.as_uri())
    revealed(browser)
    count = "return document.querySelectorAll('#hits li').length"
    assert browser.text("#position") == "1 of 20,000" and browser.run(count) == 200
    slider = (
        "const slider = document.getElementById('slider');"
        "slider.value = arguments[0]; slider.dispatchEvent(new Event('input'))"
    )
    browser.run(slider, 10_000)
    selected = "return document.querySelector('#hits [aria-selected]').textContent"
    assert browser.run(selected) == "title 9999" and browser.run(count) == 200
    browser.run("document.getElementById('hits').focus()")
    browser.press(*["Down"] * 3)
    assert browser.run(selected) == "title 10002"
    for ends in ("scrollHeight", "clientHeight - list.clientHeight"):
        browser.run(f"const list = document.getElementById('hits'); list.scrollTop = list.{ends};")
        browser.run("document.getElementById('hits').dispatchEvent(new Event('scroll'))")
    titles = browser.run(
        "return [...document.querySelectorAll('#hits li')].map((item) => item.textContent)"
    )
    first = int(titles[0].split()[1])
    assert titles == [f"title {i}" for i in range(first, first + len(titles))]
    assert 600 <= len(titles) <= 1000 and first < 9900
    browser.run(
        "const search = document.getElementById('search');"
        "search.value = 'title 1999'; search.dispatchEvent(new Event('input'));"
    )
    # 1999, 11999, and 19990 to 19999.
    assert browser.text("#position") == "1 of 12" and browser.run(count) == 12

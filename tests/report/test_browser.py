"""The report in a real browser: headless Chromium, light and dark, wide and as narrow as a phone."""

import json
import re
import shutil
import subprocess

import pytest
from records import made_record

from edgeqkv.report.content import content
from edgeqkv.report.page import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium to look at the page")
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    records = [made_record(), made_record("Q-MQA", milliseconds=7.77, cache_mib=3)]
    (folder / "report.html").write_text(page(content(records, [])))
    return folder / "report.html"


def chromium(report, *arguments):
    profile = report.parent / "profile"
    done = subprocess.run(
        [CHROMIUM, *QUIET, f"--user-data-dir={profile}", *map(str, arguments), f"file://{report}"],
        capture_output=True,
        timeout=120,
        check=True,
    )
    shutil.rmtree(profile, ignore_errors=True)
    return done.stdout.decode(), done.stderr.decode()


def test_the_page_opens_without_errors_or_requests(report):
    log = report.parent / "net.json"
    dom, said = chromium(report, "--enable-logging=stderr", "--v=0", f"--log-net-log={log}", "--dump-dom")
    assert "decodes 1.3 times as fast" in dom
    assert "7.77 7.77 7.77" in dom
    assert "CONSOLE" not in said
    assert [url for url in requested(log) if not url.startswith(("file://", "data:"))] == []


def test_the_net_log_would_show_a_request(report):
    leaky = report.parent / "leaky.html"
    leaky.write_text(
        report.read_text().replace("default-src 'none'; ", "").replace("</main>", "<img src=http://127.0.0.1:9/x></main>")
    )
    leaky.write_text(leaky.read_text().replace("img-src data:", "img-src *"))
    log = report.parent / "leaky.json"
    chromium(leaky, f"--log-net-log={log}", "--dump-dom")
    assert "http://127.0.0.1:9/x" in requested(log)


def requested(log):
    """The URLs that the page made the browser ask for; those that a fresh profile asks for by itself name their origin."""
    text = log.read_text()
    try:
        data = json.loads(text)
    except json.JSONDecodeError:  # a browser that ends at once may leave the list open
        data = json.loads(text.rstrip().rstrip(",") + "]}")
    kinds = {number: name for name, number in data["constants"]["logEventTypes"].items()}
    started = [
        event["params"] for event in data["events"] if kinds[event["type"]] == "URL_REQUEST_START_JOB" and "params" in event
    ]
    ours = [p for p in started if "initiator" in p and p["initiator"] != "not an origin"]
    return [p["url"] for p in ours if "url" in p]


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (500, False)])
def test_it_is_drawn(report, width, dark):
    """What a screenshot can tell: it is light or dark as asked, and its drawings have their colours."""
    image = pytest.importorskip("matplotlib.image")
    shot = report.parent / f"{width}-{dark}.png"
    more = ["--blink-settings=preferredColorScheme=0"] if dark else []
    chromium(report, f"--window-size={width},1600", f"--screenshot={shot}", *more)
    pixels = (image.imread(shot)[..., :3] * 255).round().astype(int)
    paper = pixels[2, 2]
    assert (paper < 64).all() if dark else (paper > 240).all()
    first = (0xF0, 0x80, 0x3C) if dark else (0xD5, 0x5E, 0x00)
    assert (abs(pixels - first).max(axis=-1) <= 3).sum() > 200, "the cache of the first record"


def test_it_prints_on_few_pages(report):
    """Plots stay whole and beside each other, tables are no wider than the paper, and the table of every number is left out."""
    paper = report.parent / "report.pdf"
    chromium(report, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())) <= 4


def test_nothing_is_wider_than_a_phone(report):
    """Only tables scroll, inside their boxes. The page measures itself; the script is the test's, added to a copy."""
    measured = report.parent / "measured.html"
    script = "<script>document.title = 'width ' + document.documentElement.scrollWidth + ' ' + innerWidth</script></main>"
    text = report.read_text().replace("default-src 'none'; ", "").replace("</main>", script)
    measured.write_text(text)
    dom, _ = chromium(measured, "--window-size=500,900", "--dump-dom")
    scroll, inner = dom.partition("<title>width ")[2].partition("</title>")[0].split()
    assert int(scroll) <= int(inner)

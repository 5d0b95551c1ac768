"""The page in a real browser: nothing of what users typed runs there, and the page itself forbids what might."""

import re
import shutil
import subprocess

import pytest

from tests.pipelines.conftest import HOSTILE
from tests.pipelines.test_report import Page

pytestmark = pytest.mark.system

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SMUGGLED = "<script>document.title = 'it ran'</script><img src=x onerror=\"document.body.id = 'it ran too'\">"


def open_in_browser(path, folder):
    """The document as a browser has it after its scripts have had their time."""
    if BROWSER is None:
        pytest.skip("no chromium is installed (apt-get install chromium)")
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}",
             "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout


def test_nothing_that_a_user_typed_runs(demo, tmp_path):
    raw = demo.page.read_text()
    document = open_in_browser(demo.page, tmp_path)
    page = Page(document)
    assert "script" not in page.tags
    assert not {name for name in page.attributes if name.startswith("on")}
    assert re.search("<title>(.*)</title>", document)[1] == re.search("<title>(.*)</title>", raw)[1]
    assert "alert(1)" in "".join(page.text)  # it is there, as text
    assert "<script>alert(1)" in HOSTILE


def test_what_would_get_past_the_escaping_is_forbidden_by_the_page_itself(demo, tmp_path):
    spoiled = demo.page.read_text().replace("</body>", SMUGGLED + "</body>")
    for name, text, runs in (("spoiled", spoiled, False),
                             ("unguarded", re.sub("<meta http-equiv[^>]*>", "", spoiled), True)):
        path = tmp_path / f"{name}.html"
        path.write_text(text)
        document = open_in_browser(path, tmp_path / name)
        assert ("<title>it ran</title>" in document) is runs
        assert ('id="it ran too"' in document) is runs

"""The page in a browser without a network: nothing is cut, nothing scrolls sideways, light and dark differ."""

import html
import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest

from numdl.audit._shown import page as report_page
from tests.audit import made

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
OFFLINE = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")]


def opened(folder, page, *arguments):
    """What the browser says about a page."""
    call = [BROWSER, *OFFLINE, f"--user-data-dir={folder / 'profile'}", *arguments, page.as_uri()]
    return subprocess.run(call, capture_output=True, text=True, timeout=120).stdout


def picture(folder, page, width, dark):
    file = folder / f"{page.stem}-{width}-{dark}.png"
    look = ("--blink-settings=preferredColorScheme=0",) if dark else ()
    opened(folder, page, f"--screenshot={file}", f"--window-size={width},2600", *look)
    return matplotlib.image.imread(file)[..., :3]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name in ("report", "hostile"):
        page = report_page.page(getattr(made, name)(), made.proof() if name == "report" else None)
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["report", "hostile"])
@pytest.mark.parametrize("width", [1280, 390])
def test_light_and_dark_at_both_widths(pages, name, width):
    light, dark = (picture(pages, pages / f"{name}.html", width, dark) for dark in (False, True))
    assert light.shape == dark.shape == (2600, width, 3)
    assert np.median(light) > 0.9 and np.median(dark) < 0.2
    for shown in (light, dark):
        assert (np.ptp(shown.reshape(-1, 3), axis=0) > 0.5).all()  # ink on paper
        margin = shown[:, -4:]
        assert np.ptp(margin, axis=(0, 1)).max() < 0.02  # nothing runs out of the page


@pytest.mark.parametrize("name", ["report", "hostile"])
def test_nothing_is_wider_than_a_phone_and_every_picture_is_there(pages, name):
    probe = (
        "<iframe id=f width={width} height=2600 style='border:0' srcdoc='{page}'></iframe><script>onload = () => {{"
        "const page = document.getElementById('f').contentDocument, images = [...page.images]; document.title = "
        "JSON.stringify([page.documentElement.scrollWidth, images.filter(i => !i.naturalWidth).length, images.length])"
        "}}</script>"
    )
    inside = html.escape((pages / f"{name}.html").read_text(encoding="utf-8"))
    for width in (1280, 390):
        frame = pages / f"{name}-{width}.html"
        frame.write_text(f"<title></title>{probe.format(width=width, page=inside)}", encoding="utf-8")
        found = opened(pages, frame, "--dump-dom", "--window-size=1400,2700")
        wide, broken, images = map(int, re.search(r"<title>\[(\d+),(\d+),(\d+)\]</title>", found).groups())
        assert wide == width and not broken and images >= 8

"""Images of the page in the README: `hgrn2 serve` of a run, some text, a saved state, in Chromium.

python tools/page_picture.py runs/demo docs/images/page.png    # and page-dark.png, page-phone.png beside it
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "web"))
from browser import Page, chromium

SIZE, PHONE = (1180, 800), (390, 844)
DONE = "document.getElementById('status').textContent.startsWith('Done')"
TOKENS, MORE = 420, 6
"""New tokens, and those of "Go on" after them, which show how much of what was there before each layer still holds."""


def main(run: str, out: str) -> None:
    """Serve the run, write with it in a headless browser, and save images of the page: light, dark, on a phone."""
    command = [sys.executable, "-m", "hgrn2", "serve", run, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as page:
            page.look(*SIZE)
            page.open(address)
            page.until("document.body.dataset.ready === 'true'")
            write(page, "go", max_tokens=TOKENS, seed=3, temperature=0.7)
            page.ask("document.getElementById('save').click()")
            page.until("document.querySelectorAll('#states li').length === 1")
            write(page, "more", max_tokens=MORE)
            page.until(f"document.getElementById('held').textContent.includes('after {MORE - 1} more')")
            page.ask("document.getElementById('text').scrollTop = 0")
            page.ask("document.querySelectorAll('.token')[60].click()")
            page.screenshot(path, whole=False)
            page.look(*SIZE, dark=True)
            page.screenshot(path.with_stem(f"{path.stem}-dark"), whole=False)
            page.look(*PHONE, phone=True)
            page.screenshot(path.with_stem(f"{path.stem}-phone"), whole=False)
    finally:
        server.terminate()
        server.wait()


def write(page: Page, button: str, **fields: Any) -> None:
    """Press a button and wait for the text."""
    for name, value in fields.items():
        page.ask(f"document.getElementById('{name}').value = {value}")
    page.ask("document.getElementById('status').textContent = ''")
    page.ask(f"document.getElementById('{button}').click()")
    page.until(DONE)


if __name__ == "__main__":
    main(*sys.argv[1:3])

"""The image of the page in the README: `hgrn2 serve` of a run, some text, a saved state, in Chromium.

python tools/page_picture.py runs/demo docs/images/page.png
"""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "web"))
from browser import chromium

SIZE = (1180, 800)
DONE = "document.getElementById('status').textContent.startsWith('Done')"


def main(run: str, out: str) -> None:
    command = [sys.executable, "-m", "hgrn2", "serve", run, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as page:
            page.look(*SIZE)
            page.open(address)
            page.until("document.body.dataset.ready === 'true'")
            for name, value in (("max_tokens", 420), ("seed", 3), ("temperature", 0.7)):
                page.ask(f"document.getElementById('{name}').value = {value}")
            page.ask("document.getElementById('go').click()")
            page.until(DONE)
            page.ask("document.getElementById('save').click()")
            page.until("document.querySelectorAll('#states li').length === 1")
            page.ask("document.getElementById('text').scrollTop = 0")
            page.ask("document.querySelectorAll('.token')[60].click()")
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(Path(out), whole=False)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main(*sys.argv[1:3])

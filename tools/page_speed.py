"""How quick an exported page is in Chromium: until it is ready, until the first token, tokens/s. For an idle machine.

python tools/page_speed.py page [--repeats 3]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "web"))
from browser import chromium, served

PROMPT = "ROMEO:\nIf I profane with my unworthiest hand this holy shrine, the gentle fine is this: my lips, two "[:100]
TOKENS = 600
FIRST = """new Promise((found) => {
    const box = document.getElementById('text'), began = performance.now();
    new MutationObserver(() => { if (box.querySelector('.token')) found(performance.now() - began); })
        .observe(box, { childList: true, subtree: true });
    document.getElementById('go').click();
})"""


def measure(folder: Path) -> tuple[float, float, float]:
    """(seconds until ready, seconds until the first token of a prompt of 100 characters, tokens/s)."""
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as page, served(folder) as address:
        page.look()
        began = time.perf_counter()
        page.open(address)
        page.until("document.body.dataset.ready === 'true'")
        ready = time.perf_counter() - began
        values = json.dumps({"prompt": PROMPT, "max_tokens": TOKENS})
        page.ask(f"for (const [id, value] of Object.entries({values})) document.getElementById(id).value = value")
        page.ask("document.getElementById('greedy').checked = true")
        first = page.ask(FIRST) / 1000
        page.until("document.getElementById('status').textContent.startsWith('Done')")
        return ready, first, float(page.ask("document.getElementById('speed').textContent").split()[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    rows = [measure(given.folder) for _ in range(given.repeats)]
    ready, first, speed = (statistics.median(column) for column in zip(*rows, strict=True))
    print(
        f"ready after {ready:.2f} s, first token after {first:.2f} s, {speed:.0f} tokens/s (medians of {given.repeats})"
    )

"""The exported page in Chromium: its text is that of `hgrn2 generate`, its states are those of the command line."""

import json
from pathlib import Path

import pytest
import small_page
import torch
from browser import Page, served
from small_page import LETTERS, Exported

from hgrn2.cli.main import entry
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.generate.loading import load
from hgrn2.generate.snapshots import Snapshot, load_snapshot, save_snapshot
from hgrn2.inspect import differences, effective_rank

PROMPT = "Caf\u00e9 noir, \u65e5 and more"
GREEDY = SamplingConfig(greedy=True)
DONE = "/^(Done|Stopped|The text)/.test(document.getElementById('status').textContent)"


def greedy(exported: Exported, prompt: str, tokens: int, state: Snapshot | None = None) -> tuple[str, Snapshot]:
    made = exported.generator.generate(prompt, GenerationConfig(max_tokens=tokens, sampling=GREEDY), state)[0]
    return made.text, made.snapshot


def click(page: Page, selector: str) -> None:
    page.ask(f"document.querySelector({json.dumps(selector)}).click()")


def fill(page: Page, **values: object) -> None:
    for name, value in values.items():
        kind = "checked" if isinstance(value, bool) else "value"
        page.ask(f"document.getElementById('{name}').{kind} = {json.dumps(value)}")


def write(page: Page, prompt: str, tokens: int = 40, button: str = "#go") -> str:
    """Press the button and return what the text view holds when all is written, the prompt left out."""
    fill(page, prompt=prompt, max_tokens=tokens, greedy=True)
    before = page.ask("document.querySelectorAll('.token').length") if button == "#more" else 0
    page.ask("document.getElementById('status').textContent = ''")
    click(page, button)
    page.until(DONE)
    assert page.ask("document.querySelectorAll('.token').length") == before + tokens
    return page.ask("Array.from(document.querySelectorAll('.token'), (one) => one.textContent).join('')")


def save(page: Page) -> None:
    count = page.ask("document.querySelectorAll('#states li').length")
    click(page, "#save")
    page.until(f"document.querySelectorAll('#states li').length === {count + 1}")


def table(page: Page) -> list[list[float]]:
    """Numbers of the table of states, by layer and head; of two in a cell the second."""
    page.until("document.querySelectorAll('#found td').length > 0")
    rows = page.ask(
        "Array.from(document.querySelectorAll('#found tbody tr'), (row) => Array.from(row.cells, (c) => c.textContent))"
    )
    return [[float(cell.split(" · ")[-1]) for cell in row[1:]] for row in rows]


def test_greedy_text_is_that_of_generate(page: Page, exported: Exported) -> None:
    want, _ = greedy(exported, PROMPT, 80)
    assert write(page, PROMPT, 40) == want[:40]
    assert write(page, PROMPT, 40, "#more") == want
    assert page.ask("document.querySelector('#text').textContent") == PROMPT + want
    assert page.ask("document.querySelectorAll('#gates td').length") == 3 * 2
    page.until("document.querySelectorAll('#held meter').length === 3")
    assert write(page, PROMPT, 10) == want[:10]  # the state of the text before was not written to


def test_memory_lengths_and_what_is_held(page: Page, exported: Exported) -> None:
    """Of the text that was read: the numbers of `hgrn2.inspect`."""
    from hgrn2.inspect import trace

    made = write(page, PROMPT, 6)
    ids = exported.generator.tokenizer.encode(PROMPT + made)[:-1]  # the last token is not read yet
    found = trace(exported.generator.model, ids.tolist())
    page.until("document.querySelector('#held').textContent.includes('after 5 more tokens')")
    cells = page.ask("Array.from(document.querySelectorAll('#gates td'), (one) => one.textContent)")
    want = [float(length) for layer in found.layers for length in layer.memory_along()[-1]]
    assert [float(cell.replace(",", "")) for cell in cells] == pytest.approx(want, rel=0.02)
    shares = page.ask("Array.from(document.querySelectorAll('#held meter'), (one) => one.value)")
    left = [layer.terms.log_forget[-5:].sum(0).mean(-1).exp().mean() for layer in found.layers]
    assert shares == pytest.approx([float(x) for x in left], rel=1e-3)


def test_certainty_of_tokens(page: Page, exported: Exported) -> None:
    made = write(page, PROMPT, 5)
    ids = torch.from_numpy(exported.generator.tokenizer.encode(PROMPT + made).astype("int64"))
    with torch.no_grad():
        logits, _ = exported.generator.model(ids[None, :-1])
    chances = logits[0].softmax(-1).gather(1, ids[1:, None])[-5:, 0]
    doubts = page.ask(
        "Array.from(document.querySelectorAll('.token'), (one) => Number(one.style.getPropertyValue('--doubt')))"
    )
    assert [1 - doubt for doubt in doubts] == pytest.approx(chances.tolist(), abs=1.5e-3)
    page.ask("document.getElementById('text').focus()")
    page.press("End", code=35)
    said = page.ask("document.getElementById('token').textContent")
    assert said.startswith("Token 5, ")
    assert "Likeliest: " in said
    page.press("ArrowLeft", code=37)
    assert page.ask("document.getElementById('token').textContent").startswith("Token 4, ")
    assert page.ask("document.querySelectorAll('.token.chosen').length") == 1


def test_states_are_files_of_the_command_line(page: Page, exported: Exported, tmp_path: Path) -> None:
    """Saved in the page and gone on from in PyTorch, and the other way round."""
    want, _ = greedy(exported, PROMPT, 60)
    made = write(page, PROMPT, 30)
    save(page)
    page.downloads(tmp_path)
    page.ask("document.querySelector('#states button[aria-label^=File]').click()")
    files: list[Path] = []
    for _ in range(200):
        files = [path for path in tmp_path.glob("*.safetensors") if path.stat().st_size]
        if files:
            break
        page.ask("new Promise((go) => setTimeout(go, 25))")
    model, tokenizer = exported.generator.model, exported.generator.tokenizer
    snapshot = load_snapshot(files[0], model, tokenizer)
    assert snapshot.tokens == len(PROMPT) + 30
    assert made + greedy(exported, "", 30, snapshot)[0] == want
    _, there = greedy(exported, "Something else", 10)
    save_snapshot(tmp_path / "other.safetensors", there, model, tokenizer)
    page.choose_file("#load", tmp_path / "other.safetensors")
    page.until("document.querySelectorAll('#states li').length === 2")
    click(page, "#states button[aria-label='Go on from: other']")
    assert write(page, "", 20) == greedy(exported, "", 20, there)[0]
    assert write(page, " and", 20) == greedy(exported, " and", 20, there)[0]
    damaged = bytearray((tmp_path / "other.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(damaged)
    page.choose_file("#load", tmp_path / "damaged.safetensors")
    page.until("!document.getElementById('error').hidden")
    assert "checksum" in page.ask("document.getElementById('error').textContent")


def test_what_states_hold_and_how_far_they_are_apart(page: Page, exported: Exported) -> None:
    states = []
    for prompt in (PROMPT, "Something else"):
        write(page, prompt, 20)
        states.append(greedy(exported, prompt, 20)[1].state)
        save(page)
    click(page, "#states button[aria-label^='What it holds']")  # the newest one
    ranks = [effective_rank(layer.recurrent[0]) for layer in states[1].layers]
    for got, want in zip(table(page), ranks, strict=True):
        assert got == pytest.approx(want.tolist(), abs=0.06)
    page.ask("document.getElementById('found').replaceChildren()")
    click(page, "#compare button")
    for got, want in zip(table(page), differences(*states), strict=True):
        assert got == pytest.approx(want.distance.tolist(), abs=0.006)
        assert float(want.distance.max()) > 0.1
    click(page, "#states button[aria-label^=Fork]")
    page.until("document.querySelectorAll('#states li').length === 3")
    click(page, "#states button[aria-label^=Delete]")
    page.until("document.querySelectorAll('#states li').length === 2")


def test_by_keyboard_alone(page: Page) -> None:
    fill(page, max_tokens=100_000, greedy=False, seed="7", prompt="")
    page.ask("document.getElementById('prompt').focus()")
    page.type("To be")
    page.press("Enter", code=13, control=True)
    page.until("document.querySelectorAll('.token').length > 30")
    assert page.ask("document.getElementById('go').disabled")
    page.press("Escape", code=27)
    page.until("document.getElementById('status').textContent.startsWith('Stopped')")
    count = page.ask("document.querySelectorAll('.token').length")
    assert count < 100_000
    assert not page.ask("document.getElementById('go').disabled")
    unnamed = page.ask("""Array.from(document.querySelectorAll('button, input, select, textarea'))
        .filter((one) => !(one.labels?.length || one.textContent.trim() || one.getAttribute('aria-label')))
        .map((one) => one.outerHTML)""")
    assert unnamed == []


def test_a_seed_gives_the_same_text(page: Page) -> None:
    texts = []
    for seed in ("5", "5", "6"):
        fill(page, prompt="A", max_tokens=30, greedy=False, seed=seed, temperature=1)
        page.ask("document.getElementById('status').textContent = ''")
        click(page, "#go")
        page.until(DONE)
        texts.append(page.ask("document.querySelector('#text').textContent"))
    assert texts[0] == texts[1] != texts[2]


def test_mistakes_are_said(page: Page) -> None:
    fill(page, prompt="Stra\u00dfe", max_tokens=5)
    click(page, "#go")
    page.until("!document.getElementById('error').hidden")
    assert "\u00df" in page.ask("document.getElementById('error').textContent")
    fill(page, prompt="", temperature=0)
    click(page, "#go")
    page.until("document.getElementById('error').textContent.includes('Temperature')")
    fill(page, temperature=1)
    click(page, "#go")
    page.until("document.getElementById('error').textContent.includes('at least one character')")
    assert write(page, "ok", 5)


def test_sampling_keeps_what_generate_keeps(page: Page) -> None:
    """Which of four tokens can be drawn, and how often, with each filter."""
    chances = [0.5, 0.3, 0.15, 0.05]
    drawn = page.ask(f"""(async () => {{
        const {{ choose, randomOf }} = await import(new URL('local/sampling.js', document.baseURI));
        const logits = Float32Array.from({chances}, Math.log), random = randomOf(3);
        return [{{}}, {{top_k: 2}}, {{top_p: 0.7}}, {{min_p: 0.2}}, {{temperature: 0.5}}].map((options) => {{
            const counts = [0, 0, 0, 0];
            for (let n = 0; n < 20000; n++) counts[choose(logits, options, random)] += 1 / 20000;
            return counts;
        }});
    }})()""")
    squares = [x * x for x in chances]
    wanted = [
        chances, [5 / 8, 3 / 8, 0, 0], [5 / 8, 3 / 8, 0, 0], [x / 0.95 for x in chances[:3]] + [0],
        [x / sum(squares) for x in squares],
    ]  # fmt: skip
    for got, want in zip(drawn, wanted, strict=True):
        assert got == pytest.approx(want, abs=0.015)
        assert [x == 0 for x in got] == [x == 0 for x in want]


def test_bytes_make_characters_however_they_are_cut(page: Page) -> None:
    text = "a\u00e9\u65e5\U0001f600z"
    for cut in range(1, 5):
        found = page.ask(f"""(async () => {{
            const {{ TextStream }} = await import(new URL('local/tokenizer.js', document.baseURI));
            const all = new TextEncoder().encode({json.dumps(text)}), stream = new TextStream();
            let text = '';
            for (let n = 0; n < all.length; n += {cut}) text += stream.push(all.slice(n, n + {cut}));
            return text + stream.pending.length;
        }})()""")
        assert found == text + "0"


MIXED = (
    "It's 12 o'clock,  don\u2019t\u00a0you\tsee?\n\n\n  def f(x):\u2003return x**2 "
    "\u65e5\u672c\u8a9e \U0001f600\u0085 <|endoftext|> we'll "
)


def test_byte_level_bpe(browser: Page, runtime: Path, tmp_path: Path) -> None:
    """Ids of the page are those of the tokenizers library, and greedy text is that of `hgrn2 generate`."""
    pytest.importorskip("tokenizers", reason="pip install 'hgrn2[text]'")
    from hgrn2.data.learning import learn_bpe

    tokenizer = learn_bpe([MIXED * 3, "the quick brown fox and the lazy dog, the fox's den. " * 20], 400)
    model = small_page.save(tmp_path / "model", tokenizer)
    assert entry(["export", "web", str(model), str(tmp_path / "page"), "--runtime", str(runtime)]) == 0
    loaded = load(model, "cpu")
    with served(tmp_path / "page") as address:
        browser.open(address)
        browser.until("document.body.dataset.ready === 'true'")
        for text in (MIXED, "the  fox's\r\n", "", " ", "a" * 50):
            found = browser.ask(f"""(async () => {{
                const {{ tokenizerOf }} = await import(new URL('local/tokenizer.js', document.baseURI));
                const [{{ tokenizer }}, vocabulary] = await Promise.all(['model.json', 'vocabulary.json'].map(
                    async (name) => (await fetch(name)).json()));
                const made = tokenizerOf(tokenizer, vocabulary), ids = made.encode({json.dumps(text)});
                return [ids, ids.flatMap((id) => Array.from(made.decode(id)))];
            }})()""")
            assert found == [tokenizer.encode(text).tolist(), list(text.encode())]
        want = Generator(loaded.model, tokenizer).generate("the fox", GenerationConfig(max_tokens=25, sampling=GREEDY))
        write(browser, "the fox", 25)
        shown = browser.ask("document.querySelector('#text').textContent").removeprefix("the fox")
        assert shown == want[0].text


def colours(path: Path) -> torch.Tensor:
    """[H,W,3] in 0..1."""
    image = pytest.importorskip("matplotlib.image", reason="images are read by matplotlib")
    return torch.from_numpy(image.imread(path))[..., :3]


def test_light_and_dark_wide_and_narrow(page: Page, tmp_path: Path) -> None:
    write(page, PROMPT, 120)
    save(page)
    for dark in (False, True):
        for width, height in ((1200, 900), (390, 844)):
            page.look(width, height, dark=dark, phone=width < 500)
            image = colours(page.screenshot(tmp_path / f"{width}-{dark}.png"))
            assert image.shape[1] >= width
            assert (float(image.mean()) < 0.35) == dark
            assert float(image.std()) > 0.05
            assert page.ask("document.documentElement.scrollWidth") <= width
    narrow = page.ask("""Array.from(document.querySelectorAll('button')).filter((one) => one.offsetParent)
        .map((one) => one.getBoundingClientRect()).filter((box) => box.right > 390 || box.height < 24).length""")
    assert narrow == 0


CONTRAST = """(() => {
    const numbers = (colour) => {
        const found = colour.match(/[\\d.]+/g).map(Number), whole = colour.startsWith('color') ? 1 : 255;
        return [...found.slice(0, 3).map((x) => x / whole), found[3] ?? 1];
    };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const over = (top, below) => [0, 1, 2].map((n) => top[n] * top[3] + below[n] * (1 - top[3]));
    const ratio = (one, below) => {
        const style = getComputedStyle(one);
        const [ink, back] = [light(numbers(style.color)), light(over(numbers(style.backgroundColor), below))];
        return (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05);
    };
    const token = document.querySelector('.token'), cell = document.querySelector('td.cell');
    token.style.setProperty('--doubt', 1);
    cell.style.setProperty('--level', 1);
    const box = numbers(getComputedStyle(document.getElementById('text')).backgroundColor);
    const page = numbers(getComputedStyle(document.body).backgroundColor);
    const faint = document.querySelector('.faint'), button = document.getElementById('go');
    return [ratio(token, box), ratio(cell, page), ratio(faint, page), ratio(button, page)];
})()"""


def test_words_are_legible_on_every_colour(page: Page) -> None:
    """A contrast of 4.5 at least, as the Web Content Accessibility Guidelines want it."""
    write(page, PROMPT, 5)
    page.until("document.querySelectorAll('td.cell').length > 0")
    for dark in (False, True):
        page.look(dark=dark)
        assert min(page.ask(CONTRAST)) >= 4.5


def test_without_network(page: Page, exported: Exported) -> None:
    page.until("navigator.serviceWorker.ready.then((one) => Boolean(one.active))")
    page.until("caches.keys().then((names) => names.length === 1)")
    page.until("Boolean(navigator.serviceWorker.controller)")
    address = page.ask("document.baseURI")
    page.offline(True)
    try:
        page.open(f"{address}index.html")
        page.until("document.body.dataset.ready === 'true'")
        assert write(page, PROMPT, 10) == greedy(exported, PROMPT, 10)[0]
    finally:
        page.offline(False)
        page.ask(
            "navigator.serviceWorker.getRegistrations().then((all) => Promise.all(all.map((one) => one.unregister())))"
        )


@pytest.mark.parametrize("weights", ["int8", pytest.param("int4", marks=pytest.mark.full)])
def test_rounded_weights(browser: Page, exported: Exported, runtime: Path, tmp_path: Path, weights: str) -> None:
    out = tmp_path / weights
    command = ["export", "web", str(exported.model), str(out), "--weights", weights, "--runtime", str(runtime)]
    assert entry(command) == 0
    smaller = (out / "model.onnx.data").stat().st_size
    assert smaller < 0.6 * (exported.folder / "model.onnx.data").stat().st_size
    with served(out) as address:
        browser.open(address)
        browser.until("document.body.dataset.ready === 'true'")
        assert weights in browser.ask("document.getElementById('about').textContent")
        assert set(write(browser, PROMPT, 20)) <= set(LETTERS)

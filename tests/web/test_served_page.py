"""The page of `hgrn2 serve` in Chromium."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import Page
from served import Running
from small_page import save

from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.inspect import trace

PROMPT = "Caf\u00e9 noir and more"
DONE = "/^(Done|Stopped|The text)/.test(document.getElementById('status').textContent)"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(model=model, states=tmp_path_factory.mktemp("states"))
    yield running
    running.stop()


@pytest.fixture
def page(browser: Page, server: Running) -> Iterator[Page]:
    browser.requests.clear()
    browser.problems.clear()
    browser.look()
    browser.open(server.url + "/")
    browser.until("document.body.dataset.ready === 'true'")
    yield browser
    assert browser.problems == []
    assert [one for one in browser.requests if not one.startswith((server.url, "blob:"))] == []


def write(page: Page, prompt: str, tokens: int, button: str = "go") -> str:
    values = json.dumps({"prompt": prompt, "max_tokens": tokens})
    page.ask(f"""{{
        for (const [id, value] of Object.entries({values})) document.getElementById(id).value = value;
        document.getElementById('greedy').checked = true;
        document.getElementById('status').textContent = '';
        document.getElementById('{button}').click();
    }}""")
    page.until(DONE)
    return page.ask("Array.from(document.querySelectorAll('.token'), (one) => one.textContent).join('')")


def test_text_certainty_and_gates(page: Page, server: Running) -> None:
    generator = server.service.generator
    greedy = GenerationConfig(max_tokens=30, sampling=SamplingConfig(greedy=True))
    want = generator.generate(PROMPT, greedy)[0].text
    assert write(page, PROMPT, 12) == want[:12]
    ids = torch.from_numpy(generator.tokenizer.encode(PROMPT + want[:11]).astype("int64"))
    found = trace(generator.model, ids)
    page.until("document.querySelector('#held').textContent.includes('after 11 more tokens')")
    cells = page.ask("Array.from(document.querySelectorAll('#gates td'), (one) => one.textContent)")
    lengths = [float(length) for layer in found.layers for length in layer.memory_along()[-1]]
    assert [float(cell.replace(",", "")) for cell in cells] == pytest.approx(lengths, rel=0.02)
    doubts = page.ask(
        "Array.from(document.querySelectorAll('.token'), (one) => Number(one.style.getPropertyValue('--doubt')))"
    )
    assert [1 - doubt for doubt in doubts[:11]] == pytest.approx(found.logprobs[-11:].exp().tolist(), abs=2e-3)
    page.ask("document.getElementById('text').focus()")
    page.press("Home", code=36)
    said = page.ask("document.getElementById('token').textContent")
    assert said.startswith("Token 1, ")
    assert "Likeliest: " in said
    assert write(page, PROMPT, 18, "more") == want


def test_states(page: Page, server: Running, tmp_path: Path) -> None:
    made = write(page, PROMPT, 8)
    page.ask("document.getElementById('save').click()")
    page.until("document.querySelectorAll('#states li').length === 1")
    (saved,) = server.store.all("")
    assert saved.tokens == len(PROMPT) + 8
    page.ask("document.querySelector('#states button[aria-label^=Fork]').click()")
    page.until("document.querySelectorAll('#states li').length === 2")
    page.ask("document.querySelector('#compare button').click()")
    page.until("document.querySelectorAll('#found td').length === 3 * 2")
    assert page.ask("Array.from(document.querySelectorAll('#found td'), (c) => c.textContent)") == ["0.00"] * 6
    page.ask("document.querySelector(\"#states button[aria-label^='What it holds']\").click()")
    page.until("document.querySelector('#found caption').textContent.includes('effective rank (of 16)')")
    page.ask("document.querySelector(\"#states button[aria-label^='Go on from']\").click()")
    rest = write(page, "", 10)
    whole = GenerationConfig(max_tokens=18, sampling=SamplingConfig(greedy=True))
    assert made + rest == server.service.generator.generate(PROMPT, whole)[0].text
    page.downloads(tmp_path)
    page.ask("document.querySelector('#states button[aria-label^=File]').click()")
    files: list[Path] = []
    for _ in range(200):
        files = [path for path in tmp_path.glob("*.safetensors") if path.stat().st_size]
        if files:
            break
        page.ask("new Promise((go) => setTimeout(go, 25))")
    page.choose_file("#load", files[0])
    page.until("document.querySelectorAll('#states li').length === 3")
    for left in (2, 1, 0):
        page.ask("document.querySelector('#states button[aria-label^=Delete]').click()")
        page.until(f"document.querySelectorAll('#states li').length === {left}")
    assert server.store.all("") == []


def test_memory_lengths_are_left_out_where_nobody_looks(page: Page) -> None:
    page.ask("document.getElementById('lengths').checked = false")
    write(page, PROMPT, 5)
    assert page.ask("document.querySelectorAll('#gates td, #held meter').length") == 0
    assert page.ask("document.querySelectorAll('.token').length") == 5


def test_stopping_frees_the_slot(page: Page, server: Running) -> None:
    page.ask("""{
        document.getElementById('prompt').value = 'On and on';
        document.getElementById('max_tokens').value = 4000;
        document.getElementById('go').click();
    }""")
    page.until("document.querySelectorAll('.token').length > 3")
    page.press("Escape", code=27)
    page.until("document.getElementById('status').textContent.startsWith('Stopped')")
    assert server.idle()


def test_mistakes_are_said(page: Page) -> None:
    page.ask("""{
        document.getElementById('prompt').value = 'Stra\u00dfe';
        document.getElementById('go').click();
    }""")
    page.until("document.getElementById('error').textContent.includes('\u00df')")
    assert page.problems
    page.problems.clear()  # the browser itself reports the status 400


def test_a_conversation(browser: Page, server: Running) -> None:
    server.service.about["chat"] = True
    try:
        browser.open(server.url + "/")
        browser.until("document.body.dataset.ready === 'true'")
        assert not browser.ask("document.getElementById('modes').hidden")
        for said in ("Good day", "And now"):
            before = browser.ask("document.querySelectorAll('.token').length")
            write(browser, said, 6)
            assert 1 <= browser.ask("document.querySelectorAll('.token').length") - before <= 6
            assert browser.ask("document.getElementById('prompt').value") == ""
        turns = browser.ask("Array.from(document.querySelectorAll('#text .turn'), (one) => one.textContent)")
        assert turns == ["You", "small"] * 2
    finally:
        server.service.about["chat"] = False


def test_a_key(browser: Page, model: Path, tmp_path: Path) -> None:
    key = "0123456789abcdef"
    keyed = Running(model=model, states=tmp_path, keys=(key,))
    try:
        browser.open(keyed.url + "/")
        for given in ("a-wrong-key-of-16", key):
            browser.until("!document.getElementById('key-form').hidden")
            browser.type(given)
            browser.press("Enter", code=13, text="\r")
        browser.until("document.body.dataset.ready === 'true'")
        assert len(write(browser, PROMPT, 5)) > 0
    finally:
        keyed.stop()


def test_what_the_server_says_of_its_page(server: Running) -> None:
    with urllib.request.urlopen(server.url + "/") as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert b'content="server"' in answer.read()
    with urllib.request.urlopen(server.url + "/v1/models") as answer:
        about = json.load(answer)["data"][0]["hgrn2"]
    assert about == {"chat": False, "example": "", "layers": [{"kind": "hgru2", "heads": 2}] * 3}

"""WikiText perplexity: texts and counts of lm-eval and of the data set's papers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'hgrn2[eval]'")

from hgrn2.cli.main import entry
from hgrn2.errors import UserError
from hgrn2.eval.words import read_pages
from hgrn2.models.saved import load_model

PAGES = (
    " \n = First Page = \n \n It was 1 @,@ 000 years old , and ( so it is ) well @-@ known . \n"
    " = = Part = = \n End . \n",
    " = B = \n \n Another ' quoted ' page <unk> . \n",
)


@pytest.fixture
def wiki(tmp_path: Path) -> Path:
    path = tmp_path / "wiki.tokens.txt"
    path.write_text("".join(PAGES))
    return path


def measured(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert entry(["eval", *map(str, arguments), "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def nats(model: Any, text: str) -> float:
    """-ln p of a page after an end of document."""
    ids = torch.tensor([[256, *text.encode()]])
    with torch.no_grad():
        logits, _ = model(ids[:, :-1])
    return torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()


def test_pages(wiki: Path, tmp_path: Path) -> None:
    assert read_pages(wiki) == list(PAGES)
    assert read_pages(wiki, 1) == [PAGES[0]]
    (tmp_path / "other.txt").write_text("= not a page =\n")
    with pytest.raises(UserError, match="is not a WikiText file"):
        read_pages(tmp_path / "other.txt")
    with pytest.raises(UserError, match="does not exist"):
        read_pages(tmp_path / "nowhere")
    with pytest.raises(UserError, match="--limit is 0"):
        read_pages(wiki, 0)


def test_both_texts(wiki: Path, saved: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

    folder = saved()
    model = load_model(folder)
    prose, raw = measured(capsys, folder, "--wikitext", wiki)["results"]
    total, words, size = 0.0, 0, 0
    for page in PAGES:
        total += nats(model, wikitext_detokenizer({"page": page}))
        counted = process_results({"page": page}, (0.0,))
        words, size = words + counted["word_perplexity"][1], size + counted["byte_perplexity"][1]
    assert (prose["text"], prose["words"], prose["bytes"], prose["pages"]) == ("detokenised", words, size, 2)
    assert prose["nats"] == pytest.approx(total, rel=1e-5)
    assert prose["word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-4)
    assert prose["bits_per_byte"] == pytest.approx(total / size / math.log(2), rel=1e-5)
    total = sum(nats(model, page) for page in PAGES)
    counts = sum(len(line.split()) + 1 for line in "".join(PAGES).splitlines())
    assert (raw["text"], raw["words"], raw["tokens"]) == ("verbatim", counts, len("".join(PAGES)))
    assert raw["token_perplexity"] == pytest.approx(math.exp(total / raw["tokens"]), rel=1e-4)
    assert raw["word_perplexity"] == pytest.approx(math.exp(total / counts), rel=1e-4)


def test_what_is_shown(
    wiki: Path, saved: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "rows"))
    assert entry(["eval", str(saved()), "--wikitext", str(wiki), "--device", "cpu", "--limit", "1", *out]) == 0
    shown = capsys.readouterr().out
    assert "detokenised" in shown
    assert "not comparable with published ones" in shown
    rows = [json.loads(line) for line in (tmp_path / "rows" / "eval.jsonl").read_text().splitlines()]
    assert [row["case"]["text"] for row in rows] == ["detokenised", "verbatim"]


def test_the_test_split_has_the_published_count_of_words(real_data: Path) -> None:
    pages = read_pages(real_data / "wikitext103-test.tokens.txt.xz")
    titles = [page.split("\n")[0 if page.startswith(" = ") else 1] for page in pages]
    assert titles[0] == " = Robert Boulter = "
    assert len(pages) == 62  # as in the data set that lm-eval reads, document by document
    assert sum(len(page.split()) + page.count("\n") for page in pages) == 245_569

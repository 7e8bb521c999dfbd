"""Loss by position against a plain loop, and the figure of it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hgrn2.cli.main import entry
from hgrn2.data.corpus import Corpus, prepare
from hgrn2.data.tokenizer import ByteTokenizer
from hgrn2.errors import UserError
from hgrn2.eval import positions
from hgrn2.eval.positions import buckets, by_position, pieces
from hgrn2.files import write_json
from hgrn2.models.language import LanguageModel

TEXTS = ["one line of a text that is long enough " * 4, "short", "another text, and it goes on and on " * 3]


@pytest.fixture
def corpus() -> Corpus:
    return Corpus.from_documents(TEXTS, ByteTokenizer())


def test_pieces_lie_within_documents(corpus: Corpus) -> None:
    lengths = [len(text) + 1 for text in TEXTS]
    starts = [0, lengths[0], lengths[0] + lengths[1]]
    assert pieces(corpus, 50) == [0, 50, 100, starts[2], starts[2] + 50]
    assert pieces(corpus, 50, 2) == [0, 50]
    assert pieces(corpus, lengths[0]) == [0]
    with pytest.raises(UserError, match=f"no document has 1,000 tokens: the longest has {lengths[0]}"):
        pieces(corpus, 1_000)
    for options, message in (((1,), "--length is 1"), ((50, 0), "--limit is 0")):
        with pytest.raises(UserError, match=message):
            pieces(corpus, *options)


@pytest.mark.parametrize(("batch_size", "segment"), [(1, 1024), (4, 7), (8, 1)])
def test_buckets_equal_a_plain_loop(
    make_model: Callable[..., LanguageModel],
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    segment: int,
) -> None:
    monkeypatch.setattr(positions, "LOGITS_AT_ONCE", 257 * 3)
    model, length = make_model(), 50
    starts = pieces(corpus, length)
    losses = []
    for start in starts:
        ids = torch.from_numpy(corpus.read(start, length))[None]
        with torch.no_grad():
            logits, _ = model(ids[:, :-1])
        losses.append(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="none").numpy())
    wanted = np.array(losses)  # [pieces, positions 1 to 49]
    told: list[tuple[str, int, int]] = []
    options = {"batch_size": batch_size, "segment": segment}
    found = by_position(model, corpus, starts, length, **options, progress=lambda *now: told.append(now))
    assert [(one.first, one.stop) for one in found] == [(1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 50)]
    for one in found:
        part = wanted[:, one.first - 1 : one.stop - 1]
        assert one.nats_per_token == pytest.approx(part.mean(), rel=1e-5)
        assert one.stderr == pytest.approx(part.mean(1).std(ddof=1) / len(starts) ** 0.5, rel=1e-4)
        assert one.tokens == part.size
    assert sum(one.tokens for one in found) == wanted.size
    assert told[-1] == ("reading", wanted.size, wanted.size)


def test_one_piece_has_no_standard_error() -> None:
    found = buckets(np.array([[1.0, 2.0, 4.0]]))
    assert [(one.first, one.stop, one.nats_per_token) for one in found] == [(1, 2, 1.0), (2, 4, 3.0)]
    assert np.isnan(found[0].stderr)


def test_from_the_outside(saved: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "text.txt").write_text(TEXTS[0])
    arguments = [str(saved()), "--data", str(tmp_path / "text.txt"), "--positions", "--length", "40", "--device", "cpu"]
    plot, rows = ("--plot", str(tmp_path / "p.png")), ("--out", str(tmp_path / "rows"))
    assert entry(["eval", *arguments, *plot, *rows]) == 0
    shown = capsys.readouterr().out
    assert "3 pieces of 40 tokens" in shown
    assert "32 to 39" in shown
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "rows" / "eval.jsonl").read_text().splitlines()) == 6
    assert entry(["eval", *arguments, "--json", "--limit", "1"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["pieces"], values["trained_on"]) == (1, None)
    assert values["buckets"][0]["stderr"] is None
    assert entry(["eval", *arguments[:-3], "4000"]) == 2
    assert "give a smaller --length" in capsys.readouterr().err


def test_the_split_of_a_run_is_the_one_it_was_measured_on(
    saved: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "docs.jsonl"
    lines.write_text("".join(json.dumps({"text": f"document {n} " * 5}) + "\n" for n in range(40)))
    prepare([lines], tmp_path / "corpus", "bytes", valid_fraction=0.25)
    checkpoint = saved("run/checkpoints/step-00000010")
    (checkpoint / "tokenizer").rename(tmp_path / "run" / "tokenizer")
    data = {"source": str(tmp_path / "corpus"), "valid_split": "train"}
    write_json(tmp_path / "run" / "config.json", {"kind": "lm", "data": data, "train": {"sequence_length": 32}})
    arguments = ["eval", str(tmp_path / "run"), "--json", "--device", "cpu"]
    for extra, split in (([], "train"), (["--split", "valid"], "valid"), (["--data", data["source"]], "valid")):
        assert entry([*arguments, *extra, "--method", "carried"]) == 0
        assert json.loads(capsys.readouterr().out)["data"] == f"{tmp_path / 'corpus'} ({split})"
    assert entry([*arguments, "--positions", "--length", "30"]) == 0
    assert json.loads(capsys.readouterr().out)["trained_on"] == 32

"""The embedded text: whole, split as published numbers split it, and refused when damaged."""

import lzma

import numpy as np
import pytest

from hgrn2.data import samples
from hgrn2.data.tokenizer import ByteTokenizer
from hgrn2.errors import UserError


def test_shakespeare_and_its_split() -> None:
    text = samples.shakespeare()
    assert len(text) == 1_115_394
    assert text.startswith("First Citizen:\nBefore we proceed any further")
    sample = samples.shakespeare_corpora()
    assert (sample.train.n_tokens, sample.valid.n_tokens) == (1_003_854, 111_540)
    assert sample.tokenizer.vocab_size == sample.train.vocab_size == 65
    assert sample.valid.text_bytes == 111_540
    parts = [sample.tokenizer.decode(corpus.read(0, corpus.n_tokens)) for corpus in (sample.train, sample.valid)]
    assert "".join(parts) == text


def test_shakespeare_with_another_tokenizer() -> None:
    sample = samples.shakespeare_corpora(ByteTokenizer())
    assert sample.valid.n_tokens == 111_541
    assert np.array_equal(sample.valid.read(111_540, 1), [256])


@pytest.mark.parametrize("data", [b"not xz", lzma.compress(b"another text")])
def test_damaged_sample(monkeypatch: pytest.MonkeyPatch, tmp_path, data: bytes) -> None:
    (tmp_path / "tinyshakespeare.txt.xz").write_bytes(data)
    monkeypatch.setattr(samples, "files", lambda _: tmp_path)
    with pytest.raises(UserError, match="install hgrn2 again"):
        samples.shakespeare()

"""`hgrn2 convert to-hf`: model and tokenizer in one folder that the Auto classes load."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hgrn2.cli.main import entry
from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from hgrn2.data.vocabulary import JsonTokenizer, byte_alphabet
from hgrn2.errors import UserError
from hgrn2.models.hf.writing import write_hf
from hgrn2.models.saved import save_model

TEXT = "ROMEO:\n  Is the day so young? \u00e4\u20ac \U0001f600\t<|endoftext|> "


def byte_level() -> JsonTokenizer:
    """A vocabulary file whose settings would add a token, pad and cut, which ours never does."""
    letters = dict(byte_alphabet())
    vocabulary = letters | {"he": 256, "\u0120t": 257, "<|endoftext|>": 258}
    special = {"id": 258, "content": "<|endoftext|>", "special": True, "single_word": False, "lstrip": False,
               "rstrip": False, "normalized": False}  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end, text = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    known = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [258], "tokens": ["<|endoftext|>"]}}
    adds = {"type": "TemplateProcessing", "single": [end, text], "pair": [text], "special_tokens": known}
    cuts = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    return JsonTokenizer(json.dumps({
        "version": "1.0", "truncation": cuts,
        "padding": None, "added_tokens": [special], "normalizer": None, "pre_tokenizer": level, "post_processor": adds,
        "decoder": level, "model": {"type": "BPE", "vocab": vocabulary, "merges": [["h", "e"], ["\u0120", "t"]]},
    }))  # fmt: skip


@pytest.mark.parametrize("kind", ["bytes", "chars", "tokenizer.json"])
def test_tokenizers_give_the_same_ids(kind: str, make: Callable, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    own: Tokenizer = {
        "bytes": ByteTokenizer, "chars": lambda: CharTokenizer(TEXT), "tokenizer.json": byte_level
    }[kind]()  # fmt: skip
    assert write_hf(tmp_path / "hf", make("hgru2", vocab_size=300), own) == []
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in (TEXT.replace("<|endoftext|>", ""), "Is the day", "", "  \n\n "):
        ids = own.encode(text).tolist()
        assert fast(text).input_ids == ids
        assert fast.decode(ids) == own.decode(ids) == text
    assert fast.eos_token_id == own.eot
    if own.eot is not None:
        batch = fast(["Is", "Is the day"], padding=True, return_tensors="pt")
        assert batch["attention_mask"][0, 0] == 0  # padding stands on the left
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
        assert model.generation_config.eos_token_id == own.eot
        assert model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape[0] == 2
    assert len({path.stat().st_mode for path in (tmp_path / "hf").iterdir()}) == 1


def test_the_command(make: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = make("hgru2 conv", vocab_size=257)
    save_model(tmp_path / "own", own, ByteTokenizer())
    assert entry(["convert", "to-hf", str(tmp_path / "own"), str(tmp_path / "hf"), "--shard-size", "20KB"]) == 0
    assert "hgru2, 3 layers of 16" in capsys.readouterr().out
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 1
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    back = model.to_language_model()
    assert back.config == own.config
    assert all(torch.equal(back.state_dict()[name], value) for name, value in own.state_dict().items())
    assert (tmp_path / "hf" / "tokenizer.json").is_file()


def test_without_a_tokenizer_it_says_so(make: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "own", make("hgru1"))
    assert entry(["convert", "to-hf", str(tmp_path / "own"), str(tmp_path / "hf")]) == 0
    assert "note: no tokenizer belongs to this model" in capsys.readouterr().out
    assert transformers.AutoConfig.from_pretrained(tmp_path / "hf").model_type == "hgrn"

    class Strange(ByteTokenizer):
        kind: Any = "strange"

    notes = write_hf(tmp_path / "b", make("hgru2", vocab_size=257), Strange())
    assert notes == ["a tokenizer of kind strange has no tokenizer.json: none was written"]


def test_refused(make: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "own", make("hgru2"))
    for arguments, message in (
        (["own", "own"], "already exists"),
        (["none", "hf"], "does not exist"),
        (["own", "hf", "--shard-size", "big"], "write it as 500MB"),
    ):
        paths = [str(tmp_path / name) for name in arguments[:2]]
        assert entry(["convert", "to-hf", *paths, *arguments[2:]]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "hf").exists()
    with pytest.raises(UserError, match="the tokenizer has 257 ids, the model knows 23"):
        write_hf(tmp_path / "hf", make("hgru2"), ByteTokenizer())
    assert not (tmp_path / "hf").exists()

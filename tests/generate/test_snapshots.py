"""Going on from a saved state is going on: same tokens, same numbers; and a file that does not fit says why."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer
from hgrn2.errors import UserError
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.generate.snapshots import Snapshot, load_snapshot, save_snapshot
from hgrn2.models.language import LanguageModel

A, B = "abc def.\nbad ", "beg. a cab\n"
GREEDY = SamplingConfig(greedy=True)


def config(max_tokens: int, **values: object) -> GenerationConfig:
    return GenerationConfig(max_tokens=max_tokens, sampling=GREEDY, **values)


def through_file(generator: Generator, snapshot: Snapshot, folder: Path) -> Snapshot:
    path = folder / "state.safetensors"
    save_snapshot(path, snapshot, generator.model, generator.tokenizer, overwrite=True)
    return load_snapshot(path, generator.model, generator.tokenizer)


@pytest.mark.parametrize("mixer", ["hgru2", "conv", "hgru1", "hgru1_real"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prompt_in_two_parts(
    make_model: Callable[..., LanguageModel], tmp_path: Path, mixer: str, dtype: torch.dtype
) -> None:
    generator = Generator(make_model(mixer=mixer).to(dtype), CharTokenizer("abcdefgh .\n"))
    whole = generator.generate(A + B, config(30))[0]
    first = generator.generate(A, config(0))[0].snapshot
    second = generator.generate(B, config(30), through_file(generator, first, tmp_path))[0]
    assert second.ids == whole.ids
    assert second.snapshot.tokens == whole.snapshot.tokens == len(A + B) + 30
    if dtype == torch.float64:
        for mine, other in zip(
            second.snapshot.state.tensors().values(), whole.snapshot.state.tensors().values(), strict=True
        ):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_generation_in_two_parts_is_the_same_to_the_bit(chars: Generator, tmp_path: Path) -> None:
    whole = chars.generate(A, config(30))[0]
    first = chars.generate(A, config(11))[0]
    second = chars.generate("", config(19), through_file(chars, first.snapshot, tmp_path))[0]
    assert first.ids + second.ids == whole.ids
    assert (second.snapshot.last, second.snapshot.tokens) == (whole.snapshot.last, whole.snapshot.tokens)
    for mine, other in zip(
        second.snapshot.state.tensors().values(), whole.snapshot.state.tensors().values(), strict=True
    ):
        assert torch.equal(mine, other)


def test_prompt_after_generated_text(chars: Generator, tmp_path: Path) -> None:
    """The last generated token is read exactly once: as if all of the text had been the prompt."""
    first = chars.generate(A, config(7))[0]
    second = chars.generate(B, config(20), through_file(chars, first.snapshot, tmp_path))[0]
    assert second.ids == chars.generate(A + first.text + B, config(20))[0].ids


def test_one_token_prompt_and_several_samples(chars: Generator, tmp_path: Path) -> None:
    start = through_file(chars, chars.generate("a", config(0))[0].snapshot, tmp_path)
    assert start.tokens == 1
    assert not any(bool(tensor.any()) for tensor in start.state.tensors().values())  # nothing is read yet
    many = chars.generate(B, GenerationConfig(max_tokens=9, samples=3, sampling=SamplingConfig(seed=4)), start)
    one = chars.generate("a" + B, GenerationConfig(max_tokens=9, sampling=SamplingConfig(seed=6)))[0]
    assert many[2].ids == one.ids


def test_state_of_a_narrow_model(make_model: Callable[..., LanguageModel], tmp_path: Path) -> None:
    generator = Generator(make_model(mixer="conv").bfloat16(), CharTokenizer("abcdefgh .\n"))
    snapshot = generator.generate(A, config(5))[0].snapshot
    assert {tensor.dtype for tensor in snapshot.state.tensors().values()} == {torch.float32}
    again = through_file(generator, snapshot, tmp_path)
    assert generator.generate("", config(9), again)[0].ids == generator.generate("", config(9), snapshot)[0].ids


@pytest.fixture
def file(chars: Generator, tmp_path: Path) -> Path:
    snapshot = chars.generate(A, config(5))[0].snapshot
    save_snapshot(tmp_path / "s.safetensors", snapshot, chars.model, chars.tokenizer)
    return tmp_path / "s.safetensors"


def refused(path: Path, generator: Generator, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_snapshot(path, generator.model, generator.tokenizer)
    assert message in str(error.value)
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)


def test_what_the_file_says(file: Path, chars: Generator) -> None:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["format"] == "hgrn2-state-1"
    assert metadata["tokens"] == str(len(A) + 5)
    assert metadata["tokenizer_hash"] == chars.tokenizer.sha256
    assert metadata["dtype"] == "float32"
    assert len(metadata["model_hash"]) == 64


def test_not_overwritten_unless_asked(file: Path, chars: Generator) -> None:
    before = file.read_bytes()
    other = chars.generate(B, config(3))[0].snapshot
    with pytest.raises(UserError, match="already exists; it is not overwritten"):
        save_snapshot(file, other, chars.model, chars.tokenizer)
    assert file.read_bytes() == before
    save_snapshot(file, other, chars.model, chars.tokenizer, overwrite=True)
    assert load_snapshot(file, chars.model, chars.tokenizer).tokens == len(B) + 3
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_failed_write_keeps_the_old_file(file: Path, chars: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = file.read_bytes()
    monkeypatch.setattr("hgrn2.generate.snapshots.save_file", full)
    snapshot = chars.generate(B, config(3))[0].snapshot
    with pytest.raises(UserError, match=r"s.safetensors cannot be written: No space left"):
        save_snapshot(file, snapshot, chars.model, chars.tokenizer, overwrite=True)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_another_model(file: Path, chars: Generator, make_model: Callable[..., LanguageModel]) -> None:
    refused(file, Generator(make_model(seed=9), chars.tokenizer), "is a state of another model")
    refused(file, Generator(make_model(mixer="hgru1"), chars.tokenizer), "is a state of another model")
    wide = Generator(make_model().double(), chars.tokenizer)
    refused(file, wide, "was made by a model in float32, this one is in float64")


def test_another_tokenizer(file: Path, chars: Generator) -> None:
    refused(file, Generator(chars.model, CharTokenizer("abcdefgh .!")), "a text with another tokenizer")


def test_several_sequences(file: Path, chars: Generator, tmp_path: Path) -> None:
    snapshot = load_snapshot(file, chars.model, chars.tokenizer)
    two = replace(snapshot, state=snapshot.state.select([0, 0]))
    with pytest.raises(UserError, match="a snapshot holds one sequence, not 2"):
        save_snapshot(tmp_path / "two", two, chars.model, chars.tokenizer)


def rewrite(path: Path, **changes: str) -> None:
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(path), path, {**metadata, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "hgrn2-state-9"}, "has format 'hgrn2-state-9'; this program reads 'hgrn2-state-1'"),
        ({"batch": "3"}, "holds 3 sequences"),
        ({"tokens": "7"}, "is damaged: its checksum differs"),
        ({"last": "2"}, "is damaged: its checksum differs"),
        ({"model_hash": "0" * 64}, "is a state of another model"),
    ],
)
def test_changed_metadata(file: Path, chars: Generator, changes: dict, message: str) -> None:
    rewrite(file, **changes)
    refused(file, chars, message)


def test_every_flipped_byte_is_noticed(file: Path, chars: Generator) -> None:
    whole = file.read_bytes()
    for place in range(0, len(whole), 97):
        data = bytearray(whole)
        data[place] ^= 0x10
        file.write_bytes(data)
        with pytest.raises(UserError):
            load_snapshot(file, chars.model, chars.tokenizer)


def test_truncated_files(file: Path, chars: Generator) -> None:
    whole = file.read_bytes()
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(file, chars, "is damaged or not a safetensors file")


def test_other_files(file: Path, chars: Generator, tmp_path: Path) -> None:
    refused(tmp_path / "nothing", chars, "does not exist")
    refused(tmp_path, chars, "is a folder, not a saved state")
    save_file({"a": torch.zeros(3)}, tmp_path / "weights")
    refused(tmp_path / "weights", chars, "is not a saved state")
    save_file({"a": torch.zeros(3)}, tmp_path / "bare", {"format": "hgrn2-state-1"})
    refused(tmp_path / "bare", chars, "is damaged: it lacks model_hash")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({"0.recurrent": torch.zeros(1, 9)}, file, metadata)
    refused(file, chars, "its tensors are not those of this model's state")


def test_bytes_and_characters_do_not_mix(bytewise: Generator, tmp_path: Path) -> None:
    snapshot = bytewise.generate("é", config(2))[0].snapshot
    save_snapshot(tmp_path / "b", snapshot, bytewise.model, bytewise.tokenizer)
    loaded = load_snapshot(tmp_path / "b", bytewise.model, ByteTokenizer())
    assert loaded.last == snapshot.last
    refused(tmp_path / "b", Generator(bytewise.model, CharTokenizer("ab")), "another tokenizer")

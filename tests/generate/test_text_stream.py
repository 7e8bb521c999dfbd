"""Whole characters and stop texts, against what the finished text says."""

import itertools
import json
import random
from pathlib import Path

import pytest

from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from hgrn2.generate.text import StopFinder, TextStream

TEXT = "aé日本 ab𝄞é. abab日"


def streamed(tokenizer: Tokenizer, ids: list[int], before: list[int] | None = None) -> list[str]:
    stream = TextStream(tokenizer, before or [])
    return [stream.push(index) for index in ids] + [stream.finish()]


def check_stream(tokenizer: Tokenizer, text: str) -> list[str]:
    pieces = streamed(tokenizer, tokenizer.encode(text).tolist())
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    return pieces


def test_bytes_come_as_whole_characters() -> None:
    pieces = check_stream(ByteTokenizer(), TEXT)
    assert pieces[:6] == ["a", "", "é", "", "", "日"]


def test_characters() -> None:
    assert check_stream(CharTokenizer(TEXT), TEXT) == [*TEXT, ""]


def test_byte_level_bpe(bpe: Tokenizer) -> None:
    pieces = check_stream(bpe, TEXT)
    assert "ab" in pieces
    assert "" in pieces[:-1]  # a token that ends inside 日


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_random_ids_stream_to_what_they_decode_to(kind: str, bpe: Tokenizer) -> None:
    tokenizer = ByteTokenizer() if kind == "bytes" else bpe
    choice = random.Random(0)
    for _ in range(300):
        ids = [choice.randrange(tokenizer.vocab_size) for _ in range(choice.randrange(12))]
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_that_never_ends() -> None:
    ids = [*b"ab", *"日".encode()[:2]]
    assert streamed(ByteTokenizer(), ids) == ["a", "b", "", "", "\ufffd"]


def test_separators_are_silent() -> None:
    assert streamed(ByteTokenizer(), [97, 256, 98]) == ["a", "", "b", ""]


def test_tokens_joined_by_rules_over_neighbours() -> None:
    """WordPiece: `##` joins to the token before it, also to the last one of the prompt; other tokens get a space."""
    pytest.importorskip("tokenizers")
    from hgrn2.data.vocabulary import JsonTokenizer

    words = ["[UNK]", "play", "##ing", "##s", "games"]
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {word: index for index, word in enumerate(words)},
    }
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": False}
    tokenizer = JsonTokenizer(json.dumps({"model": model, "decoder": decoder, "pre_tokenizer": {"type": "Whitespace"}}))
    assert streamed(tokenizer, [1, 2, 4, 1, 3]) == ["play", "ing", " games", " play", "s", ""]
    assert streamed(tokenizer, [2, 4], before=[4, 1]) == ["ing", " games", ""]
    long = [1, 2, 4] * 20
    assert "".join(streamed(tokenizer, long)) == tokenizer.decode(long)


def test_gpt2_vocabulary(tmp_path: Path) -> None:
    shared = Path(__file__).parents[2] / ".." / "shared" / "data" / "gpt2-vocab.bpe.xz"
    if not shared.exists():
        pytest.skip("gpt2-vocab.bpe.xz is not in ../shared/data")
    pytest.importorskip("tokenizers")
    from hgrn2.data.tokenizer import load_tokenizer

    check_stream(load_tokenizer(shared), "Hello wörld 日本語 🙂🙃, naïve 𝄞!")


def cut_by_definition(text: str, stops: tuple[str, ...]) -> str:
    """Read character by character; where a stop text is complete for the first time, cut before the longest such."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


def found(pieces: list[str], stops: tuple[str, ...]) -> tuple[str, bool]:
    finder = StopFinder(stops)
    shown = ""
    for count, piece in enumerate(pieces, start=1):
        text, stopped = finder.push(piece)
        shown += text
        if stopped:
            return shown, True
        # Nothing of a stop text that is still possible is shown, and nothing else is held back.
        come = "".join(pieces[:count])
        possible = [n for stop in stops for n in range(1, len(stop)) if come.endswith(stop[:n])]
        assert len(come) - len(shown) == max(possible, default=0)
    return shown + finder.finish(), False


STOPS = [("b",), ("ab",), ("aab",), ("aba", "b"), ("abab", "ba"), ("aa", "aaa"), ("bb", "abb"), ("bab", "aabb"), ()]


@pytest.mark.parametrize("stops", STOPS)
def test_stop_texts_however_the_text_is_cut(stops: tuple[str, ...]) -> None:
    choice = random.Random(1)
    for letters in itertools.product("ab", repeat=7):
        text = "".join(letters)
        wanted = cut_by_definition(text, stops)
        places = sorted(choice.sample(range(1, 7), choice.randrange(7)))
        for cuts in ([], list(range(1, 7)), places):
            edges = [0, *cuts, 7]
            pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
            assert found(pieces, stops) == (wanted, any(stop in text for stop in stops))


def test_held_back_is_only_what_may_still_stop() -> None:
    finder = StopFinder(("User:", "\n\n"))
    assert finder.push("Hello Us") == ("Hello ", False)
    assert finder.push("e") == ("", False)
    assert finder.push("ful\n") == ("Useful", False)
    assert finder.push("x") == ("\nx", False)
    assert finder.push("\n") == ("", False)
    assert finder.finish() == "\n"

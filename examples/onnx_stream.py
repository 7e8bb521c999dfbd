"""Stream text from a folder of `hgrn2 export onnx`: numpy and onnxruntime, no PyTorch, no hgrn2.

python onnx_stream.py exported/demo --prompt "ROMEO:" --tokens 200 --temperature 0.8 --seed 1

A tokenizer.json needs `pip install tokenizers` besides; bytes and characters need nothing.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime


def read_tokenizer(folder):
    """(text -> ids, ids -> text, id that ends a document or None)"""
    saved = json.loads((folder / "hgrn2_tokenizer.json").read_text(encoding="utf-8"))
    if saved["kind"] == "bytes":
        return (
            lambda text: list(text.encode()),
            lambda ids: bytes(i for i in ids if i < 256).decode(errors="replace"),
            256,
        )
    if saved["kind"] == "chars":
        letters = saved["characters"]
        return lambda text: [letters.index(c) for c in text], lambda ids: "".join(letters[i] for i in ids), None
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.encode_special_tokens = True  # whatever stands in a prompt is text
    return lambda text: library.encode(text, add_special_tokens=False).ids, library.decode, saved["eot"]


def choose(logits, temperature, random):
    """The next id: the most probable one at temperature 0, else drawn."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return int(random.choice(len(weights), p=weights / weights.sum()))


def stream(folder, prompt, tokens, temperature, seed, threads):
    """Pieces of text as they come; the state has the same size after every token."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    encode, decode, end = read_tokenizer(folder / "tokenizer")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(folder / manifest["graph"], options, providers=["CPUExecutionProvider"])
    shapes = {name: value["shape"][1:] for name, value in manifest["inputs"].items() if name.startswith("past.")}
    state = {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}
    names = ["logits", *(name.replace("past", "present", 1) for name in state)]
    ids, made, shown, random = encode(prompt) or [end], [], "", np.random.default_rng(seed)
    for _ in range(tokens):  # the first round reads the whole prompt, every other one a single token
        feed = {"tokens": np.array([ids]), "logits_to_keep": np.array([1]), **state}
        logits, *after = session.run(names, feed)
        state = dict(zip(state, after, strict=True))
        ids = [choose(logits[0, -1, : manifest["tokenizer"]["vocab_size"]], temperature, random)]
        if ids[0] == end:
            break
        made += ids
        text = decode(made)
        if not text.endswith("\ufffd"):  # a character whose last bytes are still to come
            yield text[len(shown) :]
            shown = text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt", default="\n")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--threads", type=int, default=0, help="0: onnxruntime's choice")
    given = vars(parser.parse_args())
    print(given["prompt"], end="", flush=True)
    for piece in stream(**given):
        print(piece, end="", flush=True)
    print()

"""Texts of vLLM with our plugin are those of our own loop; `make test-vllm` makes the environment that these need."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hgrn2.data.tokenizer import ByteTokenizer
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: make test-vllm", allow_module_level=True)

HERE = Path(__file__).parent
KNOWN, VOCABULARY, TOKENS = 257, 272, 24
"""Ids of the tokenizer, of the model (a padded vocabulary), and how many are written."""
SHAPE = {"vocab_size": VOCABULARY, "width": 64, "layers": 3, "glu_width": 128}
MODELS = {
    "hgrn2": ModelConfig(**SHAPE, mixer=MixerConfig(head_size=16)),
    "every option": ModelConfig(
        **SHAPE, glu_activation="gelu", glu_bias=True, norm="layer", lower_bound="exclusive", tie_embeddings=True,
        scale_embeddings=True, mixer=MixerConfig(
            head_size=16, input_activation="silu", output_activation="sigmoid", norm="layer", scale_scores=True,
            bias=True, conv_width=4,
        ),
    ),
    "norms of heads": ModelConfig(
        **SHAPE, norm="simple_rms", lower_bound="none", mixer=MixerConfig(head_size=16, norm="head_rms")
    ),
    "fla": ModelConfig(**SHAPE, mixer=MixerConfig(head_size=16, scale_scores=True, conv_width=4)),
    "hgrn1, real": ModelConfig(**SHAPE, mixer=MixerConfig(kind="hgru1_real", input_activation="silu")),
    "hgrn1, complex": ModelConfig(**SHAPE, mixer=MixerConfig(kind="hgru1", input_activation="silu", bias=True)),
}  # fmt: skip
_DRAWN = torch.Generator().manual_seed(1)
PROMPTS = [torch.randint(256, (n,), generator=_DRAWN).tolist() for n in (5, 37, 150, 1, 64, 97, 1, 33)]
"""More than there are places, longer than a piece of a prompt, and of one token."""


def confident(config: ModelConfig) -> LanguageModel:
    """Random weights large enough that no two logits are as near as rounding."""
    torch.manual_seed(0)
    model = LanguageModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "conv" not in name:
                wide = "lower_bounds" in name or "embedding" in name
                parameter.normal_(std=1.0 if wide else 1.5 * parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


@torch.no_grad()
def greedy(model: LanguageModel, ids: list[int]) -> list[int]:
    """The ids that our own loop writes."""
    logits, state = model(torch.tensor([ids]))
    found: list[int] = []
    while True:
        found.append(int(logits[0, -1, :KNOWN].argmax()))
        if len(found) == TOKENS:
            return found
        logits, state = model(torch.tensor([found[-1:]]), state)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of one of the MODELS, in transformers' form or in flash-linear-attention's, and its tokenizer."""
    from hgrn2.models.convert import write_fla
    from hgrn2.models.hf.tokenizer import fast_tokenizer
    from hgrn2.models.hf.writing import write_hf

    place = tmp_path_factory.mktemp("models")

    def find(name: str) -> Path:
        path = place / name.replace(", ", "-").replace(" ", "-")
        if not path.exists() and name == "fla":
            write_fla(path, confident(MODELS[name]))
            fast = fast_tokenizer(ByteTokenizer())
            assert fast is not None
            fast.save_pretrained(path)
        elif not path.exists():
            write_hf(path, confident(MODELS[name]), ByteTokenizer())
        return path

    return find


def environment() -> dict[str, str]:
    """Of vLLM's processes: nothing is asked of any other machine."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def written(path: Path, prompts: list[list[int]], rounds: int = 1, **options: Any) -> list[list[dict[str, Any]]]:
    """What vLLM writes after every prompt, in a process of its own; options are those of its `LLM`."""
    asked = json.dumps({"prompts": prompts, "tokens": TOKENS, "rounds": rounds, "options": options})
    alone = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # one import of vLLM; the other tests have its further processes
    two = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"} if options.get("tensor_parallel_size") == 2 else alone
    done = subprocess.run(
        [sys.executable, str(HERE / "written.py"), str(path), asked], env=environment() | two, capture_output=True,
        text=True, check=False, timeout=900,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("WRITTEN ")]
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads(lines[-1].removeprefix("WRITTEN "))


def ids_of(texts: list[dict[str, Any]]) -> list[list[int]]:
    return [text["ids"] for text in texts]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "hgrn2"])
def test_prompts_in_pieces_and_places_used_again(name: str, folder: Callable[[str], Path]) -> None:
    want = [greedy(confident(MODELS[name]), ids) for ids in PROMPTS]
    first, again = written(folder(name), PROMPTS, 2)
    assert ids_of(first) == want
    assert ids_of(again) == want


@pytest.mark.parametrize("name", ["every option", "hgrn1, complex"])
def test_two_processes_share_the_heads(name: str, folder: Callable[[str], Path]) -> None:
    (texts,) = written(folder(name), PROMPTS, tensor_parallel_size=2)
    assert ids_of(texts) == [greedy(confident(MODELS[name]), ids) for ids in PROMPTS]


@pytest.mark.parametrize("name", ["hgrn2", "every option"])
def test_prompts_with_a_prefix_that_was_read_before(name: str, folder: Callable[[str], Path]) -> None:
    shared = torch.randint(256, (150,), generator=torch.Generator().manual_seed(2)).tolist()
    prompts = [shared + ids[:20] for ids in PROMPTS] + [shared[:70], shared]
    first, again = written(folder(name), prompts, 2, enable_prefix_caching=True)
    want = [greedy(confident(MODELS[name]), ids) for ids in prompts]
    assert ids_of(first) == want
    assert ids_of(again) == want
    assert all(text["cached"] >= 64 for text in again)


def test_one_graph_of_torch_compile(folder: Callable[[str], Path]) -> None:
    (texts,) = written(folder("every option"), PROMPTS, enforce_eager=False)
    assert ids_of(texts) == [greedy(confident(MODELS["every option"]), ids) for ids in PROMPTS]


@torch.no_grad()
def test_bfloat16_chooses_as_well_as_ours_does(folder: Callable[[str], Path]) -> None:
    """Texts may part where two logits are as near as bfloat16 resolves; the one chosen is never further behind."""
    exact = confident(MODELS["every option"])
    narrow = confident(MODELS["every option"]).bfloat16()
    (texts,) = written(folder("every option"), PROMPTS, dtype="bfloat16")
    behind, lost = [], []
    for ids, text in zip(PROMPTS, ids_of(texts), strict=True):
        whole = torch.tensor([ids + text[:-1]])
        logits, ours = (model(whole)[0][0, len(ids) - 1 :, :KNOWN].float() for model in (exact, narrow))
        lost.append((logits - ours).abs().max())
        behind.append((logits.amax(-1) - logits.gather(-1, torch.tensor(text)[:, None]).squeeze(-1)).max())
    assert max(behind) <= 2 * max(lost)
    assert max(lost) < 0.5


def test_what_is_not_offered_is_refused_by_name() -> None:
    from hgrn2.errors import UserError
    from hgrn2.vllm.checks import refuse_model

    with pytest.raises(UserError, match="not for gla"):
        refuse_model(ModelConfig(**SHAPE, lower_bound="none", mixer=MixerConfig(kind="gla", head_size=16)), 1)
    with pytest.raises(UserError, match="4 heads of hgru2 do not divide"):
        refuse_model(MODELS["hgrn2"], 3)
    with pytest.raises(UserError, match="glu_width 129"):
        refuse_model(ModelConfig(**SHAPE | {"glu_width": 129}, mixer=MixerConfig(head_size=16)), 2)

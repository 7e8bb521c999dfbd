"""The same model scored by lm-eval's own class for transformers models, which shares no code with ours."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'hgrn2[eval]'")
pytest.importorskip("transformers", reason="lm-eval's own class needs transformers")

from hgrn2.data.vocabulary import JsonTokenizer
from hgrn2.eval.zero_shot import need_harness
from hgrn2.generate.loading import Loaded
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import Found

PAIRS = [
    ("Where is the sun?", " up"),
    ("Where is the sun?", " under the sea"),
    ("Where is the sun?  ", "nowhere"),
    ("the sun", "rises"),
    ("", "no context"),
]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_answers_are_those_of_lm_evals_own_class(make_model: Callable[..., LanguageModel], word_bpe: str) -> None:
    import tokenizers
    from lm_eval.models.huggingface import HFLM
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    class Wrapped(PreTrainedModel):
        config_class = PretrainedConfig

        def __init__(self, inner: LanguageModel) -> None:
            super().__init__(PretrainedConfig())
            self.inner = inner
            self.post_init()

        def _init_weights(self, module: Any) -> None:
            """Nothing: the weights are those of `inner`."""

        def tie_weights(self, *args: Any, **kwargs: Any) -> None:
            """Nothing is tied."""

        def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
            return SimpleNamespace(logits=self.inner(input_ids)[0])

    mine = JsonTokenizer(word_bpe)
    model = make_model(mine.vocab_size)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(word_bpe), eos_token="<|endoftext|>", model_max_length=512
    )
    theirs = HFLM(pretrained=Wrapped(model), tokenizer=fast, batch_size=2, max_length=512, device="cpu")
    requests: Any = [SimpleNamespace(args=pair) for pair in PAIRS]
    lm = need_harness().HGRN2LM(Loaded(model, Found("made here"), mine))  # pyright: ignore[reportArgumentType]
    for found, wanted in zip(lm.loglikelihood(requests), theirs.loglikelihood(requests), strict=True):
        assert found[0] == pytest.approx(wanted[0], abs=1e-4)
        assert found[1] == wanted[1]
    documents: Any = [SimpleNamespace(args=("A short document about the sun. " * 3,))]
    (rolled,) = lm.loglikelihood_rolling(documents)
    assert rolled == pytest.approx(theirs.loglikelihood_rolling(documents)[0], rel=1e-5)

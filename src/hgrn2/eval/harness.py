"""A model of ours for lm-eval (https://github.com/EleutherAI/lm-evaluation-harness).

Importing this module needs lm-eval and registers the model as `hgrn2`. Installed packages are found by lm-eval releases
with plug-ins (entry point `lm_eval.models`); with others, import this module first:

    import lm_eval, hgrn2.eval.harness
    lm_eval.simple_evaluate(model="hgrn2", model_args="pretrained=runs/mine", tasks=["piqa"])

How texts become tokens follows lm-eval's own `TemplateLM`, so that numbers are comparable: spaces that end a context go
to the continuation, and a continuation's tokens are those of the joined text after as many as the context alone has.
Where a token reaches over the seam, lm-eval drops or repeats characters; here the continuation is encoded by itself.
What differs besides is the reading: a context is read once for all that is asked after it (`hgrn2.eval.scoring`), it is
never cut to a maximal length, and a document's probability is measured with one state from beginning to end.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from hgrn2.data.tokenizer import Tokenizer
from hgrn2.errors import UserError
from hgrn2.eval.requests import generation, repeats, seed_of
from hgrn2.eval.scoring import Request, Score, score
from hgrn2.generate.config import GenerationConfig
from hgrn2.generate.generator import Generator
from hgrn2.generate.loading import Loaded, load
from hgrn2.progress import Progress, silent
from hgrn2.settings import refuse

BATCH_SIZE = 32


class HGRN2LM(TemplateLM):
    """lm-eval's view of a language model and its tokenizer."""

    def __init__(
        self,
        pretrained: str | Path | Loaded,
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str | None = None,
        rescore: bool = False,
        max_gen_toks: int = 256,
        progress: Progress = silent,
        **other: Any,
    ) -> None:
        """
        Args:
            pretrained: a run folder, a checkpoint or model folder, or one that is loaded already.
            device: cpu, cuda, cuda:N; None takes a GPU where there is one.
            dtype: float32, bfloat16, float64; None keeps that of the file.
            batch_size: sequences read side by side; None and auto are 32.
            rescore: read every request from its beginning instead of sharing contexts.
            max_gen_toks: of tasks that generate and name no length of their own.
            progress: told what is done, requests so far, all of them, for each kind of request.
            other: `max_batch_size`, which lm-eval always passes and which means nothing here.
        """
        super().__init__()
        unknown = sorted(set(other) - {"max_batch_size"})
        refuse(bool(unknown), f"model hgrn2 has no argument {', '.join(unknown)}")
        if not isinstance(pretrained, Loaded):
            pretrained = load(pretrained, device or "auto", _dtype(dtype))
        self.loaded = pretrained
        self.model = pretrained.model
        self.text: Tokenizer = pretrained.need_tokenizer()
        self.batch_size = _batch_size(batch_size)
        self.rescore = rescore
        self.max_gen_toks = int(max_gen_toks)
        self.scored: list[Request] = []
        """All requests so far, for a comparison of the ways to read them."""
        self._progress = progress
        self._device = self.model.device

    @property
    def eot_token_id(self) -> int:
        """The id between documents, which also stands for an empty context; a `UserError` where there is none."""
        if self.text.eot is None:
            raise UserError(
                f"an empty context cannot be scored: the tokenizer of {self.loaded.name} has no end-of-document id "
                "to begin with"
            )
        return self.text.eot

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache of requests is named by."""
        return f"{self.text.kind}-{self.text.sha256[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; nothing is ever added to it."""
        return self.text.encode(string).tolist()

    def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(ln p(continuation | context), whether greedy decoding would produce it) of every request."""
        found = self._score(self.encode_pairs([_pair(request) for request in requests]))
        answers = [(one.log_probability, one.greedy) for one in found]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return answers

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Request]:
        """(context, continuation) texts as tokens, by the rules above; all of them encoded in one call."""
        moved = [_move_spaces(context, continuation) for context, continuation in pairs]
        contexts = list(dict.fromkeys(context for context, _ in moved))
        wholes = [context + continuation for context, continuation in moved]
        encoded = [ids.tolist() for ids in self.text.encode_documents([*contexts, *wholes])]
        known = dict(zip(contexts, encoded, strict=False))
        requests = []
        for (context, continuation), whole in zip(moved, encoded[len(contexts) :], strict=True):
            begin = known[context]
            rest = whole[len(begin) :]
            if whole[: len(begin)] != begin or (not rest and continuation):
                # A token reaches over the seam: the continuation by itself, so that no character is lost or repeated.
                rest = self.text.encode(continuation, continues=True).tolist()
            if not begin and rest:
                # As in lm-eval: the end of document stands before, unless the text begins with it.
                begin = [self.eot_token_id]
                rest = rest[1:] if rest[0] == begin[0] else rest
            requests.append(Request(tuple(begin), tuple(rest)))
        return requests

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """ln p(text) of whole documents: one state from their beginning, after the end of a document, to their end."""
        found = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            found.append(Request((self.eot_token_id,), tuple(ids)))
        answers = [one.log_probability for one in self._score(found)]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return answers

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Continuations, greedy unless a request asks to sample, each up to the first of its stop texts.

        A request that comes several times (`repeats` of a task, for pass@k) is answered by as many samples; a run of
        the evaluation anew gives the same ones. Options that nothing here does are refused by name.
        """
        pairs = [_pair(request) for request in requests]
        configs = [generation(dict(options), self.max_gen_toks) for _, options in pairs]
        answers = [""] * len(requests)
        done = 0
        for (context, config), members in repeats([*zip((c for c, _ in pairs), configs, strict=True)]).items():
            if config.sampling.greedy:
                found = [self._answers(context, config)[0]] * len(members)
            else:
                seed = seed_of(context, config.sampling.seed or 0)
                found = []
                for first in range(0, len(members), self.batch_size):
                    samples = min(self.batch_size, len(members) - first)
                    sampling = replace(config.sampling, seed=seed + first)
                    found += self._answers(context, replace(config, sampling=sampling, samples=samples))
            for number, text in zip(members, found, strict=True):
                answers[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
            done += len(members)
            self._progress("generating", done, len(requests))
        return answers

    def _answers(self, context: str, config: GenerationConfig) -> list[str]:
        prompt = context if context else [self.eot_token_id]
        return [one.text for one in Generator(self.model, self.text).generate(prompt, config)]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """What `TemplateLM` asks of its subclasses: requests in tokens."""
        found = self._score([Request(tuple(context), tuple(rest)) for _, context, rest in requests])
        return [(one.log_probability, one.greedy) for one in found]

    def _score(self, requests: list[Request]) -> list[Score]:
        self.scored += requests
        return score(self.model, requests, share=not self.rescore, batch_size=self.batch_size, progress=self._progress)


register_model("hgrn2")(HGRN2LM)  # as a call, since the decorator would hide the class's type


def _pair(request: Any) -> tuple[Any, Any]:
    """The two arguments of a request; lm-eval's own annotation says that it has one."""
    return request.args


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Spaces that end a context belong to the word after it, for tokenizers that join a space to the next word."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _dtype(name: str | None) -> torch.dtype | None:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    refuse(name not in (None, "auto", *known), f"dtype is {name!r}; choose from {', '.join(known)}")
    return known.get(name or "")


def _batch_size(value: int | str | None) -> int:
    if value is None or (isinstance(value, str) and value.startswith("auto")):
        return BATCH_SIZE
    try:
        number = int(value)
    except ValueError:
        raise UserError(f"batch_size is {value!r}; it must be a whole number or auto") from None
    refuse(number < 1, f"batch_size is {number}; it must be at least 1")
    return number

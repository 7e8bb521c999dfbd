"""What an export costs in prediction: nats/token of the graph and of the model it came from, on the same text."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hgrn2 import perplexity
from hgrn2.data.corpus import Corpus
from hgrn2.data.sources import Sources
from hgrn2.export.runtime import Session
from hgrn2.files import restored
from hgrn2.generate.loading import Loaded
from hgrn2.settings import refuse

SEGMENT = 256
LOGITS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Cost:
    """Both read the text from beginning to end with the state carried."""

    text: str
    tokens: int
    """Predicted tokens."""
    torch_nats: float
    """A token, of the float32 model in PyTorch."""
    onnx_nats: float
    torch_perplexity: float
    onnx_perplexity: float

    @property
    def more(self) -> float:
        """By which part perplexity rose: 0.01 is one hundredth."""
        return self.onnx_perplexity / self.torch_perplexity - 1

    def as_json(self) -> dict[str, Any]:
        """For manifest and `--json`."""
        return {**asdict(self), "perplexity_rise": self.more}


def open_text(path: Path, split: str, loaded: Loaded) -> Corpus:
    """A text or JSONL file, or a split of a prepared corpus, in the tokens of the model."""
    tokenizer = loaded.need_tokenizer()
    refuse(not restored(path).exists(), f"{path} does not exist")
    if path.is_dir():
        corpus = Corpus.open(path, split)
        same = corpus.tokenizer().identity() == tokenizer.identity()
        refuse(not same, f"{path} was prepared with another tokenizer than {loaded.name} has")
    else:
        corpus = Corpus.from_documents(Sources([path]).documents(), tokenizer, name=str(path))
    count = corpus.n_tokens
    refuse(count < 2, f"{path} holds {count} tokens, so there is nothing to predict; it takes at least 2")
    return corpus


def measure(session: Session, loaded: Loaded, corpus: Corpus, limit: int) -> Cost:
    """Both on the first `limit` tokens of the text."""
    text = perplexity.Beginning(corpus, limit)
    torch = perplexity.carried(loaded.model, text, segment=SEGMENT)
    nats = carried_nats(session, text, loaded.model.config.vocab_size)
    refuse(not np.isfinite(nats), "the exported graph predicts no finite probabilities for the text")
    return Cost(corpus.name, torch.tokens, torch.nats_per_token, nats, torch.perplexity, float(np.exp(nats)))


def carried_nats(session: Session, text: perplexity.Corpus, vocabulary: int) -> float:
    """Mean -ln p of every token but the first, summed in float64."""
    targets = text.n_tokens - 1
    segment = max(1, min(SEGMENT, LOGITS_AT_ONCE // vocabulary))
    state, total = session.zeros(1), 0.0
    for start in range(0, targets, segment):
        ids = text.read(start, min(segment, targets - start) + 1)
        logits, state = session(ids[None, :-1], state, keep=0)
        rows = logits[0].astype(np.float64)
        top = rows.max(-1)
        total += float((top + np.log(np.exp(rows - top[:, None]).sum(-1)) - rows[np.arange(len(rows)), ids[1:]]).sum())
    return total / targets

"""Memory for keys and values of attention over everything: how much a text may come to need, and whether it is free.

Only what attention without a window keeps is counted: every other state has a constant size, and slots bound it. A
request begins once memory for all of its texts up to their last token is free, so none is ever ended for want of it.
"""

import math
from collections.abc import Iterable

from hgrn2.layers.key_value_rows import BLOCK
from hgrn2.layers.key_values import KeyValues
from hgrn2.models.language import LanguageModel
from hgrn2.serve.request import Request
from hgrn2.serve.settings import MIB, EngineConfig


class Budget:
    """Bytes that texts may take."""

    def __init__(self, model: LanguageModel, config: EngineConfig) -> None:
        self.token_bytes = sum(
            math.prod(layer.buffer.shape[2:]) * layer.buffer.element_size()
            for layer in model.zeros(1).layers
            if isinstance(layer, KeyValues) and not layer.window
        )
        """Of one token of one text; 0 where no state grows without end."""
        self.limit = config.state_mb * MIB
        most = self.limit // self.token_bytes // BLOCK * BLOCK if self.token_bytes else 0
        self.context = min(filter(None, (most, config.context)), default=0) if self.token_bytes else 0
        """Tokens of a text with its prompt at most; 0: as many as one likes."""

    def tokens(self, request: Request) -> int:
        """Of a text of this request when it has ended, at most."""
        before = len(request.ids) if request.start is None else request.start.tokens - 1 + len(request.ids)
        return before + request.max_tokens

    def bytes(self, request: Request) -> int:
        """What one of its texts may take."""
        return -(-self.tokens(request) // BLOCK) * BLOCK * self.token_bytes

    def refusal(self, request: Request) -> str | None:
        """Why it can never be answered; None where it can."""
        if not self.token_bytes:
            return None
        tokens = self.tokens(request)
        if tokens > self.context:
            mine = f"{tokens - request.max_tokens:,} tokens and {request.max_tokens:,} new ones are wanted"
            return f"{mine}; this server holds {self.context:,} of a text, as attention keeps all of them"
        if self.bytes(request) * request.samples > self.limit:
            return f"{request.samples} texts of {tokens:,} tokens do not fit into the memory of this server"
        return None

    def fits(self, request: Request, held: Iterable[Request]) -> bool:
        """Whether all of its texts have memory beside those of `held`, each of one text in progress."""
        if not self.token_bytes:
            return True
        return sum(map(self.bytes, held)) + self.bytes(request) * request.samples <= self.limit

"""Answers in the two shapes of OpenAI's API, whole and as chunks of a stream."""

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from hgrn2.data.tokenizer import Tokenizer
from hgrn2.serve.request import Ended, Ticket, Token

FINISH: dict[Ended, str] = {"stop": "stop", "eot": "stop", "length": "length", "cut": "length"}
DONE = b"data: [DONE]\n\n"


def dumps(value: Any) -> bytes:
    """JSON in ASCII: half a surrogate pair in a text that is told back harms nobody."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + dumps(value) + b"\n\n"


@dataclass
class Choice:
    """One text of an answer as far as it has come."""

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    count: int = 0
    ended: Ended | None = None
    state: str | None = None
    """Id of the saved state."""
    begun: bool = False
    """Whether any text has come."""
    told: bool = False
    """Whether a chunk of it was sent."""
    offset: int = 0
    """Characters of the texts of its listed tokens."""


def usage(prompt: int, cached: int, new: int) -> dict[str, Any]:
    """Tokens of the request."""
    return {
        "prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip


def extras(ticket: Ticket, state_bytes: int) -> dict[str, Any]:
    """What this server tells beside OpenAI's fields."""
    began = ticket.arrived if ticket.began is None else ticket.began
    first = None if ticket.first is None else round(ticket.first - ticket.arrived, 6)
    return {
        "prefix": {"hit": ticket.cached, "why": ticket.why},
        "queued_s": round(began - ticket.arrived, 6), "first_token_s": first, "state_bytes": state_bytes,
    }  # fmt: skip


class Format:
    """What differs between the two; `kind` is chat or not."""

    def __init__(self, tokenizer: Tokenizer, model: str, *, chat: bool, listed: bool) -> None:
        """`listed`: log probabilities are asked for."""
        self.tokenizer, self.chat, self.listed = tokenizer, chat, listed
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created, self._model = int(time.time()), model

    def head(self, *, chunk: bool) -> dict[str, Any]:
        """The fields around the choices."""
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def choice(self, one: Choice, text: str, tokens: list[Token], *, chunk: bool) -> dict[str, Any]:
        """One entry of `choices`, with `text` and `tokens` of the whole or of a chunk."""
        finish = None if one.ended is None else FINISH[one.ended]
        made: dict[str, Any] = {"index": one.index, "finish_reason": finish, "logprobs": None}
        if self.listed:
            made["logprobs"] = self._chat_logprobs(tokens) if self.chat else self._logprobs(one, tokens)
        if not self.chat:
            made["text"] = text
        elif chunk:
            made["delta"] = {"content": text} if one.told else {"role": "assistant", "content": text}
        else:
            made["message"] = {"role": "assistant", "content": text, "refusal": None}
        if one.state is not None:
            made["state"] = one.state
        one.told = True
        return made

    def gates(self, one: Choice, tokens: list[Token]) -> list[dict[str, Any]]:
        """Gates of a chunk's tokens."""
        return [
            {"index": one.index, "token": token.id, "text": self._text(token.id), "layers": token.gates}
            for token in tokens
            if token.gates is not None
        ]

    def _logprobs(self, one: Choice, tokens: list[Token]) -> dict[str, Any]:
        texts = [self._text(token.id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(one.offset)
            one.offset += len(text)
        top = []
        for token in tokens:
            named: dict[str, float] = {}
            for index, logprob in token.top:
                named.setdefault(self._text(index), logprob)  # of ids with one text the most probable
            top.append(named)
        return {
            "tokens": texts, "token_logprobs": [token.logprob for token in tokens], "top_logprobs": top,
            "text_offset": offsets,
        }  # fmt: skip

    def _chat_logprobs(self, tokens: list[Token]) -> dict[str, Any]:
        return {
            "content": [
                {
                    **self._entry(token.id, token.logprob),
                    "top_logprobs": [self._entry(index, logprob) for index, logprob in token.top],
                }
                for token in tokens
            ],
            "refusal": None,
        }

    def _entry(self, index: int, logprob: float) -> dict[str, Any]:
        data = self.tokenizer.decode_bytes([index], continues=True)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    def _text(self, index: int) -> str:
        return self.tokenizer.decode([index], continues=True)

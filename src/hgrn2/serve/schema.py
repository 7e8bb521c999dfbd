"""What requests may hold. Unknown fields and values of another type are refused: nothing is taken in silence."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hgrn2.generate.config import SamplingConfig

STOPS, STOP_LENGTH = 16, 200
Text = Annotated[str, Field(max_length=64 << 20)]
StateId = Annotated[str, Field(max_length=64, description="id of a saved state")]
Id = Annotated[int, Field(ge=0, lt=1 << 31)]


class Strict(BaseModel):
    """No other fields, no other types, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """How a stream is told."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Wanted(Strict):
    """What both completions have in common."""

    model: Annotated[str, Field(max_length=200)] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=4096)] | None = None
    stop: Annotated[str, Field(min_length=1)] | list[str] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 62)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, float] | None = None
    user: Annotated[str, Field(max_length=1000)] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None

    state: StateId | None = None
    save_state: bool = False
    cache_prompt: bool = True
    ignore_eos: bool = False
    greedy: bool = False
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=1e-9, le=1e9)] = 1.0
    gates: bool = False

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        texts = [value] if isinstance(value, str) else value or []
        if len(texts) > STOPS:
            raise ValueError(f"at most {STOPS} stop texts are taken, not {len(texts)}")
        if any(not 1 <= len(text) <= STOP_LENGTH for text in texts):
            raise ValueError(f"a stop text must have 1 to {STOP_LENGTH} characters")
        return value

    @model_validator(mode="after")
    def _supported(self) -> "Wanted":
        for name in ("frequency_penalty", "presence_penalty", "logit_bias"):
            if getattr(self, name):
                raise ValueError(f"{name} is not supported; repetition_penalty is")
        if self.gates and not self.stream:
            raise ValueError("gates are told in streams only: set stream to true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options need stream to be true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, seed: int) -> SamplingConfig:
        """How tokens are chosen; temperature 0 is greedy."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return SamplingConfig(
            greedy=self.greedy or temperature == 0, repetition_penalty=self.repetition_penalty,
            temperature=temperature or 1.0, top_k=self.top_k, top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p, seed=seed,
        )  # fmt: skip


class CompletionRequest(Wanted):
    """`POST /v1/completions`."""

    prompt: Text | list[Id] | list[str] | list[list[Id]] = ""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    suffix: None = None

    @model_validator(mode="after")
    def _possible(self) -> "CompletionRequest":
        if self.echo and self.logprobs is not None:
            raise ValueError("echo does not go with logprobs: those of a prompt are not computed")
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of is not supported; n is")
        return self


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: Annotated[str, Field(max_length=100)] | None = None

    @property
    def text(self) -> str:
        """Its content, parts joined."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponseFormat(Strict):
    """Only plain text is made."""

    type: Literal["text"]


class ChatRequest(Wanted):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=100_000)]
    max_completion_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _possible(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs need logprobs to be true")
        return self


class StateRequest(Strict):
    """`POST /v1/states`."""

    prompt: Text | list[Id] = ""
    state: StateId | None = None
    name: Annotated[str, Field(max_length=1000)] = ""


class ForkRequest(Strict):
    """`POST /v1/states/{id}/fork`."""

    name: Annotated[str, Field(max_length=1000)] = ""


class CompareRequest(Strict):
    """`POST /v1/states/compare`."""

    a: StateId
    b: StateId

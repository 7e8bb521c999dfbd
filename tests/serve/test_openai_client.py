"""OpenAI's own client against a real server on this machine: completions, chat, streams, states."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from served import PROMPT, Running, asked, run

from hgrn2.data.tokenizer import ByteTokenizer
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.models.language import LanguageModel
from hgrn2.serve.engine import Engine

openai = pytest.importorskip("openai", reason="OpenAI's client is a development dependency")
KEY = "a-key-of-this-test"


@pytest.fixture(scope="module")
def server(start: Callable[..., Running]) -> Running:
    return start(keys=(KEY, "another-key-of-this-test"))


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "hgrn2"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt' here"):
        client.models.retrieve("gpt")


def test_a_completion(client: Any, model: LanguageModel) -> None:
    made = client.completions.create(model="small", prompt=PROMPT, max_tokens=30, seed=7, temperature=0.8, top_p=0.95)
    config = GenerationConfig(
        max_tokens=30, segment=16, sampling=SamplingConfig(seed=7, temperature=0.8, top_p=0.95)
    )  # fmt: skip
    wanted = Generator(model, ByteTokenizer()).generate(PROMPT, config)[0]
    assert made.choices[0].text == wanted.text
    assert made.choices[0].finish_reason == {"length": "length", "eot": "stop"}[wanted.finished]
    assert made.usage.prompt_tokens == len(PROMPT)
    assert made.usage.completion_tokens == len(wanted.ids)
    assert made.usage.total_tokens == len(PROMPT) + len(wanted.ids)
    assert made.hgrn2["state_bytes"] == model.zeros(1).nbytes


def test_a_stream_is_the_whole_in_pieces(client: Any) -> None:
    options = {"model": "small", "prompt": PROMPT, "max_tokens": 40, "seed": 3, "n": 3, "stop": ["xyz"]}
    whole = client.completions.create(**options)
    texts, finished = ["", "", ""], ["", "", ""]
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        assert chunk.usage is None
        texts[choice.index] += choice.text
        finished[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert finished == [choice.finish_reason for choice in whole.choices]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].hgrn2["first_token_s"] > 0


def test_several_prompts_and_ids(client: Any) -> None:
    several = client.completions.create(model="small", prompt=["ab", "cd"], max_tokens=5, seed=1, n=2, echo=True)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert [choice.text[:2] for choice in several.choices] == ["ab", "ab", "cd", "cd"]
    ids = client.completions.create(model="small", prompt=[97, 98], max_tokens=5, seed=1)
    assert "ab" + ids.choices[0].text == several.choices[0].text
    streamed = ["", "", "", ""]
    for chunk in client.completions.create(
        model="small", prompt=["ab", "cd"], max_tokens=5, seed=1, n=2, echo=True, stream=True
    ):  # fmt: skip
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in several.choices]


def test_log_probabilities(client: Any, make_engine: Callable[..., Engine]) -> None:
    made = client.completions.create(model="small", prompt=PROMPT, max_tokens=6, seed=2, logprobs=3)
    (events,) = run(make_engine(), asked(seed=2, max_tokens=6, logprobs=3))
    wanted = [token for event in events for token in event.tokens]  # pyright: ignore[reportAttributeAccessIssue]
    logprobs = made.choices[0].logprobs
    assert logprobs.token_logprobs == [token.logprob for token in wanted]
    assert [max(top.values()) for top in logprobs.top_logprobs] == [token.top[0][1] for token in wanted]
    assert logprobs.tokens == [bytes([token.id]).decode("utf-8", "replace") for token in wanted]
    assert logprobs.text_offset == list(range(6))  # every token of this vocabulary is a character by itself
    chat = {"model": "small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "seed": 2}
    whole = client.chat.completions.create(**chat, logprobs=True, top_logprobs=2)
    content = whole.choices[0].logprobs.content
    assert len(content) == whole.usage.completion_tokens
    assert all(len(entry.top_logprobs) == 2 for entry in content)
    assert all(entry.bytes == list(entry.token.encode()) or "�" in entry.token for entry in content)
    streamed = [
        entry
        for chunk in client.chat.completions.create(**chat, logprobs=True, top_logprobs=2, stream=True)
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == content


def test_chat(client: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    options = {"model": "small", "max_tokens": 20, "seed": 1}
    chat = client.chat.completions.create(messages=messages, **options)
    text = "system: Be brief.\nuser: Hi\nassistant:"
    plain = client.completions.create(prompt=text, stop=["\nuser:", "\nsystem:"], **options)
    assert chat.choices[0].message.content == plain.choices[0].text.removeprefix(" ")
    assert chat.choices[0].message.role == "assistant"
    assert chat.usage.prompt_tokens == len(text)
    parts = [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]
    again = client.chat.completions.create(messages=[messages[0], *parts], **options)
    assert again.choices[0].message.content == chat.choices[0].message.content
    chunks = list(client.chat.completions.create(messages=messages, stream=True, **options))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content for c in chunks) == chat.choices[0].message.content


def test_a_prompt_is_read_once(client: Any) -> None:
    prompt = "A prompt that nobody else has sent: " * 4
    usages = [
        client.completions.create(model="small", prompt=prompt, max_tokens=2, seed=1).usage for _ in range(2)
    ]  # fmt: skip
    assert [usage.prompt_tokens_details.cached_tokens for usage in usages] == [0, len(prompt) - 1]
    off = client.completions.create(model="small", prompt=prompt, max_tokens=2, extra_body={"cache_prompt": False})
    assert off.usage.prompt_tokens_details.cached_tokens == 0
    assert off.hgrn2["prefix"]["why"] == "the request asked for none"


def test_gates_of_a_stream(client: Any, model: LanguageModel) -> None:
    chunks = list(
        client.completions.create(model="small", prompt=PROMPT, max_tokens=5, stream=True, extra_body={"gates": True})
    )
    gates = [entry for chunk in chunks for entry in chunk.hgrn2["gates"]]
    assert len(gates) == 5
    assert all(len(layer) == 4 and min(layer) > 0 for entry in gates for layer in entry["layers"])
    assert chunks[-1].hgrn2["state_bytes"] == model.zeros(1).nbytes


def test_states(client: Any, server: Running) -> None:
    greedy = {"model": "small", "temperature": 0, "extra_body": {"save_state": True}}
    whole = client.completions.create(model="small", prompt=PROMPT, temperature=0, max_tokens=30)
    first = client.completions.create(prompt=PROMPT, max_tokens=12, **greedy)
    key = first.choices[0].state
    rest = client.completions.create(
        model="small", prompt="", temperature=0, max_tokens=18, extra_body={"state": key}
    )  # fmt: skip
    assert first.choices[0].text + rest.choices[0].text == whole.choices[0].text
    listed = client.get("/states", cast_to=dict)
    assert listed["data"][0]["id"] == key
    assert listed["data"][0]["tokens"] == len(PROMPT) + first.usage.completion_tokens
    fork = client.post(f"/states/{key}/fork", cast_to=dict, body={"name": "again"})
    assert (fork["parent"], fork["name"]) == (key, "again")
    same = client.post("/states/compare", cast_to=dict, body={"a": key, "b": fork["id"]})
    assert all(head["distance"] == 0 for layer in same["layers"] for head in layer["heads"])
    memory = client.get(f"/states/{key}/memory", cast_to=dict)
    assert [layer["shape"] for layer in memory["layers"]] == [[4, 8, 8]] * 2
    assert all(1 <= head["effective_rank"] <= 8 for layer in memory["layers"] for head in layer["heads"])
    read = client.post("/states", cast_to=dict, body={"prompt": PROMPT, "name": "the prompt"})
    after = client.completions.create(
        model="small", prompt="", temperature=0, max_tokens=30, extra_body={"state": read["id"]}
    )  # fmt: skip
    assert after.choices[0].text == whole.choices[0].text
    apart = client.post("/states/compare", cast_to=dict, body={"a": key, "b": read["id"]})
    assert any(head["distance"] > 0.01 for layer in apart["layers"] for head in layer["heads"])
    assert client.delete(f"/states/{key}", cast_to=dict)["deleted"]
    with pytest.raises(openai.NotFoundError, match="there is no state"):
        client.get(f"/states/{key}", cast_to=dict)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="another-key-of-this-test") as other:
        assert other.get("/states", cast_to=dict)["data"] == []
        with pytest.raises(openai.NotFoundError):
            other.get(f"/states/{read['id']}", cast_to=dict)


def test_chat_goes_on_from_a_state(client: Any) -> None:
    first = client.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "Hi"}], max_tokens=5, seed=1,
        extra_body={"save_state": True},
    )  # fmt: skip
    more = client.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "And?"}], max_tokens=5, seed=1,
        extra_body={"state": first.choices[0].state},
    )  # fmt: skip
    assert more.usage.prompt_tokens == len("user: And?\nassistant:")
    assert more.hgrn2["prefix"]["why"] == "the text goes on from a saved state"


BAD, MISSING = "BadRequestError", "NotFoundError"
MISTAKES = [
    ({"model": "gpt-4"}, MISSING, "there is no model 'gpt-4' here; this server has 'small'", "model"),
    ({"temperature": 9.5}, BAD, "temperature is 9.5: input should be less than or equal to 2", "temperature"),
    ({"stop": ["a"] * 17}, BAD, "at most 16 stop texts are taken, not 17", "stop"),
    ({"stop": [""]}, BAD, "a stop text must have 1 to 200 characters", "stop"),
    ({"n": 17}, BAD, "n is 17; this server makes 8 texts", "n"),
    ({"max_tokens": 10**6}, BAD, "max_tokens is 1000000; this server makes 100,000 at most", "max_tokens"),
    ({"max_tokens": -1}, BAD, "max_tokens is -1: input should be greater than or equal to 0", "max_tokens"),
    ({"prompt": []}, BAD, "prompt must be one to 64 texts", "prompt"),
    ({"prompt": [97, 257]}, BAD, "token id 257 is outside the vocabulary of 257", "prompt"),
    ({"seed": 2**62}, BAD, "seed is", "seed"),
    ({"presence_penalty": 1.0}, BAD, "presence_penalty is not supported", None),
    ({"extra_body": {"temprature": 1}}, BAD, "temprature is not a field", "temprature"),
    ({"extra_body": {"state": "st-0000000000000000"}}, MISSING, "there is no state 'st-", "state"),
    ({"extra_body": {"state": "../../etc/passwd"}}, MISSING, "there is no state '../../etc", "state"),
]


@pytest.mark.parametrize(("change", "error", "message", "param"), MISTAKES)
def test_mistakes(client: Any, change: dict[str, Any], error: str, message: str, param: str | None) -> None:
    with pytest.raises(getattr(openai, error)) as caught:
        client.completions.create(**{"model": "small", "prompt": "x", "max_tokens": 1, **change})
    body = caught.value.body
    assert message in body["message"]
    assert "\n" not in body["message"]
    assert body["param"] == param
    assert body["type"] in ("invalid_request_error", "not_found_error")


def test_keys(server: Running) -> None:
    for key in ("wrong", "a-key-of-this-tes", "a-key-of-this-test2"):
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client,
            pytest.raises(openai.AuthenticationError, match="give a key"),
        ):
            client.models.list()

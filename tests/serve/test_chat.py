"""`hgrn2 chat` and the conversation behind it: a value that is undone, forked and saved exactly."""

import io
from pathlib import Path

import pytest
from served import make_model, spaced

from hgrn2.cli.main import entry
from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from hgrn2.errors import UserError
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.serve.conversation import Conversation, Talk
from hgrn2.serve.templates import ChatTemplate, find_template, plain

CONFIG = GenerationConfig(max_tokens=12, sampling=SamplingConfig(seed=4))
JINJA = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def talk(tokenizer: Tokenizer | None = None, template: ChatTemplate | None = None) -> Talk:
    tokenizer = tokenizer or ByteTokenizer()
    generator = Generator(make_model(tokenizer.vocab_size), tokenizer)
    return Talk(generator, template or find_template(None), CONFIG)


def said(here: Conversation) -> list[str]:
    return [message["content"] for message in here.messages]


def take(talking: Talk, here: Conversation, *texts: str) -> Conversation:
    for text in texts:
        shown: list[str] = []
        here = talking.say(here, text, shown.append)
        assert "".join(shown) == here.messages[-1]["content"]
    return here


def test_undo_and_fork_are_exact() -> None:
    talking = talk()
    first = take(talking, Conversation(), "Hello")
    second = take(talking, first, "And then?")
    assert second.undone() is first
    again = take(talking, second.undone(), "And then?")
    assert said(again) == said(second)
    other = take(talking, first, "Something else")
    assert said(other)[:2] == said(first)
    assert said(take(talking, first, "And then?")) == said(second)  # the fork has left it alone
    with pytest.raises(UserError, match="no turn to undo"):
        Conversation().undone()


@pytest.mark.parametrize("kind", ["characters", "spaced"])
def test_turns_are_one_text(kind: str) -> None:
    """What is told turn by turn on top of states is what reading the whole text anew tells."""
    if kind == "spaced":
        pytest.importorskip("tokenizers")
    # The plain template, but that it adds no space before an answer and that nothing ends one early.
    unspaced = ChatTemplate(lambda messages: plain(messages).replace("assistant: ", "assistant:"), "unspaced")
    talking = talk(spaced() if kind == "spaced" else CharTokenizer(map(chr, [10, *range(32, 127)])), unspaced)
    here = take(talking, Conversation(), "the dog", "a fox is not")
    assert not here.reread
    assert here.snapshot is not None
    generator = talking.generator
    assert here.before is not None
    read = here.written[: len(here.written) - len(here.messages[-1]["content"])]
    if kind == "characters":
        (made,) = generator.generate(read, GenerationConfig(max_tokens=12, sampling=SamplingConfig(seed=4 + 3)))
        assert made.snapshot.tokens == here.snapshot.tokens
        assert made.text == here.messages[-1]["content"]
    assert here.written.startswith("user: the dog\nassistant:")
    assert "\nuser: a fox is not\nassistant:" in here.written


def test_a_template_that_rewrites_is_read_anew() -> None:
    talking = talk(template=ChatTemplate(lambda messages: f"{len(messages)} turns: ", "counting"))
    here = take(talking, Conversation(), "one", "two")
    assert here.reread
    assert here.written.startswith("3 turns: ")


def test_an_end_of_document_is_left_out() -> None:
    tokenizer = ByteTokenizer()
    talking = talk(tokenizer)
    here = take(talking, Conversation(), "Hello")
    assert here.snapshot is not None
    ended = Conversation.after(type(here.snapshot)(here.snapshot.state, tokenizer.eot, here.snapshot.tokens))
    other = Conversation.after(type(here.snapshot)(here.snapshot.state, ord("\n"), here.snapshot.tokens))
    without = take(talking, ended, "And?")
    # The line end that begins the next message takes the place of the end of document.
    (made,) = talking.generator.generate(
        "user: And?\nassistant:", GenerationConfig(max_tokens=12, sampling=SamplingConfig(seed=5), stop=("\nuser:",)),
        other.snapshot,
    )  # fmt: skip
    assert without.messages[-1]["content"] == made.text.removeprefix(" ")


def test_templates(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "{{ 7 * 7 }}"}]
    assert find_template(None)(messages) == "user: {{ 7 * 7 }}\nassistant:"
    (tmp_path / "chat_template.jinja").write_text(JINJA)
    assert find_template(tmp_path)(messages) == "<user>{{ 7 * 7 }}</user><assistant>"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ raise_exception(\'no\') }}"}')
    with pytest.raises(UserError, match="the chat template refuses these messages: no"):
        find_template(tmp_path)(messages)
    for attack in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__ }}",
    ):
        (tmp_path / "t.jinja").write_text(attack + "{{ 'x' }}")
        try:
            text = find_template(None, tmp_path / "t.jinja")(messages)
        except UserError:
            continue
        assert "class" not in text
    (tmp_path / "t.jinja").write_text("{% for %}")
    with pytest.raises(UserError, match="is no Jinja template"):
        find_template(None, tmp_path / "t.jinja")


def test_the_verb(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "here.safetensors"
    lines = ["/undo", "Hello", "/fork start", "More", "/undo", "More", "/go nowhere", "/go start", "/history"]
    lines += [f"/save {file}", f"/save {file}", f"/load {file}", "/history", "More", "/nonsense", "/fork", "/help"]
    lines += ["/quit", "never said"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert entry(["chat", str(folder), "--seed", "3", "--max-tokens", "8", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    notes = ["there is no turn to undo", "kept as start: /go start returns here", "1 turns are left", "/undo"]
    notes += ["at start, after 1 turns", "there is no point 'nowhere'", f"saved to {file}", "already exists"]
    notes += ["tokens of", "/fork needs a name", "there is no command '/nonsense'"]
    for note in notes:
        assert note in err
    assert file.is_file()
    assert "user: Hello\nassistant: " in out
    assert "never said" not in out

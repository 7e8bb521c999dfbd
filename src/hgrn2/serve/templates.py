"""From a conversation to the text that the model goes on with: the tokenizer's own template, or a plain one.

    user: How are you?
    assistant: Well.
    user: Good.
    assistant:

That is the plain one: a role, a colon, the text, a line end, and at last `assistant:`; the answer then ends before the
next `user:` line. A tokenizer's own is Jinja, from `chat_template.jinja` or `tokenizer_config.json` beside it, and runs
in a sandbox that cannot change anything. Whatever it writes is encoded as text, as everywhere in this package: the
spelling of a special token in a message never becomes one.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hgrn2.errors import UserError
from hgrn2.files import parse_json, read_text
from hgrn2.settings import refuse

LIMIT = 1 << 20  # bytes of a template, or of the settings that hold one
Message = Mapping[str, str]
Render = Callable[[Sequence[Message]], str]
PLAIN_STOPS = ("\nuser:", "\nsystem:")


class ChatTemplate:
    """How conversations are written."""

    def __init__(self, render: Render, name: str, stops: tuple[str, ...] = (), lead: str = "") -> None:
        """`stops` end an answer; `lead` is between the template's text and an answer, and no part of the latter."""
        self.name, self.stops, self.lead, self._render = name, stops, lead, render

    @property
    def is_plain(self) -> bool:
        """Whether it is the one for models that have none."""
        return self._render is plain

    def __call__(self, messages: Sequence[Message]) -> str:
        """The text up to where the assistant's answer begins.

        Raises:
            UserError: what the template refuses.
        """
        return self._render(messages)


def plain(messages: Sequence[Message]) -> str:
    """The plain template; see above."""
    lines = [f"{message['role']}: {message['content']}\n" for message in messages]
    return "".join([*lines, "assistant:"])


def find_template(tokenizer: Path | None, given: Path | None = None) -> ChatTemplate:
    """The template of a file, else that in a tokenizer's folder, else the plain one."""
    if given is not None:
        return _jinja(read_text(given, LIMIT), str(given))
    for path in [] if tokenizer is None else [tokenizer / "chat_template.jinja", tokenizer / "tokenizer_config.json"]:
        if path.is_file():
            text = read_text(path, LIMIT)
            if path.suffix == ".json":
                text = parse_json(text, str(path), dict).get("chat_template")
            if isinstance(text, str):
                return _jinja(text, str(path))
    return ChatTemplate(plain, "plain", PLAIN_STOPS, " ")


def _jinja(text: str, where: str) -> ChatTemplate:
    try:
        import jinja2
        import jinja2.sandbox
    except ImportError:
        raise UserError(f"the chat template {where} needs Jinja: pip install 'hgrn2[serve]'") from None

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = raise_exception
    try:
        template = environment.from_string(text)
    except jinja2.TemplateError as error:
        raise UserError(f"{where} is no Jinja template: {error}") from None

    def render(messages: Sequence[Message]) -> str:
        given: dict[str, Any] = {"messages": [dict(message) for message in messages], "add_generation_prompt": True}
        try:
            made = template.render(**given, bos_token="", eos_token="", tools=None)
        except Exception as error:  # a template is a program of its own
            raise UserError(f"the chat template refuses these messages: {error}") from None
        refuse(not made, "the chat template makes an empty text of these messages")
        return made

    return ChatTemplate(render, where)

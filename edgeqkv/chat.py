"""Chat templates: a conversation as the text that a model was trained on."""

import json
from datetime import datetime
from typing import Any, TypedDict

from edgeqkv.errors import EdgeQKVError, require

# For a model without a template: the turns one after another.
PLAIN = (
    "{% for m in messages %}{{ m.role.capitalize() }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class Message(TypedDict):
    """``role`` is "system", "user" or "assistant"."""

    role: str
    content: str


def render(template: str | None, messages: list[Message], special_tokens: dict[str, str]) -> str:
    """The text of a conversation up to where the assistant's next turn begins.

    Templates are Jinja as Hugging Face writes them. They come with a model, from a stranger, so that they run in Jinja's
    sandbox without access to anything but the conversation. Raises :class:`EdgeQKVError` when the template does.
    """
    jinja2, sandbox = require("jinja2", "chat"), require("jinja2.sandbox", "chat")

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    values: dict[str, Any] = {"messages": messages, "add_generation_prompt": True, **special_tokens}
    try:
        text: str = environment.from_string(template or PLAIN).render(**values)
    except Exception as error:  # a template is a program: it may divide by zero
        raise EdgeQKVError(f"the bundle's chat template refuses this conversation: {error}") from error
    return text

"""Chat templates: a conversation as the text that a model was trained on."""

import json
import subprocess
import sys
from typing import TypedDict

from edgeqkv import chat_template
from edgeqkv.errors import EdgeQKVError, MissingPackage, require

SECONDS = 20  # for a template, which needs a fraction of one on a slow board

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
    sandbox, in a process of their own (:mod:`edgeqkv.chat_template`) with :data:`SECONDS` of time and bounded memory. Raises
    :class:`EdgeQKVError` when the template does, or when it takes more.
    """
    require("jinja2", "chat")
    values = {"messages": messages, "add_generation_prompt": True, **special_tokens}
    command = [sys.executable, "-P", chat_template.__file__, str(SECONDS)]
    request = json.dumps({"template": template or PLAIN, "values": values}).encode()
    try:
        done = subprocess.run(command, input=request, capture_output=True, timeout=SECONDS, check=False)
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise EdgeQKVError(f"the bundle's chat template takes more than {SECONDS} seconds") from error
    except OSError as error:
        raise MissingPackage(f"a chat template needs a second Python process, which cannot be started here: {error}") from error
    except json.JSONDecodeError as error:
        raise EdgeQKVError(f"the bundle's chat template ends the process that renders it ({done.returncode})") from error
    if "refused" in answer:
        raise EdgeQKVError(f"the bundle's chat template refuses this conversation: {answer['refused']}")
    text: str = answer["text"]
    return text

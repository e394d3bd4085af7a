"""The program that renders a chat template, in a process of its own that :mod:`edgeqkv.chat` starts: Jinja's sandbox keeps a
template from the machine, but lets it loop for ever and take all memory. Here both are bounded, and a crash is the child's.

Takes seconds as its argument and {"template", "values"} on stdin; answers {"text"} or {"refused"} on stdout. It imports nothing
of edgeqkv, so that it starts in a tenth of a second.
"""

import json
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

MEMORY = 512 * 2**20  # bytes of address space, Python and Jinja among it
LONGEST = 2**22  # characters of a conversation, some million tokens


def bound(seconds: int) -> None:
    """By the system, as far as it has the means (macOS does not bound memory, Windows neither)."""
    with suppress(ImportError):
        import resource

        # Seconds of the processor: for when whoever waits for this is gone.
        for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
            with suppress(ValueError, OSError):  # a lower limit is there already
                resource.setrlimit(kind, (most, most))


def render(template: str, values: dict[str, Any]) -> str:
    import jinja2
    import jinja2.sandbox

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    text: str = environment.from_string(template).render(**values)
    if len(text) > LONGEST:
        raise ValueError(f"it writes {len(text):,} characters, and at most {LONGEST:,} are taken")
    return text


def main() -> None:
    bound(int(sys.argv[1]))
    request = json.load(sys.stdin)
    try:
        answer = {"text": render(request["template"], request["values"])}
    except MemoryError:
        answer = {"refused": f"it takes more than {MEMORY // 2**20} MiB of memory"}
    except Exception as error:  # a template is a program: it may divide by zero
        answer = {"refused": " ".join(str(error).split())[:500] or type(error).__name__}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()

"""Chat templates: rendered as transformers renders them, and kept from everything but the conversation."""

import re
import time
from datetime import datetime

import pytest

from edgeqkv import EdgeQKVError
from edgeqkv.chat import render
from edgeqkv.errors import MissingPackage

# Shortened from what the models ship with, with every construct that theirs have.
LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The system message begins with dates. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == "tool" %}
        {{- raise_exception("This model only supports single tool-calls at once!") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN_3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and reasoning_content %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}
{% else %}{{ message | tojson(indent=2) }}{% endif %}
{% endfor %}"""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    {"role": "user", "content": "  Hello é <b> \n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi"},
    {"role": "user", "content": "{{ 7 * 7 }}"},
]
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("talk", [TALK, [SYSTEM, *TALK], TALK[:1]])
@pytest.mark.parametrize("template", [LLAMA_3, QWEN_3], ids=["llama 3", "qwen 3"])
def test_templates_come_out_as_transformers_renders_them(template, talk):
    from transformers.utils.chat_template_utils import render_jinja_template

    (expected,), _ = render_jinja_template([talk], chat_template=template, add_generation_prompt=True, **TOKENS)
    assert render(template, talk, TOKENS) == expected


def test_llama_3():
    today = datetime.now().strftime("%d %b %Y")
    assert render(LLAMA_3, [SYSTEM, *TALK[2:]], TOKENS) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        f"Today Date: {today}\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "{{ 7 * 7 }}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_a_model_without_a_template():
    assert render(None, TALK[2:], {}) == "User: {{ 7 * 7 }}\nAssistant:"


def test_a_template_that_refuses_a_conversation():
    with pytest.raises(EdgeQKVError, match="chat template refuses this conversation: Conversation roles must alternate"):
        render(MISTRAL, TALK[1:], TOKENS)
    with pytest.raises(EdgeQKVError, match="only supports single tool-calls"):
        render(LLAMA_3, [{"role": "tool", "content": "x"}], TOKENS)


@pytest.mark.parametrize(
    "template",
    [
        "{% if %}",
        "{{ messages | nope }}",
        "{{ messages[0].nope.more }}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
        "{{ range(10**9) }}",
        "{{ 'a' + 1 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_broken_template_is_a_sentence(template):
    with pytest.raises(EdgeQKVError, match="the bundle's chat template refuses this conversation: .+"):
        render(template, TALK, TOKENS)


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}" + "{% endfor %}" * 2


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "refuses this conversation: Range too big"),
        (LOOPS, "takes more than 2 seconds"),
        ("{% set x = 9**(9**9) %}", "takes more than 2 seconds"),
        ("{{ 'a' * 10**9 }}", "refuses this conversation: it takes more than 512 MiB of memory"),
        ("{{ 'a'.center(10**9) }}", "it takes more than 512 MiB of memory"),
        ("{{ '%1000000000d' % 1 }}", "it takes more than 512 MiB of memory"),
        ("{% set x = [[0] * 10**9] %}", "it takes more than 512 MiB of memory"),
        ("{{ 'a' * 10**7 }}", "it writes 10,000,000 characters, and at most 4,194,304 are taken"),
        ("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "refuses this conversation: maximum recursion depth"),
        ("{{ " + "(" * 10**5 + ")" * 10**5 + " }}", "refuses this conversation: maximum recursion depth"),
        ("{{ " + "-" * 10**5 + "1 }}", "refuses this conversation: maximum recursion depth"),
        ("{{ raise_exception('a\\nb' * 1000) }}", "a b"),
    ],
    ids=lambda value: value[:40],
)
def test_a_hostile_template_is_a_sentence_in_bounded_time_and_memory(template, reason, monkeypatch):
    monkeypatch.setattr("edgeqkv.chat.SECONDS", 2)
    start = time.perf_counter()
    with pytest.raises(EdgeQKVError, match=re.escape(reason)) as error:
        render(template, TALK, TOKENS)
    assert time.perf_counter() - start < 10  # a busy machine's
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_a_template_that_brings_its_process_down(monkeypatch, tmp_path):
    program = tmp_path / "dies.py"
    program.write_text("import os; os.abort()")
    monkeypatch.setattr("edgeqkv.chat.chat_template.__file__", str(program))
    with pytest.raises(EdgeQKVError, match=r"the bundle's chat template ends the process that renders it \(-6\)"):
        render(None, TALK, TOKENS)


def test_a_python_that_cannot_be_started_again(monkeypatch):
    monkeypatch.setattr("sys.executable", "")
    with pytest.raises(MissingPackage, match="a chat template needs a second Python process"):
        render(None, TALK, TOKENS)


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "messages.__class__.__base__",
        "messages.append({})",
        "messages[0].update(role='system')",
        "raise_exception.__globals__",
        "strftime_now.__globals__['json']",
        "cycler.__init__.__globals__",
        "lipsum.__globals__['os'].popen('id').read()",
        "self.__init__.__globals__",
        "'{0.__class__}'.format(messages)",
        "('x'|attr('__class__')).__mro__",
    ],
)
def test_a_template_reaches_nothing_but_the_conversation(expression):
    """Refused, or as good as nothing."""
    talk = [dict(message) for message in TALK]
    out = sentence = ""
    try:
        out = render("{{ " + expression + " }}", talk, TOKENS)
    except EdgeQKVError as error:
        sentence = str(error)
    assert out == ""
    assert re.search("unsafe|undefined|no attribute", sentence or "unsafe"), sentence
    assert talk == TALK

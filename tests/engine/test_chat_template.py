"""Conversations become the text that transformers makes of them, and no template can hang, fill or leave the server."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from shoal_engine.chat_template import ChatTemplate
from shoal_engine.errors import EngineUnavailable, InvalidRequest, ModelLoadError
from shoal_engine.template_process import TemplateLimits, TemplateProcess, WorkerGone


@dataclass(frozen=True)
class Vocabulary:
    special_tokens: Mapping[str, str] = field(
        default_factory=lambda: {"bos_token": "<s>", "eos_token": "</s>"}
    )
    chat_templates: Mapping[str, str] = field(default_factory=dict)


@pytest.fixture
def template() -> Iterator[Any]:
    """Makes templates and ends their workers."""
    made: list[ChatTemplate] = []

    def make(source: str | None, vocabulary: Vocabulary | None = None, **limits: Any) -> ChatTemplate:
        made.append(ChatTemplate(source, vocabulary or Vocabulary(), TemplateLimits(**limits)))
        return made[-1]

    yield make
    for each in made:
        each.close()


CHATML = """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

INST = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}
{{ ' ' + message['content'] + eos_token }}{% endif %}
{% endfor %}"""

TOOLS = """{%- set ns = namespace(count=0, last='') %}
{%- if tools %}
    {{- '# Tools\\n' }}
    {%- for tool in tools %}{{ tool | tojson(indent=2) }}{{ '\\n' }}{% endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'skip' %}{% continue %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- call.function.name }}({{ call.function.arguments | tojson }})
        {%- endfor %}
    {%- elif message.content is string %}
        {{- message.role ~ ': ' ~ message.content }}
    {%- else %}
        {%- for part in message.content %}{{ part.text | default('?') }}{% endfor %}
    {%- endif %}
    {%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
{%- endfor %}
{{- ns.count }}{{ dict(a=1)['a'] }}{{ messages | map(attribute='role') | join(',') }}
{%- if not enable_thinking | default(true) %}{{ '<think></think>' }}{% endif %}"""

MARKED = """{% macro turn(message) %}<{{ message.role }}>{{ message.content }}{% endmacro %}
{% for message in messages %}
    {% if message.role == 'assistant' %}
{% generation %}{{ turn(message) }}{% endgeneration %}
    {% else %}
{{ turn(message) }}
    {% endif %}
    {% if loop.index > 5 %}{% break %}{% endif %}
{% endfor %}
Today is {{ strftime_now('%Y') }}.
"""

USER = {"role": "user", "content": 'Hi <b>&"there"</b> 日本 😀'}
ASSISTANT = {"role": "assistant", "content": "  Yes?  \n"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two "}]}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"b": [1, 2.5, None], "a": "é</x>"}}}],
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": "日本"}}}
THOUGHT = {"role": "assistant", "content": "so", "thinking": "hm"}

CASES: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = {
    "chatml": (CHATML, [USER], {}),
    "chatml, answered": (CHATML, [USER, ASSISTANT, USER], {"add_generation_prompt": False}),
    "chatml, own system": (CHATML, [{"role": "system", "content": ""}, USER], {}),
    "inst": (INST, [USER, ASSISTANT, USER], {}),
    "tools": (TOOLS, [USER, CALL, {"role": "tool", "content": "4"}], {"tools": [TOOL]}),
    "no tools": (TOOLS, [USER, {"role": "skip", "content": ""}, PARTS, ASSISTANT], {}),
    "reasoning under another name": (TOOLS, [USER, THOUGHT], {}),
    "a switch": (TOOLS, [USER], {"enable_thinking": False}),
    "macros, generation, loop controls": (MARKED, [USER, ASSISTANT] * 4, {}),
    "continued": (
        CHATML,
        [USER, {"role": "assistant", "content": "Once upon"}],
        {"continue_final_message": True},
    ),
    "continued, trimmed": (
        CHATML,
        [USER, {"role": "assistant", "content": "Once "}],
        {"continue_final_message": True},
    ),
    "continued, not trimmed": (
        INST,
        [USER, {"role": "assistant", "content": "Once "}],
        {"continue_final_message": True},
    ),
    "continued in parts": (TOOLS.split("{{- ns.count")[0], [PARTS], {"continue_final_message": True}),
}


@pytest.mark.parametrize(("source", "messages", "options"), CASES.values(), ids=list(CASES))
def test_a_conversation_renders_as_in_transformers(
    template: Any, source: str, messages: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    ours = template(source).render(messages, **options)
    options = {"add_generation_prompt": not options.get("continue_final_message"), **options}
    present = [{name: value for name, value in message.items() if value is not None} for message in messages]
    (theirs,), _ = render_jinja_template(
        [present], chat_template=source, bos_token="<s>", eos_token="</s>", **options
    )
    assert ours == theirs


def test_the_template_for_tools_is_taken_when_there_are_tools(template: Any) -> None:
    vocabulary = Vocabulary(chat_templates={"default": "plain", "tool_use": "tools"})
    assert template("plain", vocabulary).render([USER]) == "plain"
    assert template("plain", vocabulary).render([USER], [TOOL]) == "tools"
    assert template("operator's", vocabulary).render([USER], [TOOL]) == "operator's"


def test_what_a_template_refuses_is_the_clients_error_in_its_own_words(template: Any) -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as refusal:
        template(INST).render([USER, USER])
    assert refusal.value.param == "messages"


REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "no messages": ([], {}, "messages is empty"),
    "a role that is no text": ([{"role": 3, "content": "x"}], {}, "cannot render these messages"),
    "both continued and begun": (
        [USER],
        {"continue_final_message": True, "add_generation_prompt": True},
        "exclude each other",
    ),
    "nothing to continue": ([CALL], {"continue_final_message": True}, "no text to continue"),
    "a variable of the template's own": ([USER], {"bos_token": True}, "must not set bos_token"),
    "another conversation": ([USER], {"messages": True}, "must not set messages"),
    "no JSON": ([{"role": "user", "content": object()}], {}, "no JSON"),
    "nested beyond measure": ([{"role": "user", "content": "nested"}], {}, "no JSON"),
}


@pytest.mark.parametrize(("messages", "options", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_a_conversation_that_cannot_be_rendered_is_refused(
    template: Any, messages: list[Any], options: dict[str, Any], reason: str
) -> None:
    if messages and messages[0].get("content") == "nested":
        deep: Any = "x"
        for _ in range(100_000):
            deep = [deep]
        messages = [{"role": "user", "content": deep}]
    chat = template(CHATML)
    with pytest.raises(InvalidRequest, match=reason):
        chat.render(messages, **options)
    assert chat.render([USER]).startswith("<|im_start|>")  # and the next one is none the worse


def test_a_last_message_that_the_template_drops_cannot_be_continued(template: Any) -> None:
    with pytest.raises(InvalidRequest, match="leaves out the last message"):
        template("{{ messages[0].content }}").render([USER, ASSISTANT], continue_final_message=True)


def test_a_model_without_a_template_says_so(template: Any) -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        template(None).render([USER])


@pytest.mark.parametrize("source", ["{% for %}", "{{ x", "{% nonsense %}", "{{ x | no_such_filter }}"])
def test_a_template_that_is_not_valid_stops_the_loading(template: Any, source: str) -> None:
    with pytest.raises(ModelLoadError, match=r"not valid.*--chat-template"):
        template(source)


HOSTILE = {
    "loops without end": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "CPU time",
    ),
    "one call without end": ("{{ 7 ** (30000000 * messages | length) % 3 }}", "CPU time"),
    "a huge text": ("{{ 'a' * 10 ** 10 }}", "its memory"),
    "a huge padding": ("{{ 'a' | center(10 ** 9) }}", "its memory"),
    "a huge list": ("{{ [1] * 10 ** 9 }}", "its memory"),
    "much output": ("{% for i in range(99999) %}{{ 'a' * 100 }}{% endfor %}", "2097152 characters"),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "Python's insides": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "a method's globals": ("{{ messages.append.__globals__ }}", "cannot render|SecurityError"),
    "changing its input": ("{{ messages.append(1) }}", "SecurityError"),
}


@pytest.mark.parametrize(("source", "reason"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_template_costs_its_own_request_only(template: Any, source: str, reason: str) -> None:
    chat = template("{% if messages[0].content == 'go' %}" + source + "{% else %}fine{% endif %}")
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=reason):
            chat.render([{"role": "user", "content": "go"}])
        assert chat.render([USER]) == "fine"


def test_a_template_whose_reading_has_no_end_stops_the_loading(template: Any) -> None:
    with pytest.raises(ModelLoadError, match=r"limits|not valid"):
        template("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}")


def test_half_a_surrogate_pair_passes_through(template: Any) -> None:
    """It is for the tokenizer to refuse it."""
    assert template("{{ messages[0].content }}").render([{"role": "user", "content": "a\ud800"}]) == "a\ud800"


def test_threads_render_side_by_side(template: Any) -> None:
    chat = template("{{ messages[0].content }}")
    results: list[str] = []

    def work(number: int) -> None:
        for _ in range(20):
            results.append(chat.render([{"role": "user", "content": f"{number} " * 2000}])[:1])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(str(number) for number in range(6) for _ in range(20))


def test_a_worker_that_is_stopped_does_not_hold_up_its_caller() -> None:
    worker = TemplateProcess(["x"], TemplateLimits(wall_seconds=0.5))
    worker._process.send_signal(signal.SIGSTOP)  # as on a machine that has stalled
    with pytest.raises(WorkerGone, match="stalled"):
        worker.render(0, {})
    assert worker._process.poll() is not None


def test_a_stalled_worker_is_an_outage_and_not_the_clients_error(template: Any) -> None:
    chat = template("x", wall_seconds=1.0)
    chat._idle[0]._process.send_signal(signal.SIGSTOP)
    with pytest.raises(EngineUnavailable, match="try again"):
        chat.render([USER])
    assert chat.render([USER]) == "x"


def test_a_worker_ends_with_its_engine() -> None:
    """Also when nothing closes it: its end of the pipe tells it."""
    worker = TemplateProcess(["x"], TemplateLimits())
    pid = worker._process.pid
    assert worker._process.stdin is not None
    worker._process.stdin.close()
    assert worker._process.wait(timeout=10) == 0
    worker.close()
    assert not Path(f"/proc/{pid}").exists()

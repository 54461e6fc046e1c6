"""Writes testdata/templates/cases.json: what transformers makes of the templates there.

    python tools/golden/chat_templates.py [FOLDER]

FOLDER is another folder of `*.jinja` files, for looking at what is not kept here; its cases.json is written into it.
"""

import datetime
import json
import pathlib
import sys

import tokenizers
import transformers
from transformers.utils import chat_template_utils

ROOT = pathlib.Path(__file__).parents[2] / "testdata/templates"


class Saturday(datetime.datetime):
    """A clock that stands still, in UTC."""

    @classmethod
    def now(cls, tz=None):
        return cls(2025, 6, 28, 12, 0, 0, tzinfo=tz)


chat_template_utils.datetime = Saturday

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather <b>now</b> & \"later\"",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Köln or so", "enum": ["a", "é"]},
                "days": {"type": "integer", "default": 1},
                "tags": {"type": "array", "items": {"type": "string"}},
                "either": {"type": ["string", "null"]},
                "exact": {"type": "boolean", "nullable": True},
                "inner": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
            },
            "required": ["place"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}}
TOOLS = [WEATHER, NOW]


def user(text):
    return {"role": "user", "content": text}


def call(*calls, content="", **fields):
    calls = [
        {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls, **fields}


def result(number, name, content):
    return {"role": "tool", "tool_call_id": f"call0000{number}", "name": name, "content": content}


SYSTEM = {"role": "system", "content": " Be brief.\n"}
PLAIN = {"role": "assistant", "content": " Two \n"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTwo"}
REASONED = {"role": "assistant", "content": "Two", "reasoning_content": "hm"}
ONE_CALL = call(("get_weather", {"place": "Köln", "days": 2}), reasoning_content="look it up")
TWO_CALLS = call(("get_weather", {"place": "a"}), ("now", {}), content="I look.")

CONVERSATIONS = {
    "user": ([user("  Hello\n\n there 😀 ")], {}),
    "no prompt": ([user("Hi"), PLAIN], {"add_generation_prompt": False}),
    "system": ([SYSTEM, user("Hi")], {}),
    "turns": ([SYSTEM, user("One"), PLAIN, user("{{ not a template }} <|im_x|>")], {}),
    "thought": ([user("One"), THOUGHT, user("Three"), THOUGHT], {"add_generation_prompt": False}),
    "reasoned": ([user("One"), REASONED, user("Three")], {}),
    "tools": ([SYSTEM, user("Weather?")], {"tools": TOOLS}),
    "call": ([user("Weather?"), ONE_CALL, result(0, "get_weather", '{"t": 3.5}')], {"tools": TOOLS}),
    "call answered": ([user("Weather?"), ONE_CALL, result(0, "get_weather", "3"), PLAIN, user("Thanks")], {"tools": TOOLS}),
    "two calls": ([SYSTEM, user("W?"), TWO_CALLS, result(0, "get_weather", "3"), result(1, "now", "12:00")], {"tools": TOOLS}),
    "not thinking": ([user("Hi")], {"variables": {"enable_thinking": False, "thinking": False}}),
    "thinking": ([user("Hi")], {"variables": {"enable_thinking": True, "thinking": True}}),
    "effort": ([SYSTEM, user("Hi")], {"variables": {"reasoning_effort": "high"}}),
    "date": ([user("Hi")], {"variables": {"date_string": "1 Jan 2000"}}),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": " two"}]}], {}),
    "two users": ([user("One"), user("Two")], {}),
    "assistant first": ([PLAIN, user("Two")], {}),
}


def rendered(template, messages, tools=None, variables=None, add_generation_prompt=True):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), bos_token="<s>", eos_token="</s>"
    )
    try:
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **(variables or {}),
        )
        return {"text": text}
    except Exception as error:  # noqa: BLE001: whatever jinja2 raises is the expectation
        raised = type(error).__name__ == "TemplateError"
        return {"raised": str(error)} if raised else {"error": f"{type(error).__name__}: {error}"}


folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
cases = []
for path in sorted(folder.glob("*.jinja")):
    template = path.read_text()
    for name, (messages, options) in CONVERSATIONS.items():
        expected = rendered(template, messages, **options)
        cases.append({"template": path.name, "name": name, "messages": messages, **options, **expected})
lines = ",\n".join(json.dumps(case) for case in cases)
(folder / "cases.json").write_text(f"[\n{lines}\n]\n")

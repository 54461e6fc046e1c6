"""Writes cases.json: chat templates, conversations, and what transformers (5.23) makes of them.

    python crates/engine/src/prompt/cases.py
"""

import json
import pathlib

import tokenizers
import transformers

CHATML = """{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}"""

HEADERS = """{{- bos_token }}
{%- set loop_messages = messages %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- if system or tools is not none %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
    {%- if tools is not none %}
        {{- 'Tools:\\n' }}
        {%- for tool in tools %}
            {{- tool | tojson(indent=4) }}
            {{- '\\n\\n' }}
        {%- endfor %}
    {%- endif %}
    {{- system + '<|eot_id|>' }}
{%- endif %}
{%- for message in loop_messages %}
    {%- if message.role == 'tool' or 'tool_calls' in message %}
        {%- continue %}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

INST = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{% generation %}{{ message['content'].strip() + eos_token }}{% endgeneration %}{% else %}{{ raise_exception('Only user and assistant, not ' ~ message.role ~ '!') }}{% endif %}{% endfor %}"""

TOOLS = """{%- macro typed(name, schema) -%}
    {{ name }}{% if name in schema.required | default([]) %}!{% endif %}: {{ schema.properties[name].type }}
{%- endmacro -%}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}{{ tool | tojson }}
        {%- set function = tool.function %}
        {%- for name, _ in function.parameters.properties.items() %}
            {{- '\\n  ' }}{{ typed(name, function.parameters) }}
        {%- endfor %}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == 'user' and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or not loop.first %}{{- '\\n' }}{%- endif %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' }}{{ call.name }}{{- '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

# One expression a line: each is its own case.
EXPRESSIONS = r"""
{{ missing }}|{{ missing is defined }}|{{ not missing }}|{{ tools is none }}|{{ tools is defined }}
{{ none }} {{ true }} {{ false }} {{ 1.0 }} {{ 0.1 + 0.2 }} {{ [1, 'a', none] }} {{ {'k': "it's"} }}
{{ 7 // 2 }} {{ 7 / 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 'ab' * 3 }} {{ 'a' ~ 1 ~ none }}
{{ messages | map(attribute='role') | list }} {{ messages | map(attribute='role') | join(', ') }}
{{ (messages | selectattr('role', 'equalto', 'user') | list)[-1].content }}
{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='content') | first }}
{{ messages | length }} {{ messages | count }} {{ (messages | last).role }} {{ messages[-1]['role'] }}
{{ messages[0].nothing }}|{{ messages[0]['nothing'] is defined }}|{{ messages[0].get('nothing', 'dflt') }}
{{ messages[0].content | upper }} {{ messages[0].content | title }} {{ messages[0].content | replace('e', 'E') | capitalize }}
{{ ' a b '.strip() }}|{{ 'xxaxx'.lstrip('x') }}|{{ 'a,b,,c'.split(',') }}|{{ 'a b  c'.split() }}|{{ 'a-b-c'.split('-', 1) }}
{{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('bc') }} {{ 'abc'.find('c') }} {{ 'abc'.upper() }} {{ 'ABC'.lower() }} {{ 'a b'.title() }}
{{ 'abcdef'[1:3] }} {{ 'abcdef'[::-1] }} {{ 'abc'[0] }} {{ 'abc'[-1] }} {{ [1, 2, 3][1:] }} {{ [1, 2, 3][:-1] }}
{{ 'x' is string }} {{ 'x' is iterable }} {{ 'x' is sequence }} {{ {} is mapping }} {{ [] is sequence }} {{ 1 is number }} {{ 1 is integer }} {{ none is none }} {{ true is boolean }} {{ 'x' is mapping }} {{ {} is iterable }}
{% for k, v in {'b': 1, 'a': [1]}.items() %}{{ k }}={{ v }};{% endfor %}{% for k in {'b': 1, 'a': 2} %}{{ k }}{% endfor %} {{ {'b': 1, 'a': 2} | dictsort }} {{ {'b': 1} | items | list }}
{% for x in [1, 2, 3, 4] if x is even %}{{ loop.index }}/{{ loop.length }}:{{ x }}{{ ',' if not loop.last }}{% else %}none{% endfor %}
{% for x in [] %}{{ x }}{% else %}empty{% endfor %}{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% set ns = namespace(a=1) %}{% for x in [1, 2] %}{% set ns.a = ns.a + x %}{% endfor %}{{ ns.a }} {% set y = 1 %}{% for x in [1] %}{% set y = 2 %}{% endfor %}{{ y }}
{% set block %}a{{ 1 }}b{% endset %}{{ block }} {% macro m(a, b='d') %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(1, b=2) }} {% filter upper %}x{% endfilter %}
{{ {'a': [1, 2.5, true, none, "q\"\\\n\té<&>'"], 'b': {}, 'c': []} | tojson }}
{{ {'a': [1, {'b': 2}], 'c': {}, 'd': []} | tojson(indent=2) }}
{{ {'b': 'é😀', 'a': 1} | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }} {{ 'é' | tojson(ensure_ascii=False) }}
{{ [1e16, 1e15, 1e-5, 0.0001, 123456789.125, -0.0, 1e300, 5e-324] | tojson }} {{ 10 | tojson }} {{ 'a' | tojson }}
{{ 'a' if missing else 'b' }} {{ 'a' if missing }}|{{ missing or 'x' }} {{ 0 or 'y' }} {{ '' and 'z' }} {{ missing | default('d') }} {{ '' | default('d', true) }}
{{ 'a' in 'abc' }} {{ 'role' in messages[0] }} {{ 3 not in [1, 2] }} {{ 1 == 1.0 }} {{ 'a' != 'b' }} {{ 1 < 2 < 3 }}
{{- ' x ' -}}   |  {{ 'y' }}{# comment #}  z {%- if true %} t {%- endif %}
{% raw %}{{ raw }}{% endraw %} {{ '{{' }} {{ "a'b" }} {{ 'tab\tnl\\n' }}
{{ 'a\nb\nc' | indent(2) }} {{ ' x ' | trim }}. {{ 'a,b' | list }} {{ [3, 1, 2] | sort }} {{ [1, 2, 2] | unique | list }} {{ [1, 2] | sum }} {{ 'x' | string }} {{ '12' | int + 1 }} {{ [[1, 2], [3]] | map('length') | list }} {{ [1, 2] | reverse | list }}
{{ messages | map(attribute='content') | map('trim') | list | tojson }} {{ range(3) | list }} {{ range(1, 6, 2) | join('-') }} {{ dict(a=1) }} {{ [1, 2] + [3] }} {{ (1, 2) }}
{{ bos_token }}{{ eos_token }}{{ unk_token is defined }} {{ 'a'.replace('a', 'b') }} {{ 'a\nb'.splitlines() }} {{ '-'.join(['a', 'b']) }} {{ '%s-%d' | format('a', 3) }} {{ 'x{}y'.format(1) }} {{ 'aXa'.count('a') }} {{ 'a1'.isalnum() }} {{ '12'.isdigit() }}
""".strip().split("\n")

FAILING = [
    "{{ messages[0].nothing.deeper }}",
    "{{ missing.attribute }}",
    "{{ 'a' + missing }}",
    "{{ 'a' + 1 }}",
    "{{ raise_exception('No: ' + messages[0].role) }}",
    "{{ undefined_function() }}",
    "{{ messages[0].content.no_such_method() }}",
    "{{ messages.append(1) }}",
    "{% if %}",
    "{% for x in messages %}",
    "{{ missing | tojson }}",
]

TURNS = {
    "user": [{"role": "user", "content": "Hello there"}],
    "spaces": [{"role": "user", "content": "  two\n\n spaces \n"}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Héllo 😀"}],
    "turns": [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": " Two "},
        {"role": "user", "content": "Three"},
    ],
    "system turns": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTwo"},
        {"role": "user", "content": "{{ not a template }}"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "thinking": "look it up",
            "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"place": "Köln", "days": 2}}}],
        },
        {"role": "tool", "content": '{"t": 3.5}'},
        {"role": "tool", "content": "again"},
    ],
}

SCHEMAS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <b>now</b> & \"later\"",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "enum": ["a", "é"]}, "days": {"type": "integer", "default": 1.5}},
                "required": ["place"],
            },
        },
    }
]

cases = []


def case(name, template, messages, tools=None, add_generation_prompt=True, **variables):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()),
        bos_token="<s>",
        eos_token="</s>",
    )
    try:
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **variables,
        )
        expected = {"text": text}
    except Exception as error:  # noqa: BLE001: whatever jinja2 raises is the expectation
        raised = type(error).__name__ == "TemplateError"
        expected = {"raised": str(error)} if raised else {"error": f"{type(error).__name__}: {error}"}
    cases.append(
        {
            "name": name,
            "template": template,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "variables": variables,
            **expected,
        }
    )


for name, template in [("chatml", CHATML), ("headers", HEADERS), ("zephyr", ZEPHYR), ("inst", INST), ("tools", TOOLS)]:
    for turns, messages in TURNS.items():
        for prompt in (True, False):
            case(f"{name}, {turns}, {prompt}", template, messages, None, prompt)
    case(f"{name}, schemas", template, TURNS["tools"], SCHEMAS)
case("tools, not thinking", TOOLS, TURNS["turns"], None, True, enable_thinking=False)
for expression in EXPRESSIONS:
    case(expression, expression, TURNS["system turns"])
for expression in FAILING:
    case(expression, expression, TURNS["user"])

path = pathlib.Path(__file__).with_name("cases.json")
lines = ",\n".join(json.dumps(entry) for entry in cases)
path.write_text(f"[\n{lines}\n]\n")

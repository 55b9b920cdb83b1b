"""Chat templates with tools, in the manner of those of known models, and conversations for them.

Written for the tests, with the control tokens of `tokenizer_families`. Between them they
write every place of a conversation, by every means that such templates use: tojson, items,
macros, namespaces, filters with attributes, slices, raise_exception, strftime_now.
"""

from __future__ import annotations

import json
from typing import Any

from stream2llm.api.requests import ChatContentPart, ChatMessage, ChatPrompt, ToolCall

# Tools as JSON lines in the system turn, calls as JSON in tags, thoughts of the last turns only.
HERMES = """
{%- set ns = namespace(last_user=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}{% endfor %}
{%- if tools %}
    {{- '<|turn|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {{- "You may call these:\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{% endfor %}
    {{- "\\n</tools>\\nAnswer with <tool_call> around the call.<|end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|turn|>system\\n' + messages[0].content + '<|end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|turn|>' ~ m.role ~ '\\n' ~ content ~ '<|end|>' ~ '\\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|turn|>' + m.role + '\\n' }}
        {%- if m.reasoning_content and loop.index0 > ns.last_user %}
            {{- '<think>\\n' + m.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content.split('</think>')[-1].lstrip('\\n') }}
        {%- for call in m.tool_calls or [] %}
            {%- if call.function %}{% set call = call.function %}{% endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n<tool_call>' }}
        {%- endfor %}
        {{- '<|end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|turn|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|turn|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

# A date, tools as indented JSON in the first user turn, results as JSON strings.
LLAMA = """
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now(date_format | default('%Y')) %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system_message = '' %}{% endif %}
{{- "<|turn|>system\\n\\nToday: " + date_string + "\\n\\n" + system_message + "<|end|>" }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- "<|turn|>ipython\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{% endif %}
        {{- "<|end|>" }}
    {%- elif message.tool_calls %}
        {%- if not message.tool_calls | length == 1 %}{{- raise_exception("One call at a time!") }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|turn|>assistant\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson(separators=(',', ':'), sort_keys=true) }}{{- "}<|end|>" }}
    {%- else %}
        {{- '<|turn|>' + message['role'] + '\\n\\n' }}
        {%- if loop.first and tools is not none %}
            {{- 'Given these functions:\\n\\n' }}
            {%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{% endfor %}
        {%- endif %}
        {{- message['content'] | trim + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|turn|>assistant\\n\\n' }}{% endif %}
"""

# Refuses what it does not know; tools before the last user turn, ids of calls, keys one by one.
MISTRAL = """
{%- if messages[0].role == "system" %}{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message.role == "user" %}
        {%- if tools is not none and message == user_messages[-1] %}
            {{- "[TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}{{- '{"function": {' }}
                {%- for key, val in tool | items if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val | tojson }}{% endif %}
                    {%- if not loop.last %}{{- ", " }}{% endif %}
                {%- endfor %}{{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{% else %}{{- "]" }}{% endif %}
            {%- endfor %}
        {%- endif %}
        {%- if loop.first and messages[0].role == "system" %}
            {{- "[INST] " + messages[0].content + "\\n\\n" + message.content + "</s>" }}
        {%- else %}{{- "[INST] " + message.content + "</s>" }}{% endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "<tool_call> [" }}
        {%- for call in message.tool_calls %}
            {%- if call.id is not defined %}{{- raise_exception("A call needs an id!") }}{% endif %}
            {{- call.function | tojson | replace('\\n', ' ') }}{{- ', "id": "' + call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{% else %}{{- "]" + "</s>" }}{% endif %}
        {%- endfor %}
    {%- elif message.role == "assistant" %}{{- " " + message.content | trim + "</s>" }}
    {%- elif message.role == "tool" or message.role == "tool_results" %}
        {{- "<tool_call>" + '{"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}' }}
        {{- "<tool_call>" }}
    {%- else %}{{- raise_exception("Only user, tool and assistant roles are supported, with the exception of an initial system message!") }}
    {%- endif %}
{%- endfor %}
"""

# Macros that write types, a role of developers, names of participants, recipients.
HARMONY = """
{%- macro type_of(spec) -%}
    {%- if spec.type == 'array' %}{{ type_of(spec['items']) }}[]
    {%- elif spec.enum %}{{ '"' + spec.enum | join('" | "') + '"' }}
    {%- elif spec.type == 'object' and spec.properties %}{
        {%- for name, of in spec.properties.items() %}{{ name ~ ('' if name in spec.required else '?') + ': ' }}{{ type_of(of) }}{% if not loop.last %}, {% endif %}{% endfor %}}
    {%- elif spec.type is sequence and spec.type is not string %}{{ spec.type | join(' | ') }}
    {%- else %}{{ spec.type | default('any') }}{% endif %}
    {%- if spec.default is defined %} = {{ spec.default | tojson }}{% endif %}
{%- endmacro -%}
{%- macro functions(tools) -%}
    {{- "namespace functions {\\n" }}
    {%- for tool in tools | map(attribute='function') %}
        {{- "// " + tool.description + "\\ntype " ~ tool.name ~ " = (_: " }}{{ type_of(tool.parameters) }}{{- ") => any;\\n" }}
    {%- endfor %}
    {{- "} // " + tools | join(', ', attribute='function.name') | replace('\\n', ' ') }}
{%- endmacro -%}
{{- "<|turn|>system\\nReasoning: " + reasoning_effort | default('medium') }}
{%- for key, value in (model_identity | default({})) | dictsort %}{{- "\\n" ~ key ~ "=" ~ value }}{% endfor %}{{- "<|end|>" }}
{%- if tools %}{{- "<|turn|>developer\\n" + functions(tools) | trim + "<|end|>" }}{% endif %}
{%- for message in messages %}
    {%- set name = (" (" ~ message.name ~ ")") if message.name is defined and message.name else '' %}
    {%- if message.role == 'developer' or message.role == "system" %}
        {%- set role_line = '<|turn|>' ~ message.role ~ name %}{{- [role_line, message.content] | join('\\n') ~ '<|end|>' }}
    {%- elif message.role == 'tool' %}{{- '<|turn|>functions.' + message.name ~ ' to=assistant\\n' ~ message.content | tojson + "<|end|>" }}
    {%- elif message.role == 'assistant' %}
        {%- if message.reasoning %}{{- '<|turn|>analysis\\n' + message.reasoning + '<|end|>' }}{% endif %}
        {%- for call in message.tool_calls | default([]) %}
            {{- '<|turn|>assistant to=functions.' + call.function.name + ' <tool_call>' + call.function.arguments | tojson + '<|end|>' }}
        {%- endfor %}
        {%- if message.content %}{{- '<|turn|>assistant\\n' }}{% generation %}{{- message.content + '<|end|>' }}{% endgeneration %}{% endif %}
    {%- else %}{{- '<|turn|>' + message.role + name + '\\n' + message.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|turn|>assistant' }}{% endif %}
"""

# Takes contents in parts alone.
PARTS = """
{%- for message in messages %}
    {{- '<|turn|>' + message.role + '\\n' }}
    {%- for part in message.content %}
        {%- if part.type == 'text' %}{{- part.text + '\\n' }}{% endif %}
    {%- endfor %}
    {%- for call in message.tool_calls or [] %}{{- call.function | string }}{% endfor %}
    {%- if loop.first %}{% for tool in tools or [] %}{{- tool | string }}{% endfor %}{% endif %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|turn|>assistant\\n' }}{% endif %}
"""

TEMPLATES = {
    "hermes": HERMES,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "harmony": HARMONY,
    "parts": PARTS,
}
# Where `conversation` puts its text, with the place's name behind it.
PLACES = (
    *("system", "developer", "user", "user_name", "assistant", "reasoning", "result"),
    *("call_id", "call_name", "argument_key", "argument", "nested_argument", "result_name"),
    *("tool_name", "tool_description", "property", "property_description", "enum", "default"),
    *("variable", "variable_key", "variable_value"),
)


def tool(text: str) -> dict[str, Any]:
    """A tool with the text in every place of it."""
    properties = {
        f"{text}property": {"type": "string", "description": f"{text}property_description"},
        "choice": {"type": "string", "enum": [f"{text}enum", "other"]},
        "list": {"type": "array", "items": {"type": "string", "default": f"{text}default"}},
    }
    parameters = {"type": "object", "properties": properties, "required": [f"{text}property"]}
    function = {"name": f"{text}tool_name", "description": f"{text}tool_description"}
    return {"type": "function", "function": {**function, "parameters": parameters}}


def conversation(text: str, *, with_developer: bool = False) -> ChatPrompt:
    """A conversation with a call of a tool, and the text in every place of PLACES."""
    arguments = {
        f"{text}argument_key": f"{text}argument",
        "list": [{"x": f"{text}nested_argument"}],
    }
    call = ToolCall(f"{text}call_name", json.dumps(arguments), id=f"{text}call_id")
    developer = [ChatMessage("developer", f"{text}developer")] if with_developer else []
    variables = {
        "date_format": f"{text}variable",
        "reasoning_effort": f"{text}variable",
        "model_identity": {f"{text}variable_key": f"{text}variable_value"},
    }
    messages = (
        ChatMessage("system", f"{text}system"),
        *developer,
        ChatMessage("user", f"{text}user", name=f"{text}user_name"),
        ChatMessage("assistant", tool_calls=(call,), reasoning=f"{text}reasoning"),
        ChatMessage(
            "tool", f"{text}result", tool_call_id=f"{text}call_id", name=f"{text}result_name"
        ),
        ChatMessage("assistant", f"{text}assistant"),
        ChatMessage("user", parts=(ChatContentPart(f"{text}user"), ChatContentPart("?"))),
    )
    tools = (json.dumps(tool(text)), json.dumps(tool("plain")))
    return ChatPrompt(messages, tools=tools, chat_template_kwargs=json.dumps(variables))

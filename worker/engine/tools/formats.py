"""The formats that models write calls in, as grammars: one function per format of mlx-lm's parsers, and harmony's.

Each takes the tools that may be called, and gives the rule of one call, markers and all. What a grammar allows is what
the parser of that format reads, and gives arguments of the tool's schema. No MLX.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import LineError
from worker.engine.tools.lark import Rules, one_of, quoted
from worker.engine.tools.plain_values import GEMMA4, GEMMA_FLAT, XML, Writer
from worker.engine.tools.schemas import Schema, SchemaReader, narrowed

WORD = re.compile(r"\w+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that may be called; ``where`` is the place of its parameters in the line."""

    name: str
    parameters: Schema
    where: str


@dataclass(frozen=True, slots=True)
class Format:
    """``call`` gives the rule of one call, ``between`` stands between two of them; ``single``: a text has but one."""

    call: Callable[[Rules, list[Tool], str], str]
    between: str = '"\\n"'
    single: bool = False


def tools_of(tools: Iterable[Mapping[str, Any]], name: str | None = None) -> list[Tool]:
    """The tools of a line, or the one of this name."""
    found = []
    for place, tool in enumerate(tools):
        function = tool["function"]
        if name in (None, function["name"]):
            parameters = narrowed(function.get("parameters"))
            found.append(Tool(function["name"], parameters, f"tools[{place}].function.parameters"))
    return found


def json_in_tags(rules: Rules, tools: list[Tool], template: str) -> str:
    """``<tool_call>``, a line with an object of name and arguments, ``</tool_call>``: Qwen's and Hermes'."""
    start, end = rules.spelling.of("<tool_call>\n"), rules.spelling.of("\n</tool_call>")
    return rules.rule(f"{start} {_named_objects(rules, tools)} {end}")


def qwen3_coder(rules: Rules, tools: list[Tool], template: str) -> str:
    """Parameters as XML, one an element, with their values as they are."""
    spell, bodies = rules.spelling.of, []
    for tool in tools:
        writer = Writer(rules, XML, SchemaReader(tool.parameters, tool.where, "qwen3_coder"))
        parameters = writer.elements(tool.parameters)
        head = spell(f"<tool_call>\n<function={tool.name}>\n")
        bodies.append(f"{head} {parameters} " + spell("</function>\n</tool_call>"))
    return rules.rule(one_of(bodies))


def mistral(rules: Rules, tools: list[Tool], template: str) -> str:
    """``[TOOL_CALLS]name[ARGS]{...}``, or in older templates a list of objects of name and arguments."""
    spell = rules.spelling.of
    if "[ARGS]" in template:
        bodies = [f"{spell(f'[TOOL_CALLS]{tool.name}[ARGS]')} {rules.json(tool.parameters)}" for tool in tools]
        return rules.rule(one_of(bodies))
    return rules.rule(f"{spell('[TOOL_CALLS]')} {quoted('[')} {_named_objects(rules, tools)} {quoted(']')}")


def function_gemma(rules: Rules, tools: list[Tool], template: str) -> str:
    """``call:name{key:value}``, with texts between ``<escape>`` and nothing that has braces of its own."""
    return _gemma(rules, tools, GEMMA_FLAT, "<start_function_call>", "<end_function_call>", "function_gemma")


def gemma4(rules: Rules, tools: list[Tool], template: str) -> str:
    """``call:name{key:value}``, with texts between ``<|"|>``."""
    return _gemma(rules, tools, GEMMA4, "<|tool_call>", "<tool_call|>", "gemma4")


def harmony(rules: Rules, tools: list[Tool], template: str) -> str:
    """A message on the commentary channel to one of the functions. The token after it ends the text."""
    spell = rules.spelling.of
    kind = spell(" <|constrain|>json") if rules.spelling.is_token("<|constrain|>") else quoted(" json")
    bodies = [
        f"{spell(f'<|channel|>commentary to=functions.{tool.name}')} {kind} {spell('<|message|>')} "
        f"{rules.json(tool.parameters)}"
        for tool in tools
    ]
    return rules.rule(one_of(bodies))


FORMATS: Mapping[str, Format] = {
    "json_tools": Format(json_in_tags),
    "qwen3_coder": Format(qwen3_coder),
    "mistral": Format(mistral, between=""),
    "function_gemma": Format(function_gemma, between=""),
    "gemma4": Format(gemma4, between=""),
    "harmony": Format(harmony, single=True),
}


def _named_objects(rules: Rules, tools: list[Tool]) -> str:
    """An object with a tool's name and its arguments."""
    bodies = []
    for tool in tools:
        head = quoted('{"name": "' + tool.name + '", "arguments": ')
        bodies.append(f'{head} {rules.json(tool.parameters)} "}}"')
    return rules.rule(one_of(bodies))


def _gemma(rules: Rules, tools: list[Tool], style: Any, start: str, end: str, shown: str) -> str:
    spell, bodies = rules.spelling.of, []
    for tool in tools:
        if shown == "function_gemma" and not WORD.fullmatch(tool.name):
            where = tool.where.replace("parameters", "name")
            message = (
                f"has other characters than letters, digits and '_': the model's format of calls ({shown}) has none"
            )
            raise LineError("unsupported", where, f"{message}; give the tool another name")
        writer = Writer(rules, style, SchemaReader(tool.parameters, tool.where, shown))
        bodies.append(f"{spell(f'{start}call:{tool.name}')} {writer.members(tool.parameters)} {spell(end)}")
    return rules.rule(one_of(bodies))

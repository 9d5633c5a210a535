"""Which schemas guided lines take, and whether they let through what is right and nothing else.

    python -m bench.guided.schemas FILE --tokenizer DIR [--refused]

FILE is JSONL of MaskBench's rows: ``{"name", "schema", "tests": [{"valid", "data"}]}``. Each schema is checked and
compiled as for a line; each instance is written as models write JSON, tokenised, and walked token by token. Beside it
stands the grammar library alone, with its own defaults.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from jobs.errors import LineError
from jobs.guided.check import Checker
from jobs.guided.constraint import json_constraint

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from tokenizers import Tokenizer


@dataclass(slots=True)
class Tally:
    """Schemas taken and refused, and instances by whether they are ``valid`` and were let through."""

    schemas: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    """Invalid instances that were let through, and valid ones that were not, by name."""
    through: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        valid = self.through[True, True] + self.through[True, False]
        invalid = self.through[False, True] + self.through[False, False]
        waits = sorted(self.seconds) or [0.0]
        return {
            "schemas": self.schemas,
            "refused": len(self.refused),
            "valid": valid,
            "valid_accepted": self.through[True, True],
            "invalid": invalid,
            "invalid_accepted": self.through[False, True],
            "check_ms_median": round(1000 * waits[len(waits) // 2], 2),
            "check_ms_most": round(1000 * waits[-1], 1),
        }


class Judge:
    """Walks texts through grammars, in the tokens of one model."""

    def __init__(self, folder: Path) -> None:
        from llguidance.hf import from_tokenizer
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._table: LLTokenizer = from_tokenizer(fast)

    def lets_through(self, grammar: str, texts: Sequence[str]) -> list[bool]:
        """For each of ``texts`` whether the grammar takes it as a whole.

        Raises:
            ValueError: the grammar cannot be compiled.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._table, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return [self._walk(matcher.deep_copy(), text) for text in texts]

    def _walk(self, matcher: Any, text: str) -> bool:
        tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
        return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def ours(schema: dict[str, Any], checker: Checker) -> str:
    """The grammar of a line with this schema.

    Raises:
        LineError: it is refused.
    """
    constraint = json_constraint(schema)
    checker.check(constraint)
    return constraint.grammar()


def bare(schema: dict[str, Any]) -> str:
    """The same by the library alone.

    Raises:
        ValueError: it is refused.
    """
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_json_schema(orjson.dumps(schema).decode())
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if failed:
        raise ValueError(messages[0])
    return grammar


def tally(rows: Iterator[dict[str, Any]], judge: Judge, compiled: Callable[[dict[str, Any]], str]) -> Tally:
    """What ``compiled``, one of the two above, takes of ``rows``."""
    found = Tally()
    for row in rows:
        found.schemas += 1
        began = time.perf_counter()
        texts = [json.dumps(test["data"], ensure_ascii=False) for test in row["tests"]]
        try:
            grammar = compiled(row["schema"])
            found.seconds.append(time.perf_counter() - began)
            passed = judge.lets_through(grammar, texts)
        except (LineError, ValueError) as error:
            found.refused[row["name"]] = str(error)
            found.through.update((test["valid"], False) for test in row["tests"])
            continue
        for number, (test, through) in enumerate(zip(row["tests"], passed, strict=True)):
            found.through[test["valid"], through] += 1
            if test["valid"] != through:
                found.wrong.append(f"{row['name']}[{number}] {'refused' if test['valid'] else 'ACCEPTED'}")
    return found


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        yield from map(orjson.loads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with a tokenizer.json")
    parser.add_argument("--refused", action="store_true", help="list refused schemas and wrong instances")
    options = parser.parse_args()
    judge = Judge(options.tokenizer)
    for name, compiled in (("ours", partial(ours, checker=Checker())), ("bare", bare)):
        found = tally(rows_of(options.file), judge, compiled)
        print(f"{name:5}", orjson.dumps(found.as_dict()).decode())
        if options.refused:
            for schema, reason in found.refused.items():
                print(f"  refused {schema}: {reason.splitlines()[0][:200]}")
            for item in found.wrong:
                print(f"  {item}")


if __name__ == "__main__":
    main()

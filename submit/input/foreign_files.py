"""Files that hold no lines of JSON: recognised, with the command that makes lines of them.

Only the start of a file is looked at, and only where its first line is not an object.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence

import orjson

from jobs.lines.values import are_rows

START_BYTES = 1 << 20
START_LINES = 2000
"""So much of a file is read to see what it is."""

_MAGIC: tuple[tuple[bytes | tuple[bytes, ...], str], ...] = (
    ((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"), "is UTF-32; save it as UTF-8"),
    ((b"\xff\xfe", b"\xfe\xff"), "is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8 FILE > FILE.jsonl)"),
    (b"{\x00", "is UTF-16; save it as UTF-8 (iconv -f UTF-16LE -t UTF-8 FILE > FILE.jsonl)"),
    (b"\x00{", "is UTF-16; save it as UTF-8 (iconv -f UTF-16BE -t UTF-8 FILE > FILE.jsonl)"),
    (b"\x1f\x8b", "is gzip data; a file's name must end in .gz, a stream be unpacked (zcat FILE | ...)"),
    (b"\x28\xb5\x2f\xfd", "is zstd data; a file's name must end in .zst, a stream be unpacked (zstdcat FILE | ...)"),
    (b"BZh", "is bzip2 data; unpack it: bzcat FILE | promptmill ... -"),
    (b"\xfd7zXZ\x00", "is xz data; unpack it: xzcat FILE | promptmill ... -"),
    (b"PK\x03\x04", "is a zip archive (or a spreadsheet); unpack it, and write one JSON object a line"),
    (b"PAR1", "is Parquet; give it the suffix .parquet, or say --input-format parquet"),
    (b"ARROW1", "is Arrow; give it the suffix .arrow, or say --input-format arrow"),
    (b"SQLite format 3\x00", "is an SQLite database; write its rows as one JSON object a line"),
    (b"\x89HDF", "is HDF5; write its rows as one JSON object a line"),
    (b"GGUF", "is a model's weights, no prompts"),
    (b"%PDF", "is a PDF; write its text into prompts, one JSON object a line"),
    ((b"\x80\x04\x95", b"\x80\x05\x95"), "is a Python pickle; write its rows with json.dumps, one a line"),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself: git lfs pull"),
)  # fmt: skip
"""Bytes that files of other kinds begin with, what they are, and the remedy."""

_JQ = "make lines of it: jq -c '{}' FILE > FILE.jsonl"
_ARRAY = "is a JSON array, not one object a line; give it the suffix .json, or say --input-format json"
_CSV = "give it the suffix .{0}, or say --input-format {0}"
_SEPARATORS = ((",", "CSV"), ("\t", "TSV"), (";", "CSV"))
_NAME = re.compile(r"\w[\w.-]*( \w[\w.-]*)?")
"""A column's: one word or two, which a sentence with a comma in it does not consist of."""
_PROMPT_COLUMNS = (b"prompt", b"text", b"question", b"instruction", b"input")
_REPR = (
    'make lines of it: python -c "import ast, json, sys; [print(json.dumps(ast.literal_eval(line))) for line in '
    'sys.stdin]" < FILE > FILE.jsonl'
)


def magic_of(start: bytes) -> str | None:
    """What data is by its first bytes, with the remedy; None where it may be text."""
    return next((message for magic, message in _MAGIC if start.startswith(magic)), None)


def shape_of(lines: Sequence[bytes], *, whole: bool) -> str | None:
    """What a file is by its first lines, none of them blank, with the remedy; None where it may hold lines of JSON.

    ``whole`` says that these are all of its lines.
    """
    first = lines[0]
    if _is_json(first):
        return _ARRAY if whole and len(lines) == 1 and first.startswith(b"[") and first != b"[]" else None
    if first.startswith(b"["):
        return _ARRAY
    if len(lines) > 1 and lines[1].startswith(b"{") and _is_json(lines[1]):
        return None  # there are lines: the first is a bad one
    if first.startswith(b"{'"):
        return f"holds Python dicts, not JSON; {_REPR}"
    if first.startswith(b"{"):
        return _objects(lines, whole=whole)
    if first[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page or XML, not one JSON object a line: was it downloaded from the right address?"
    return _table(lines)


def _objects(lines: Sequence[bytes], *, whole: bool) -> str | None:
    """Objects that are not each on a line of their own."""
    text = b"\n".join(lines).decode("utf-8", "replace")
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except RecursionError:
        return None
    except ValueError:
        if _breaks_texts(text):
            return "has line breaks inside of texts, which JSON writes as \\n: write the lines with json.dumps"
        # It may be too long to be read to its end here.
        return f"holds objects over several lines; {_JQ.format('.')}" if _goes_on(lines) else None
    if "\n" in text[:end]:
        own = {"prompt", "messages", "body"} & value.keys()
        rows = None if own else next((key for key, part in value.items() if are_rows(part)), None)
        if whole and not text[end:].strip() and rows is not None:
            each = f".[{json.dumps(rows[:40])}][]"
            return f"is one object with the rows in '{rows:.40}', not one object a line; {_JQ.format(each)}"
        return f"holds objects over several lines; {_JQ.format('.')}"
    rest = text[end:].partition("\n")[0].strip()
    if rest == ",":
        return "has a comma behind each line's object; remove them: sed 's/,[[:space:]]*$//' FILE > FILE.jsonl"
    if rest.startswith("{"):
        return f"has several objects on a line; {_JQ.format('.')}"
    return None


def _breaks_texts(text: str) -> bool:
    """Whether the first object is right but for line breaks in its texts."""
    try:
        _, end = json.JSONDecoder(strict=False).raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return "\n" in text[:end]


def _goes_on(lines: Sequence[bytes]) -> bool:
    """Whether the first line is the beginning of an object whose members follow."""
    if len(lines) < 2:
        return False
    first, second = lines[:2]
    begins = b'"' if first.endswith(b",") else b'"{[' if first.endswith((b"{", b"[")) else b""
    return second[:1] in begins and second[:1] != b""


def _table(lines: Sequence[bytes]) -> str | None:
    """A table: a head of names, and as many columns in the row after it; or one column with a name of prompts."""
    if len(lines) > 1 and (alone := lines[0].lower()) in _PROMPT_COLUMNS:
        return f"is CSV (column {alone.decode()}), not one JSON object a line; {_CSV.format('csv')}"
    for separator, name in _SEPARATORS:
        try:
            rows = list(csv.reader((line.decode("utf-8") for line in lines[:20]), delimiter=separator, strict=True))
        except (UnicodeDecodeError, csv.Error):
            continue
        head = rows[0]
        if len(head) < 2 or len(rows) < 2 or len(rows[1]) != len(head) or len(set(head)) < len(head):
            continue
        if all(_NAME.fullmatch(column) for column in head):
            return (
                f"is {name} (columns {', '.join(head)[:120]}), not one JSON object a line; {_CSV.format(name.lower())}"
            )
    return None


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True

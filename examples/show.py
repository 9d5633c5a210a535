"""Prints the first records of a results file for a person to read: id, stop reason, text or calls of tools."""

from __future__ import annotations

import json
import sys
from pathlib import Path

SHOWN = 12
WIDTH = 90


def main(path: Path) -> None:
    """One line per text of the first records."""
    with path.open(encoding="utf-8") as lines:
        for _, line in zip(range(SHOWN), lines, strict=False):
            record = json.loads(line)
            for choice in record.get("choices", [record]):
                calls = (call["function"] for call in choice.get("tool_calls", ()))
                said = [choice["text"], *(f"{call['name']}({call['arguments']})" for call in calls)]
                text = " ".join(" ".join(said).split())
                shown = text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
                print(f"  {record['id']:<28} {choice['stop_reason']:<12} {shown}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

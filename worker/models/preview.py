"""``python -m worker.models.preview``: prompts as a model will see them, for ``promptmill check --model``. No weights.

Standard input is JSON lines: first ``{"model", "defaults", "control_tokens"}``, then ``{"line", "raw"}`` per prompt
line. Standard output has one JSON line for each: ``{"line", "tokens"}`` or ``{"line", "problem"}``, for the first
prompts also ``{"line", "preview"}``, and at the end ``{"summary"}``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from jobs.errors import LineError, PromptmillError
from jobs.lines.line import Defaults, check_line

PREVIEWS = 3


def previewed(header: dict[str, Any], lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What is said of each line, and the summary.

    Raises:
        ModelLoadError: the model's tokenizer cannot be loaded.
    """
    from worker.engine.loading.mlx_models import describe_model
    from worker.engine.prompts.prepare import Preparer

    model = describe_model(header["model"])
    preparer = Preparer(model, control_tokens=header["control_tokens"])
    defaults = Defaults(header["defaults"])
    total, longest, shown = 0, 0, 0
    for line in lines:
        number = line["line"]
        try:
            job = check_line(line["raw"].encode()).job(index=number - 1, line=number, batch_id="", defaults=defaults)
            prepared = preparer.prepare(job)
            tokens = sum(len(part.prompt) for part in (prepared, *prepared.others))
            if shown < PREVIEWS:
                yield {"line": number, "preview": preparer.render(job)}
                shown += 1
        except LineError as error:
            yield {"line": number, "problem": error.at(number).as_dict()}
            continue
        total, longest = total + tokens, max(longest, tokens)
        yield {"line": number, "tokens": tokens}
    yield {"summary": {"prompt_tokens": total, "longest": longest, "context_length": model.context_length}}


def main() -> int:
    """Read standard input, write standard output; the exit status."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        header = orjson.loads(sys.stdin.buffer.readline())
        for said in previewed(header, map(orjson.loads, sys.stdin.buffer)):
            sys.stdout.buffer.write(orjson.dumps(said) + b"\n")
    except PromptmillError as error:
        sys.stderr.write(f"promptmill: {error}\n")
        return error.exit_status
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

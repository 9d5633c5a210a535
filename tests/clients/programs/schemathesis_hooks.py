"""What requests that are made up cannot know: a model that is served, and that texts be short."""

from __future__ import annotations

import os
from typing import Any

import schemathesis

LONGEST = {"max_tokens": 8, "max_completion_tokens": 8, "n": 2, "best_of": 2}


@schemathesis.hook
def map_body(_context: Any, body: Any) -> Any:
    """A request of a model, for one that there is."""
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        return body
    lengths = {name: min(body[name], most) for name, most in LONGEST.items() if isinstance(body.get(name), int)}
    longest = {} if "messages" in body and "max_completion_tokens" in body else {"max_tokens": 8}
    return {**body, **longest, **lengths, "model": os.environ["MODEL"]}

"""Training data with tool calls: what mlx-lm's own data set makes of a line of `--format chat`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from mlx_lm.tuner.datasets import ChatDataset, create_dataset
from transformers import AutoTokenizer

from jobs.record import Choice
from jobs.store.store import Store
from submit.results.destination import Destination
from submit.results.formats import renderer
from submit.results.read import ordered_records
from tests.pool import make_batch, work

MODEL = Path(__file__).parents[2] / "examples" / "pocket" / "model"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
TEMPLATE = """
{%- for tool in tools or [] %}<|im_start|>tools
{{ tool | tojson }}<|im_end|>
{% endfor %}
{%- for message in messages %}<|im_start|>{{ message['role'] + '\n' + message['content'] }}
{%- for call in message.tool_calls or [] %}<call>
{{- {'name': call.function.name, 'city': call.function.arguments.city} | tojson }}</call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"""
"""It reads into the arguments, as templates do that write calls in words of their own."""


@pytest.mark.parametrize("mask", [False, True])
def test_mlx_lm_reads_calls_as_training_data(store: Store, mask: bool) -> None:
    """The tools, the calls of the conversation, their results and the call to be learned are in the tokens; only the
    last turn is what is learned where the prompt is masked."""
    called = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}]
    line = {
        "messages": [
            {"role": "user", "content": "Bonn and Ulm?"},
            {"role": "assistant", "content": None, "tool_calls": called},
            {"role": "tool", "tool_call_id": "c1", "content": "21 degrees"},
        ],
        "tools": [TOOL],
    }
    answer = [{"id": "c2", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}]
    batch_id = make_batch(store, [line])
    work(store, batch_id, answer=lambda job: [Choice(0, "", "eos", tool_calls=answer)])
    render = renderer(Destination(fmt="chat"), store, store.batch(batch_id))
    data = [orjson.loads(render(record)) for record in ordered_records(store.connection, batch_id)]
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = TEMPLATE
    dataset: Any = create_dataset(data, tokenizer, SimpleNamespace(mask_prompt=mask))
    assert isinstance(dataset, ChatDataset)
    tokens, offset = dataset.process(dataset[0])
    text = tokenizer.decode(tokens)
    assert '{"type": "function", "function": {"name": "weather"' in text
    assert '<call>{"name": "weather", "city": "Bonn"}</call>' in text
    assert "21 degrees" in text
    learned = tokenizer.decode(tokens[offset:]).strip()
    assert learned.endswith('<call>{"name": "weather", "city": "Ulm"}</call><|im_end|>')
    assert learned.startswith("<call>") is mask

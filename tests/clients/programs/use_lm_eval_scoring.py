"""lm-evaluation-harness scores texts on a server, and mlx_lm.evaluate scores the same beside it: numbers are equal.

MODEL_FOLDER is the model's folder: the harness makes the tokens, and the peer computes with the weights.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import requests
from checks import check
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager
from mlx_lm.evaluate import MLXLM

FOLDER = os.environ["MODEL_FOLDER"]
CLOSE = 1e-4
"""How far log-probabilities may be apart, for each token of the longest text that is scored."""
OPENINGS = ("Once upon a time", "Tom had a red ball.", "One day a bird", "In the garden", "Anna and Ben")
CHOICES = """task: four_way
dataset_path: json
dataset_kwargs: {data_files: {train: train.jsonl, test: test.jsonl}}
training_split: train
test_split: test
fewshot_split: train
fewshot_config: {sampler: first_n}
output_type: multiple_choice
num_fewshot: 3
doc_to_text: "{{question}}"
doc_to_target: label
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
TEXTS = """task: plain_text
dataset_path: json
dataset_kwargs: {data_files: {test: text.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""
WAYS = {
    "token ids": {"tokenized_requests": True, "num_concurrent": 16},
    "lists of token ids": {"tokenized_requests": True, "batch_size": 4, "num_concurrent": 2},
    "texts": {"tokenized_requests": False, "num_concurrent": 16},
    "lists of texts": {"tokenized_requests": False, "batch_size": 4},
}


def question(draw: random.Random) -> dict[str, Any]:
    """A question that the model can answer, with four answers, some of more than one token."""
    one, other = draw.randint(2, 9), draw.randint(2, 9)
    wrong = [one + other + 1, one + other + 10, abs(one - other)]
    choices = [one + other, *wrong]
    draw.shuffle(choices)
    asked = f"What is {one} + {other}?"
    return {"question": asked, "choices": [f"{number}" for number in choices], "label": choices.index(one + other)}


def story(opening: str, tokens: int) -> dict[str, str]:
    """A text as the model tells it: of others a tiny model has perplexities of millions."""
    asked = {"model": os.environ["MODEL"], "prompt": opening, "max_tokens": tokens, "temperature": 1, "seed": 3}
    key = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    answer = requests.post(f"{os.environ['OPENAI_BASE_URL']}/completions", json=asked, headers=key, timeout=120)
    return {"text": opening + answer.json()["choices"][0]["text"]}


def write_tasks(folder: Path) -> None:
    draw = random.Random(5)
    rows = {
        "train": [question(draw) for _ in range(5)],
        "test": [question(draw) for _ in range(16)],
        "text": [story(opening, 20 * place) for place, opening in enumerate(OPENINGS, 1)],
    }
    for name, made in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in made))
    (folder / "four_way.yaml").write_text(CHOICES)
    (folder / "plain_text.yaml").write_text(TEXTS)


class Prefixed(MLXLM):  # type: ignore[misc]
    """mlx_lm.evaluate's model on the requests that the harness makes for a server: texts stand behind the token that
    begins them, so that the first token counts too. mlx_lm.evaluate itself scores from the second on."""

    def loglikelihood_rolling(self, requests: Any) -> Any:
        encode, begin = self._tokenize, self.tokenizer.bos_token_id
        begin = self.tokenizer.eos_token_id if begin is None else begin
        self._tokenize = lambda texts: [(begin, *tokens) for tokens in encode(texts)]
        try:
            return super().loglikelihood_rolling(requests)
        finally:
            self._tokenize = encode


class AsHarness(MLXLM):  # type: ignore[misc]
    """mlx_lm.evaluate's model on the requests that the harness makes after a chat template. mlx-lm itself opens a
    thought where the model may think; and blanks at a context's end, as templates have, belong to the continuation for
    the harness alone."""

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> Any:
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return self.tokenizer._tokenizer.apply_chat_template(chat_history, tokenize=False, **options)

    def loglikelihood(self, requests: Any) -> Any:
        moved = []
        for context, continuation in (request.args for request in requests):
            kept = context.rstrip()
            moved.append(SimpleNamespace(args=(kept, context[len(kept) :] + continuation)))
        return super().loglikelihood(moved)


def evaluated(model: Any, *, chat: bool = False) -> tuple[dict[str, Any], list[Any]]:
    """The harness's results, as mlx_lm.evaluate prints them, and what the model said to each request."""
    tasks = ["four_way"] if chat else ["four_way", "plain_text"]
    manager = TaskManager(include_path=".", include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, tasks=tasks, task_manager=manager, apply_chat_template=chat)
    said = [
        (task, sample["doc_id"], place, answer[0])
        for task, samples in found["samples"].items()
        for sample in samples
        for place, answer in enumerate(sample["resps"])
    ]
    numbers = {
        f"{task} {name.partition(',')[0]}": value
        for task, results in found["results"].items()
        for name, value in results.items()
        if isinstance(value, float)
    }
    return numbers, sorted(said, key=lambda one: one[:3])


def server(**options: Any) -> LocalCompletionsAPI:
    url = os.environ["OPENAI_BASE_URL"]
    return LocalCompletionsAPI(model=os.environ["MODEL"], base_url=f"{url}/completions", tokenizer=FOLDER, **options)


def printed(numbers: dict[str, Any]) -> dict[str, str]:
    """Numbers as the harness's table has them."""
    return {name: f"{value:.4f}" for name, value in numbers.items()}


def apart(ours: list[Any], theirs: list[Any]) -> Iterator[str]:
    """What the two said otherwise, request by request."""
    if len(ours) != len(theirs):
        yield f"{len(ours)} answers and {len(theirs)}"
    for (*name, own), (*_, other) in zip(ours, theirs, strict=False):
        mine, its = (said if isinstance(said, tuple | list) else (said, None) for said in (own, other))
        if abs(mine[0] - its[0]) > CLOSE * max(1.0, abs(its[0])) or bool(mine[1]) != bool(its[1]):
            yield f"{name}: {own} and {other}"


def compare(what: str, ours: tuple[dict[str, Any], list[Any]], theirs: tuple[dict[str, Any], list[Any]]) -> None:
    numbers, expected = printed(ours[0]), printed(theirs[0])
    check(f"{what}: the numbers of mlx_lm.evaluate, to the last digit printed", numbers == expected,
          f"{numbers} and {expected}")  # fmt: skip
    other = list(apart(ours[1], theirs[1]))
    check(f"{what}: each log-likelihood, and whether it is greedy", not other, other[:2])


def main() -> None:
    write_tasks(Path())
    expected = evaluated(Prefixed(FOLDER, use_chat_template=False, batch_size=1))
    for name, options in WAYS.items():
        compare(name, evaluated(server(**options)), expected)
    chat = evaluated(server(**WAYS["token ids"]), chat=True)
    compare("chat template", chat, evaluated(AsHarness(FOLDER, use_chat_template=True), chat=True))
    accuracy = chat[0]["four_way acc"]
    check("scores are above chance", accuracy > 0.5, f"acc {accuracy} after the chat template")


if __name__ == "__main__":
    main()

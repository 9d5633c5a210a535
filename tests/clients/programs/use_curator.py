"""Curator's batch back end: texts, objects of a schema, and a request that fails."""

from __future__ import annotations

import os
import shutil
from typing import Any

from batch_answers import MODEL, QUESTIONS, RIGHT, TOO_LONG, answered, check_answers
from checks import check
from pydantic import BaseModel

from bespokelabs import curator  # isort: skip

SERVER = {
    "base_url": os.environ["OPENAI_BASE_URL"],
    "api_key": os.environ["OPENAI_API_KEY"],
    "batch_size": 15,
    "batch_check_interval": 1,
}
PARAMETERS = {"max_tokens": 100, "temperature": 0}


class Sums(curator.LLM):
    """A question per row."""

    def prompt(self, row: dict[str, Any]) -> str:
        return row["question"]

    def parse(self, row: dict[str, Any], response: str) -> dict[str, Any]:
        return {"question": row["question"], "answer": response}


class Person(BaseModel):
    name: str
    age: int


class People(curator.LLM):
    """An object of a schema per row."""

    response_format = Person

    def prompt(self, row: dict[str, Any]) -> str:
        return f"Give me JSON for a person named {row['name']} aged {row['age']}."

    def parse(self, row: dict[str, Any], response: Person) -> dict[str, Any]:
        return {**row, "made": response.model_dump()}


def model(kind: type[curator.LLM], **more: Any) -> curator.LLM:
    parameters = {**SERVER, **more}
    return kind(model_name=MODEL, backend="openai", batch=True, backend_params=parameters, generation_params=PARAMETERS)


def rows(*questions: str) -> list[dict[str, str]]:
    return [{"question": question} for question in questions]


def main() -> None:
    made = model(Sums)(rows(*QUESTIONS))
    said = {row["question"]: row["answer"] for row in made.dataset}
    check_answers(said, made.token_usage.input, made.token_usage.output)
    sizes = sorted(batch.request_counts.total for batch in answered().batches if batch.request_counts)
    check("the rows are split into batches", sizes == [10, 15, 15], sizes)
    again = model(Sums)(rows(*QUESTIONS))
    same = {row["question"]: row["answer"] for row in again.dataset} == said
    check("a second run takes what it has", same and len(answered().batches) == 3, len(answered().batches))

    people = [{"name": name, "age": age} for name, age in (("Anna", 31), ("Mia", 40), ("Tom", 22))]
    shaped = [row["made"] for row in model(People)(people).dataset]
    check("objects of a schema are what was asked for", shaped == people, shaped)

    some = model(Sums, require_all_responses=False, max_retries=1)(rows(QUESTIONS[0], TOO_LONG, QUESTIONS[1]))
    left = [(row["question"], row["answer"]) for row in some.dataset]
    check("a line that fails fails alone", left == [(question, RIGHT[question]) for question in QUESTIONS[:2]], left)


if __name__ == "__main__":
    shutil.rmtree(os.environ["CURATOR_CACHE_DIR"], ignore_errors=True)
    main()

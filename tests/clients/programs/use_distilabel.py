"""distilabel's offline batch generation: an LLM by itself, and one in a pipeline."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from batch_answers import MODEL, QUESTIONS, RIGHT, TOO_LONG, answered, check_answers
from checks import check
from distilabel.exceptions import DistilabelOfflineBatchGenerationNotFinishedException
from distilabel.models.llms import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

PARAMETERS = {"max_new_tokens": 100, "temperature": 0.0}


def llm(*, wait: bool = True) -> OpenAILLM:
    """It asks every second whether the batch is done, or gives its id back."""
    seconds = 1 if wait else None
    return OpenAILLM(
        model=MODEL,
        base_url=os.environ["OPENAI_BASE_URL"],
        api_key=os.environ["OPENAI_API_KEY"],
        use_offline_batch_generation=True,
        offline_batch_generation_block_until_done=seconds,
        generation_kwargs=PARAMETERS,
    )


def asked(*questions: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": question}] for question in questions]


def in_a_pipeline() -> None:
    """All questions, in one batch."""
    with Pipeline(name="sums", cache_dir=Path("cache")) as pipeline:
        rows = LoadDataFromDicts(data=[{"instruction": question} for question in QUESTIONS], batch_size=20)
        rows >> TextGeneration(llm=llm(), input_batch_size=len(QUESTIONS))
    made = pipeline.run(use_cache=False)["default"]["train"]
    said = {row["instruction"]: row["generation"] for row in made}
    counted = [row["distilabel_metadata"]["statistics_text_generation_0"] for row in made]
    tokens = [sum(each[name] for each in counted) for name in ("input_tokens", "output_tokens")]
    check("a pipeline gives a row per question", len(made) == len(QUESTIONS), len(made))
    check_answers(said, *tokens)
    metadata = [batch.metadata for batch in answered().batches]
    check("the batch keeps the metadata", metadata[0]["distilabel_pipeline_name"] == "sums", metadata)


def by_itself() -> None:
    """A batch that is asked for later, as by a script that is run again; several texts of each question."""
    first = llm(wait=False)
    first.load()
    try:
        first.generate_outputs(inputs=asked(*QUESTIONS[:5]), num_generations=3, **PARAMETERS)
        ids = None
    except DistilabelOfflineBatchGenerationNotFinishedException as told:
        ids = told.jobs_ids
    known = [batch.id for batch in answered().batches]
    check("it tells the id of its batch", ids is not None and set(ids) < set(known), (ids, known))
    later = llm()
    later.load()
    later.jobs_ids = ids
    made = later.generate_outputs(inputs=asked(*QUESTIONS[:5]))
    texts = [each["generations"] for each in made]
    check("it fetches the results by that id", texts == [[RIGHT[question]] * 3 for question in QUESTIONS[:5]], texts)


def with_a_failure() -> None:
    one = llm()
    one.load()
    made = one.generate_outputs(inputs=asked(QUESTIONS[0], TOO_LONG, QUESTIONS[1]), **PARAMETERS)
    texts = [each.get("generations") if each else None for each in made]
    check("a line that fails leaves its place empty", len(texts) == 3 and not texts[1], texts)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    in_a_pipeline()
    by_itself()
    with_a_failure()

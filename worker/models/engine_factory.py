"""Making the engine of a model, as the worker's settings say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from jobs.app.worker_options import EngineSettings
from jobs.shard import Group

if TYPE_CHECKING:
    from worker.engine.engine import Engine
    from worker.engine.loading.model import LoadedModel
    from worker.engine.prompts.prepare import Preparer
    from worker.engine.text.completion import TextAssembler


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the other threads need of a loaded model. Its weights are not in here: whoever still holds this when the
    model is unloaded keeps none of them in memory."""

    preparer: Preparer
    assembler: TextAssembler
    revision: str | None


class EngineFactory:
    """Loads models and the draft model that all of them share. Thread: compute."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._draft: LoadedModel | None = None

    @property
    def draft_bytes(self) -> int:
        """What the draft model takes, once it is loaded."""
        return 0 if self._draft is None else self._draft.weight_bytes

    def load_draft(self) -> None:
        """Load the draft model, if there is to be one and it is not loaded yet."""
        from worker.engine.loading.mlx_models import load_draft

        settings = self._settings
        if self._draft is None and settings.draft_model is not None:
            self._draft = load_draft(settings.draft_model, trust_remote_code=settings.trust_remote_code)

    def load(self, group: Group, others: Sequence[LoadedModel] = ()) -> LoadedModel:
        """Load a model; it shares the weights of ``others``, which are the same model with other adapters."""
        from worker.engine.loading.mlx_models import load_model, set_wired_limit
        from worker.engine.unbatched.modes import UnbatchedModes

        settings = self._settings
        if settings.wired_limit is not None:
            set_wired_limit(settings.wired_limit)
        # Its fields are settings of the same names.
        modes = UnbatchedModes(**{row.name: getattr(settings, row.name) for row in fields(UnbatchedModes)})
        return load_model(
            group.model,
            revision=settings.revision,
            adapter_path=group.adapter_path,
            trust_remote_code=settings.trust_remote_code,
            modes=modes,
            draft=self._draft,
            share=max(others, key=lambda other: len(other.weights), default=None),
        )

    def make(self, group: Group, memory: int | None, others: Sequence[LoadedModel]) -> tuple[Engine, ServedModel]:
        """Load a model as :meth:`load`, and make its engine, whose caches may have so much ``memory`` (None: no
        limit)."""
        from worker.engine.engine import Engine
        from worker.engine.prompts.prepare import Preparer
        from worker.engine.text.completion import TextAssembler
        from worker.models.autotune import TunedFile, tuned_rows

        settings, model = self._settings, self.load(group, others)
        rows = settings.decode_concurrency
        if settings.autotune is not None:
            rows = tuned_rows(model, settings, memory, TunedFile(settings.autotune))
        engine = Engine(
            model,
            decode_concurrency=rows,
            prompt_concurrency=settings.prompt_concurrency,
            prefill_step_size=settings.prefill_step_size,
            max_context=settings.max_context,
            memory_limit=memory,
            prefix_memory=settings.prefix_memory,
        )
        preparer = Preparer(model, max_context=settings.max_context, control_tokens=settings.control_tokens)
        return engine, ServedModel(preparer, TextAssembler(model.tokenizer), model.revision)

"""The loop: lines in, finished lines out; prompts prefilled in chunks between the steps of one full batch.

What follows from a step's tokens (records, stop strings) is done while the device computes the logits after them, so
it costs no time of its own. One thread owns an engine: the one that loaded its model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Sequence as Items
from functools import partial

import mlx.core as mx

from jobs.errors import SickModelError
from worker.engine.caches import prompt_cache
from worker.engine.caches.prefix_cache import PrefixCache, prefix_budget
from worker.engine.decode import NotFiniteError, not_drawn
from worker.engine.guided.ends import ends_text, is_valid
from worker.engine.guided.masks import GuideError
from worker.engine.line_state import EngineStats, LineState, failure_of, in_flight
from worker.engine.loading.mlx_models import cache_budget, compiler_present
from worker.engine.loading.model import LoadedModel
from worker.engine.recovery import Suspects, try_model
from worker.engine.room import CacheBytes
from worker.engine.sampling.sampler import suited
from worker.engine.scheduler import Scheduler, SequenceGroup
from worker.engine.scoring.item import Item
from worker.engine.scoring.scoring import Scoring
from worker.engine.scoring.task import Scores
from worker.engine.sequence import NONE_ALLOWED, Failure, Finished, InFlight, PreparedLine, SampledToken, Sequence
from worker.engine.staging import Staging
from worker.engine.text.detokenizer import Detokenizer
from worker.engine.text.markup import markup_of
from worker.engine.text.stop_strings import stop_matcher
from worker.engine.unbatched.speculative import batch_of

log = logging.getLogger(__name__)


class Engine:
    """Runs prepared lines on one loaded model in one continuous batch.

    A line's tokens depend on the line alone: what shares its batch changes neither its draws nor its parameters. The
    one thing that cannot be promised is bitwise equal logits, since kernels for other batch sizes round differently;
    where that matters, both concurrencies of 1 and ``prefix_memory`` 0 run every line by itself.

    ``decode_concurrency`` is the most rows that decode together, ``prompt_concurrency`` the most prompts prefilled
    together, ``prefill_step_size`` the most prompt tokens computed between two decode steps, fewer while rows decode:
    see :class:`Pace`. ``max_context`` overrides the model's context length. ``memory_limit`` are
    the bytes that caches may take (None: what the device recommends, less the model), ``prefix_memory`` those of them
    that keep what prompts have in common (None: a tenth, or 512 MiB where there is no limit; 0: every prompt is
    computed in full). ``compile`` says whether sampling is compiled (None: as suits the device and the
    vocabulary). ``clock`` gives seconds.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        decode_concurrency: int = 32,
        prompt_concurrency: int = 8,
        prefill_step_size: int = 2048,
        max_context: int | None = None,
        memory_limit: int | None = None,
        prefix_memory: int | None = None,
        compile: bool | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if prefill_step_size < 1:
            raise ValueError("prefill_step_size must be at least 1")
        self.model = model
        self.context = max_context if max_context is not None else model.context_length
        self.stats = EngineStats()
        self.on_begin: Callable[[list[Hashable]], frozenset[Hashable]] = lambda keys: frozenset()
        """Called with the keys of lines that begin, before anything is computed of them; the keys it returns are
        cancelled instead."""
        self._clock = clock
        self._step_size = prefill_step_size
        self._prefix_memory = prefix_memory if model.prefixes else 0
        self._prefixes = PrefixCache(0, model.cache_cost, prompt_cache.shorten)
        self._scheduler = Scheduler(
            decode_concurrency=decode_concurrency if model.batchable else 1,
            prompt_concurrency=prompt_concurrency if model.batchable else 1,
            sizes=CacheBytes(model.cache_cost, partial(model.cache_cost.prompt, chunk=prefill_step_size)),
            padding=model.padded_prefill,
            assign=self._prefixes.assign,
        )
        self.set_memory(memory_limit if memory_limit is not None else cache_budget())
        self._sampler = suited(compile, vocab_size=model.vocab_size, compiler=compiler_present())
        self._decode_batch = batch_of(model, self._sampler)
        self._lines: dict[Hashable, LineState] = {}
        self._begun = 0
        self._cancelled: dict[Hashable, str] = {}
        self._finished: list[Finished] = []
        self._staging = Staging(
            model, self._scheduler, self._prefixes, self.stats, self._begin, prefill_step_size, self._clock
        )
        self._scoring = Scoring(model, self._scheduler, self._prefixes, self.stats, self._begin, prefill_step_size)
        self._detokenizer = Detokenizer(model.tokenizer)
        self._markup = markup_of(model.tokenizer)
        self._suspects = Suspects()

    # -- what callers see ---------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Lines queued and not begun."""
        return len(self._lines) - self._begun

    @property
    def begun(self) -> int:
        """Lines under way."""
        return self._begun

    def __contains__(self, key: Hashable) -> bool:
        """Whether a line of this key is here and has not ended."""
        return key in self._lines

    @property
    def active(self) -> int:
        """Rows that decode, rows whose prompts are computed or wait for a free row, and prompts that are scored."""
        return self._scheduler.running + self._scheduler.staged + len(self._scoring)

    @property
    def capacity(self) -> int:
        """The most rows that decode together."""
        return self._scheduler.decode_concurrency

    @property
    def has_work(self) -> bool:
        return bool(self._lines or self._finished)

    def add(self, line: PreparedLine) -> None:
        """Queue a line. One that can never fit ends in the next step with ``context_length_exceeded``.

        Raises:
            ValueError: when a line of this key is already here, or its seed or prompt is missing.
        """
        if line.key in self._lines:
            raise ValueError(f"a line with key {line.key!r} is already in the engine")
        state = LineState(line)
        reason = state.fill(self.model.vocab_size, self._scheduler.room, self.context, self._clock())
        if reason is not None:
            self._finish(Finished(line.key, [], Failure("context_length_exceeded", reason)))
            return
        self._lines[line.key] = state
        for rows in state.histories():
            self._queue(state, rows)

    def cancel(self, key: Hashable, reason: str = "cancelled") -> None:
        """End a line at the next step, with ``reason`` as its stop reason and the text so far. Unknown keys, such as
        those of lines that have ended, are ignored."""
        if key in self._lines:
            self._cancelled[key] = reason

    def admit(self, only: frozenset[Hashable] | None) -> None:
        """From now on only these lines begin; None: all. Lines under way go on, with rows of theirs that begin anew."""
        self._scheduler.only = only

    def upcoming(self, only: frozenset[Hashable] | None) -> list[Hashable]:
        """The lines that begin next, in their order, if only these may (None: all): those of one wave of prompts."""
        prompts: list[SequenceGroup | Item] = [*self._scheduler.upcoming(only), *self._scoring.upcoming(only)]
        return list(dict.fromkeys(prompt.key for prompt in prompts if not prompt.again))

    @property
    def runnable(self) -> bool:
        """Whether there is something to do: not while all lines that are here wait to be admitted."""
        only = self._scheduler.only
        waiting = only is not None and self._lines.keys().isdisjoint(only)
        return self.has_work and not (waiting and not (self._begun or self._finished or self._cancelled))

    def drop_pending(self, chosen: Callable[[Hashable], bool] = lambda key: True) -> list[Hashable]:
        """Forget the ``chosen`` ones of the lines that have not begun, and report nothing more of them; their keys."""
        dropped = [line for line in self._lines.values() if not line.begun and chosen(line.line.key)]
        for line in dropped:
            self._drop(line)
            self._forget(line)
        return [line.line.key for line in dropped]

    def step(self) -> list[Finished]:
        """One round: a token per row is drawn, prompts advance, the tokens are read, rows start, the model runs on.

        Returns:
            The lines that ended. An exception of MLX or the model never leaves here: the line that causes it fails
            with ``internal_error``, and the others go on.

        Raises:
            SickModelError: the model fails whatever it is given; the lines are still here, none of them to blame.
        """
        self._cancel_lines()
        if self._suspects.untried:
            self._try_suspect()
        else:
            try:
                self._advance()
            except SickModelError:
                raise
            except Exception:
                self._recover()
                if not self._suspects.untried:
                    try_model(self.model, self._sampler)
                    raise  # no line can be to blame, and the next step would fail again
        finished, self._finished = self._finished, []
        return finished

    def snapshot(self) -> list[InFlight]:
        """The lines under way, in order of arrival."""
        places = self._staging.places()
        return [in_flight(line, places) for line in self._lines.values() if line.begun]

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes that MLX holds for arrays of this process (models, caches and prefixes), and those of our prefixes."""
        return int(mx.get_active_memory()), self._prefixes.nbytes

    def warm_up(self) -> None:
        """Check that the model works, before any line could be blamed.

        Raises:
            SickModelError: it does not.
        """
        try_model(self.model, self._sampler)

    def set_memory(self, memory: int | None, most: int | None = None) -> None:
        """From now on caches may take ``memory`` bytes (None: no limit), and up to ``most`` where it is one row that
        needs them (None: no more than ``memory``). Prefixes that no longer fit are dropped, and rows wait for room.
        """
        kept = prefix_budget(self._prefix_memory, memory)
        self._prefixes.limit(kept)
        self._scheduler.room.memory = None if memory is None else memory - kept
        self._scheduler.room.most = None if most is None else most - kept
        self._scheduler.room.decoding = 0  # not weighed since

    def close(self) -> None:
        """Forget all lines and give the caches' memory back. Nothing more is reported of the lines."""
        for line in self._lines.values():
            self._drop(line)
        self._reset()
        self._prefixes.clear()
        self._begun = 0
        self._suspects = Suspects()
        for kept in (self._lines, self._cancelled, self._finished):
            kept.clear()
        mx.clear_cache()

    # -- one round ----------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        began = self._clock()
        cramped = self._make_room()
        result = self._decode_batch.sample()
        running = 0 if result is None else len(result.rows)
        if result is not None:
            self.stats.count(result, self.capacity)
            for row in result.spent:
                self._scheduler.ended(row)
        if cramped:
            self._decode_batch.compact()
        self._weigh()
        for rows, caches, inputs in self._staging.start():
            self._decode_batch.join(rows, caches, inputs)
        self._decode_batch.advance()
        self._weigh()
        advanced = self._clock()
        tokens = self._prefill(len(self._decode_batch))
        prefilled = self._clock()
        drawn = result.read() if result is not None else ()
        self._decode_batch.launch()
        self._collect(drawn)
        for row in self._decode_batch.foresee():
            self._fail(self._lines[row.key], failure_of(GuideError(row)))
        ended = self._clock()
        if running and len(self._decode_batch):
            self._staging.pace.step(tokens, ended - began)
        else:
            self._staging.pace.stopped()
        self.stats.prefill_s += prefilled - advanced
        self.stats.decode_s += ended - prefilled + advanced - began

    def _prefill(self, running: int) -> int:
        """Compute prompts, those that are scored too, with so many rows decoding; the tokens they have."""
        budget = self._staging.pace.chunk(running, self._scheduler.coming)
        tokens = 0 if self._scoring.makes_prefixes else self._staging.advance(running)
        scored, found = self._scoring.advance(max(0, budget - tokens) if running else budget)
        for item, scores in found:
            if item.key in self._lines:  # not failed meanwhile, with another prompt of its
                self._scored(item, scores)
        return tokens + scored

    def _make_room(self) -> bool:
        """Take the rows out for whose next step the memory has no room. Whether it is short."""
        room = self._scheduler.room
        running = self._scheduler.running
        for rows in self._scheduler.take_back():
            for row in rows:
                self._decode_batch.leave(row)
            self._readmit(self._lines[rows[0].key], rows)
        self.stats.preempted_rows += running - self._scheduler.running
        cramped, room.cramped = room.cramped, False
        return cramped

    def _weigh(self) -> None:
        """Tell what the rows' caches really take."""
        if self._scheduler.room.memory is not None:
            self._scheduler.room.decoding = self._decode_batch.held_bytes()

    def _begin(self, groups: Items[SequenceGroup | Item]) -> frozenset[Hashable]:
        """The prompts of these groups begin; the keys of those that shall not."""
        fresh = list(dict.fromkeys(group.key for group in groups if not group.again))
        refused = self.on_begin(fresh) if fresh else frozenset()
        for key in refused:
            self.cancel(key)
        now = self._clock()
        for group in groups:
            if group.key in refused:
                continue
            self.stats.cached_tokens += group.cached
            for row in group.sequences:
                if row.prefill_started is None:
                    row.prefill_started, row.cached_tokens = now, group.cached
            line = self._lines[group.key]
            if not line.begun:
                line.begin()
                self._begun += 1
                self.stats.prompt_tokens += sum(len(part.prompt) for part in line.parts)
        return refused

    def _scored(self, item: Item, scores: Scores | None) -> None:
        """The prompt of an item is scored: its texts begin, are there with it, or it was for the scores alone."""
        line = self._lines[item.key]
        if scores is None:
            self._doubt_model()
            self._fail(line, failure_of(NotFiniteError()))
            return
        self.stats.scored_tokens += len(scores.logprobs)
        self.stats.cached_tokens += item.cached
        for row in item.sequences:
            row.scores, row.cached_tokens = scores, item.cached
            if not row.line.generates:
                row.first_token_at = self._clock()
                self._end(row, "scored")
        if item.drawn:
            self._collect(item.drawn)
        elif item.line.generates:
            group = line.group(list(item.tokens), item.sequences)
            self._staging.adopt(self._scoring.hand_over(item, group), group)

    def _collect(self, tokens: Iterable[SampledToken]) -> None:
        for drawn in tokens:
            row = drawn.row
            if row.ended:  # with its line, by another choice
                continue
            if not drawn.finite:
                if drawn.token != NONE_ALLOWED:
                    self._doubt_model()
                self._fail(self._lines[row.key], failure_of(not_drawn(drawn)))
            elif row.takes(drawn):
                self._accept(drawn)
            else:
                self.stats.repeated_rows += 1
                self._decode_batch.leave(row)
                self._readmit(self._lines[row.key], [row])

    def _doubt_model(self) -> None:
        try_model(self.model, self._sampler)  # which may be to blame
        self._prefixes.forget()  # and so may the one that the line went on from

    def _accept(self, drawn: SampledToken) -> None:
        """Add a token to its row, and end the row where the token does."""
        row, token = drawn.row, drawn.token
        row.append(drawn, self._clock())
        self.stats.completion_tokens += 1
        self.stats.accepted_tokens += drawn.drafted
        if ends_text(row, token):
            self._end(row, "eos")
        elif (row.sampling.stop or row.line.one_call) and self._stops(row, token):
            self._end(row, "eos" if row.stop_matcher is not None and row.stop_matcher.called else "stop_string")
        elif len(row.tokens) >= row.limit:
            self._end(row, row.limit_reason)
        if row.ended:
            self._scheduler.room.texts.add(len(row.tokens))

    def _stops(self, row: Sequence, token: int) -> bool:
        """Whether a token completes a stop string of its row, or the one call that it may make."""
        if row.stop_matcher is None:
            line, stream = row.line, self._detokenizer.stream(row.prompt)
            row.stop_matcher = stop_matcher(
                row.sampling, stream, self._markup, line.begins, calls=bool(line.tools), one_call=line.one_call
            )
        matcher = row.stop_matcher
        return matcher.add(token) or matcher.called

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _end(self, row: Sequence, reason: str) -> None:
        if row.stop_matcher is not None:
            if row.stop_matcher.close():
                reason = "stop_string"
            row.text, row.stop_string = row.stop_matcher.text, row.stop_matcher.match
        row.end(reason, self._clock())
        row.valid = is_valid(row, self._markup, self._detokenizer)
        self._scheduler.ended(row)
        line = self._lines[row.key]
        if not line.unfinished:
            self._forget(line)
            self._finish(Finished(row.key, line.sequences))

    def _forget(self, line: LineState) -> None:
        del self._lines[line.line.key]
        self._cancelled.pop(line.line.key, None)
        self._begun -= line.begun

    def _cancel_lines(self) -> None:
        for key, reason in list(self._cancelled.items()):
            line = self._lines[key]
            self._drop(line)
            try:
                for row in line.unfinished:
                    self._end(row, reason)
            except Exception as error:  # of a tokenizer, closing the text of a row with stop strings
                log.exception("line %r cannot be closed", key, extra={"action": "line_failed"})
                self._fail(line, failure_of(error))
        self._cancelled.clear()

    def _fail(self, line: LineState, failure: Failure) -> None:
        now = self._clock()
        self._drop(line)
        for row in line.unfinished:
            row.end("error", now)
            self._scheduler.ended(row)
        self._forget(line)
        self._finish(Finished(line.line.key, line.sequences, failure))

    def _finish(self, finished: Finished) -> None:
        self._finished.append(finished)
        if finished.error is None:
            self.stats.finished_lines += 1

    # -- rows that must begin again -----------------------------------------------------------------------------------

    def _queue(self, line: LineState, rows: list[Sequence], *, again: bool = False) -> None:
        """Queue rows of one history: to be scored, or to decode."""
        part = rows[0].line
        if part.scoring is not None and rows[0].scores is None:
            item = Item(part, rows, line.begun)
            self._scoring.add_first(item) if again else self._scoring.add(item)
        elif again:
            self._scheduler.add_first(line.group([*part.prompt, *rows[0].tokens], rows))
        else:
            self._scheduler.add(line.group(list(part.prompt), rows))
            self._prefixes.see(part.prompt)

    def _drop(self, line: LineState) -> None:
        """Forget the prompts of a line."""
        self._scheduler.drop(*line.groups)
        self._scoring.drop(line.line.key)

    def _readmit(self, line: LineState, rows: list[Sequence]) -> None:
        """Queue rows of one history again, first of all: prompt and accepted tokens are prefilled anew."""
        for row in rows:
            self._scheduler.ended(row)
        self._queue(line, rows, again=True)

    def _reset(self) -> None:
        """Forget everything that is under way on the device."""
        self._decode_batch.clear()
        self._staging.clear()
        self._scoring.clear()
        self._scheduler.clear()
        self._prefixes.forget()

    def _recover(self) -> None:
        """After an exception of a step no cache can be trusted: all lines under way become suspects."""
        log.exception("a step failed; its lines are tried one by one", extra={"action": "engine_recover"})
        self.stats.recoveries += 1
        for line in self._lines.values():
            if line.begun:
                self._drop(line)
                line.groups.clear()
                self._suspects.add(line)
        self._reset()

    def _try_suspect(self) -> None:
        """Try one suspect by itself: if that fails too, its line fails. When all are tried the others go on."""
        line, error = self._suspects.try_next(self.model, self._sampler, self._step_size, self._accept)
        if error is not None:
            try_model(self.model, self._sampler)
            log.error("line %r fails by itself", line.line.key, exc_info=error, extra={"action": "line_failed"})
            self._fail(line, failure_of(error))
        if self._suspects.untried:
            return
        if not self._suspects.guilty_found:
            self._scheduler.narrow()
            message = "no line fails by itself: going on with at most %d rows together"
            log.warning(message, self.capacity, extra={"action": "engine_narrowed"})
        for line, rows in reversed(self._suspects.acquitted()):
            self._readmit(line, rows)
        self._suspects = Suspects()

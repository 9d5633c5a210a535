"""Train the pocket model, measure it and write it where mlx_lm.load() can read it.

python examples/pocket/train.py [--steps N] [--out DIR] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from batches import Batch, batches, copy_batches
from corpus import END_OF_TEXT, IM_END
from evaluate import measure, report
from mlx.utils import tree_flatten
from mlx_lm.models.qwen3 import Model, ModelArgs
from tokenizer import CONTEXT_LENGTH, VOCAB_SIZE, default_tokenizer, save_tokenizer
from tokenizers import Tokenizer
from workers import WORKERS, is_worker, run_workers

MODEL_FOLDER = Path(__file__).parent / "model"
PROGRESS_SECONDS = 5.0


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train; a step is one batch per worker.

    The first `copy_steps` of the `steps` repeat random tokens, the others are the corpus.
    """

    steps: int
    seed: int
    copy_steps: int = 200
    matrix_rate: float = 0.02
    other_rate: float = 4e-3
    warmup_steps: int = 60
    gradient_norm: float = 1.0


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of config.json."""
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT_LENGTH,
        "vocab_size": VOCAB_SIZE,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "eos_token_id": tokenizer.token_to_id(IM_END),
        "pad_token_id": tokenizer.token_to_id(END_OF_TEXT),
    }


def loss_of(model: Model, batch: Batch) -> mx.array:
    """Mean cross entropy, in nats, over the tokens that are to be learned."""
    hidden = model.model(batch.inputs)
    # Logits only where they count: on the CPU the vocabulary's softmax is a large part of a step.
    hidden = hidden.reshape(-1, hidden.shape[-1])[batch.positions]
    logits = model.model.embed_tokens.as_linear(hidden)
    loss: mx.array = nn.losses.cross_entropy(logits, batch.targets, reduction="mean")
    return loss


def _schedule(recipe: Recipe, peak: float) -> Callable[[mx.array], mx.array]:
    """A linear rise to `peak`, then a cosine fall to a fiftieth of it, over the steps of the recipe."""
    warmup = max(1, min(recipe.warmup_steps, recipe.steps // 2))
    rise = optim.linear_schedule(peak / 100, peak, warmup)
    fall = optim.cosine_decay(peak, max(1, recipe.steps - warmup), peak / 50)
    schedule: Callable[[mx.array], mx.array] = optim.join_schedules([rise, fall], [warmup])
    return schedule


def make_optimizer(recipe: Recipe) -> optim.Optimizer:
    """Muon for the weight matrices inside the layers, AdamW for the embedding and the norms."""
    # With AdamW alone the loss falls more slowly, by the step and by the minute.
    matrices = optim.Muon(_schedule(recipe, recipe.matrix_rate), weight_decay=0.0)
    others = optim.AdamW(_schedule(recipe, recipe.other_rate), betas=[0.9, 0.98], weight_decay=0.0)
    return optim.MultiOptimizer([matrices, others], [lambda path, weight: "_proj" in path])


def _training_data(tokenizer: Tokenizer, recipe: Recipe, worker: int) -> Iterator[Batch]:
    """The batches of one worker; no two workers see the same."""
    seed = recipe.seed * WORKERS + worker
    # Answers need names and numbers from the prompt. Copying is learned within 200 steps from random
    # tokens, but not in 300 from the corpus, where it is a small part of every answer.
    yield from islice(copy_batches(seed), recipe.copy_steps)
    yield from batches(tokenizer, seed)


def train(model: Model, tokenizer: Tokenizer, recipe: Recipe, worker: int) -> None:
    """Train `model` in place, together with the other workers, on this `worker`'s part of the data.

    The first worker prints the mean loss since its last print every few seconds.
    """
    optimizer = make_optimizer(recipe)
    gradients_of = nn.value_and_grad(model, partial(loss_of, model))
    data = _training_data(tokenizer, recipe, worker)
    started = printed = time.monotonic()
    losses: list[float] = []
    for step, batch in enumerate(islice(data, recipe.steps), 1):
        loss, gradients = gradients_of(batch)
        gradients = nn.average_gradients(gradients)
        gradients, _ = optim.clip_grad_norm(gradients, recipe.gradient_norm)
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
        losses.append(loss.item())
        now = time.monotonic()
        if worker == 0 and (now - printed >= PROGRESS_SECONDS or step == recipe.steps):
            mean = sum(losses) / len(losses)
            print(f"step {step}/{recipe.steps}  loss {mean:.4f}  {now - started:.0f} s", flush=True)
            printed, losses = now, []


def save(model: Model, tokenizer: Tokenizer, config: dict[str, Any], folder: Path) -> None:
    """Write the weights, the configuration and the tokenizer to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    generation = {key: config[key] for key in ("eos_token_id", "pad_token_id")}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, folder)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "(default: %(default)s)"
    parser.add_argument("--steps", type=int, default=1800, help=f"how long to train {default}")
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=7, help=f"of the data and the first weights {default}")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if not is_worker():
        sys.exit(run_workers())

    worker = mx.distributed.init(strict=True, backend="ring").rank()
    recipe = Recipe(args.steps, args.seed)
    mx.random.seed(recipe.seed)
    tokenizer = default_tokenizer(recipe.seed)
    config = model_config(tokenizer)
    model = Model(ModelArgs.from_dict(config))
    train(model, tokenizer, recipe, worker)
    if worker != 0:
        return
    save(model, tokenizer, config, args.out)
    parameters = sum(weight.size for _, weight in tree_flatten(model.parameters()))
    text = report(measure(args.out, recipe.seed), parameters, recipe.steps)
    print(text)
    (args.out / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""The engine: prepared lines in, finished completions out, every row with its own sampling parameters.

Read it in this order: ``sequence`` (what travels), ``prompts`` (line to tokens), ``scheduler`` (what begins when),
``engine`` (the loop), ``prefill`` and ``decode`` (the two kinds of forward), ``rows`` and ``sampler`` (logits to
tokens), ``text`` (tokens to text). ``prefixes`` finds and keeps what prompts have in common, ``caches`` and ``slots``
handle mlx-lm's caches, ``recovery`` finds the line that broke a step, ``model``, ``lm`` and ``probe`` load a model and
try it, ``ladder`` and ``tune`` measure how many rows suit it, ``solo`` and ``draft`` are the modes in which rows run
one at a time; only ``lm`` imports mlx-lm. Nothing is imported here, so that the parts without MLX stay cheap.
"""

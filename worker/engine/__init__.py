"""The engine: prepared lines in, finished completions out, every row with its own sampling parameters.

Read it in this order: ``sequence`` (what travels), ``prompts`` (line to tokens), ``scheduler`` (what begins when),
``prefill`` and ``decode`` (the two kinds of forward), ``sampler`` (logits to tokens), ``engine`` (the loop), ``text``
(tokens to text). Only ``lm`` knows mlx-lm. Nothing is imported here, so that the parts without MLX stay cheap.
"""

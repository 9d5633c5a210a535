"""The engine: prepared lines in, finished completions out, every row with its own sampling parameters.

Read it in this order: ``sequence`` (what travels), ``prompts/`` (line to tokens), ``scheduler`` (what begins when),
``engine`` (the loop), ``prefill`` and ``decode`` (the two kinds of forward), ``sampling/`` (logits to tokens),
``text/`` (tokens to text). ``caches/`` handles mlx-lm's caches and the prefixes that prompts share, ``recovery`` finds
the line that broke a step, ``loading/`` loads a model and tries it, ``tuning/`` measures how many rows suit it,
``unbatched/`` has the modes in which rows run one at a time. Only ``loading/mlx_models`` imports mlx-lm. Nothing is
imported here, so that the parts without MLX stay cheap.
"""

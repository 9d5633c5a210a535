"""Benchmarks, as ratios: promptmill beside mlx-lm on the same machine, in the same run. ``python -m bench`` runs all.

Read it in this order: ``models`` and ``work`` (what is computed), ``peers``, ``server`` and ``mill`` (who computes it),
``sides`` (one of them in a process of its own), ``engine`` and ``endtoend`` (the rounds), ``record`` (what is kept),
``report`` (what is shown). ``longrun`` stands apart: it measures memory, not speed.
"""

"""Scoring: log-probabilities of texts that are there, as pure prefill; what lines share is computed once."""

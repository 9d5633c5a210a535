"""promptmill turns files of prompts into files of results on Apple silicon: ``from promptmill import Client``."""

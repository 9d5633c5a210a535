"""Prompts in: reading and checking a file, finding duplicate ids, previewing rendered prompts."""

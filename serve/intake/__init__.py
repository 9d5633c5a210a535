"""Intake: the files of new batches are checked and submitted, by a process beside the server."""

"""Calls of tools that a line asks for: grammars of the formats that models write calls in."""

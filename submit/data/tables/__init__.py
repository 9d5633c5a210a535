"""A module for each kind of table: JSON, CSV, Arrow, saved folders, the Hub, and objects in memory."""

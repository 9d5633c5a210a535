"""The embedded Redis: one server per user and data folder, and the process that supervises it."""

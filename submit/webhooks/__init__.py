"""Webhooks: the end of a batch delivered to a URL, signed, and tried again."""

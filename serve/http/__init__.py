"""HTTP itself: how connections are limited, bodies read, errors written, requests let in."""

"""Keys: who may come in, and what each may see."""

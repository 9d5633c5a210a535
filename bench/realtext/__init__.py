"""Real questions on a real model: texts that end by themselves, of unlike lengths, each with parameters of its own."""

"""Lines to tokens: chat templates, and control tokens in what users wrote."""

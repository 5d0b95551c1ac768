"""Stage 1: conversations -> plan -> activations -> cache."""

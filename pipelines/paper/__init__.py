"""The FAST paper (arXiv 2506.07691): its published figures, its 240 SAEs, and what they would cost."""

"""Stage 2: one cache in, shuffled batches, many sparse autoencoders out. No language model is loaded here."""

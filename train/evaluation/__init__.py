"""How good an SAE is on held-out rows: sums over groups of rows, and the figures, intervals and tables made of them."""

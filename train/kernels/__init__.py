"""Products and passes that a training step repeats, for the device they run on.

Each function here is one name for two forms: torch's own operations, on CPUs and wherever Triton is missing, and a
Triton kernel on CUDA. Both sum in a fixed order, so a step gives the same bits every time.

    products.py  products with a weight matrix
    bags.py      sums over selected rows, and scalar products of selected pairs of rows: the sparse half of a step
    latents.py   activation functions over all latents, with the sums that losses and counts need
    rows.py      passes over the rows of a matrix: the optimiser's
"""

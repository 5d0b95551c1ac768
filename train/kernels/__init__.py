"""Products and passes that a training step repeats, for the device they run on.

Each function here is one name for two forms: torch's own operations, on CPUs and wherever Triton cannot run
(`train.kernels.device`), and a Triton kernel on CUDA. Kernels sum in a fixed order, as torch does on a CPU. (A step
has other operations too: on CUDA it gives the same bits every time with --deterministic only.)

    products.py  products with a weight matrix
    bags.py      sums over selected rows, and scalar products of selected pairs of rows: the sparse half of a step
    latents.py   activation functions over all latents, with the sums that losses and counts need
    rows.py      the optimiser's update of a parameter
"""

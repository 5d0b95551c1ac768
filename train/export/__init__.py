"""SAEs on disk: one file a format, and the loader of all of them."""

from train.export.exported import ExportedSAE
from train.export.loader import load_sae, weights_file
from train.export.saelens import SAE_WEIGHTS, write_sae

__all__ = ["SAE_WEIGHTS", "ExportedSAE", "load_sae", "weights_file", "write_sae"]

"""The architectures by name. Adding one is one file and one line here; a contract test runs over the dict."""

from train.architectures.base import SAE
from train.architectures.batchtopk import BatchTopKSAE
from train.architectures.jumprelu import JumpReLUSAE
from train.architectures.standard import StandardSAE
from train.architectures.topk import TopKSAE

ARCHITECTURES: dict[str, type[SAE]] = {
    "standard": StandardSAE,
    "jumprelu": JumpReLUSAE,
    "topk": TopKSAE,
    "batchtopk": BatchTopKSAE,
}

__all__ = ["ARCHITECTURES", "SAE"]

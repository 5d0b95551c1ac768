"""The architectures by name. Adding one is one file and one line here; a contract test runs over the dict."""

from train.architectures.base import SAE
from train.architectures.batchtopk import BatchTopKSAE
from train.architectures.gated import GatedSAE
from train.architectures.jumprelu import JumpReLUSAE
from train.architectures.matryoshka import MatryoshkaSAE
from train.architectures.standard import StandardSAE
from train.architectures.topk import TopKSAE

ARCHITECTURES: dict[str, type[SAE]] = {
    "standard": StandardSAE,
    "gated": GatedSAE,
    "jumprelu": JumpReLUSAE,
    "topk": TopKSAE,
    "batchtopk": BatchTopKSAE,
    "matryoshka": MatryoshkaSAE,
}

__all__ = ["ARCHITECTURES", "SAE"]

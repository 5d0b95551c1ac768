"""Where and how the model runs: device, number format, batch budget, threads."""

from dataclasses import dataclass

import torch

from shared.errors import RecipeError

CPU_BATCH_TOKENS = 2_048
CUDA_BATCH_TOKENS = 32_768


@dataclass(frozen=True)
class Device:
    """A resolved device."""

    device: torch.device

    @property
    def kind(self) -> str:
        """What promises of equal bytes are tied to: "cpu" or the GPU's name."""
        return torch.cuda.get_device_name(self.device) if self.is_cuda else "cpu"

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def batch_tokens(self) -> int:
        """Padded tokens a batch by default."""
        return CUDA_BATCH_TOKENS if self.is_cuda else CPU_BATCH_TOKENS

    def compute_dtype(self, wanted: str) -> str:
        """ "auto" as a number format: bfloat16 on CUDA, float32 on a CPU.

        Most CPUs multiply bf16 matrices several times slower than float32 ones, and a format that followed
        the CPU's model would make the same command give another cache on another machine.
        """
        if wanted != "auto":
            return wanted
        return "bfloat16" if self.is_cuda else "float32"


def find_device(name: str = "auto") -> Device:
    """The device called ``name``; "auto" takes CUDA where there is one.

    Raises:
        RecipeError: an unknown device, or CUDA asked for where there is none.
    """
    if name == "auto":
        return Device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecipeError(f"Unknown device {name!r}. Expected auto, cpu, cuda or cuda:N.") from None
    if device.type not in {"cpu", "cuda"}:
        raise RecipeError(f"Device {name!r} is not supported. Expected auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise RecipeError(f"Device {name!r} is not there: {found} CUDA devices found. Use auto or cpu.")
    if device.index is not None:
        torch.cuda.set_device(device)  # streams and events are the current device's
    return Device(device)

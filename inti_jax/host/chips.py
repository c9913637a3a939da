"""List accelerators' peak rates, to compute utilisation and to tell what limits a step.

Figures are for one JAX device, as the makers publish them, without sparsity.
"""

import dataclasses
from typing import Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator. `flops` counts a multiply-accumulate as two, as its maker does."""

    name: str
    kinds: tuple[str, ...]  # `device_kind`, as JAX reports it
    flops: float  # per second, for matrix products in bfloat16
    memory_gib: int  # the makers' GB, which are GiB
    memory_bandwidth: float  # bytes per second
    link_bandwidth: float  # bytes per second to other chips, one way, over all links
    network_bandwidth: float | None = None  # bytes per second to other slices: its share of its host's


@runtime_checkable
class Device(Protocol):
    """The part of jax.Device that is read here."""

    @property
    def device_kind(self) -> str:
        """The kind of device, as JAX reports it."""


# From Cloud TPU's documentation, "Key specifications", one page per chip (cloud.google.com/tpu/docs/v4 and so
# on). It gives the interconnect in Gbit/s per chip and direction (v5e: 1,600), or over both directions
# (400 GB/s). It gives the network between slices per host of 8 chips (v5e: 2 x 100 Gbit/s, v6e: 4 x 200) or
# per chip (v5p: 50 Gbit/s), and for v4 not at all.
_TPUS = (
    Chip("v4", ("TPU v4",), 275e12, 32, 1200e9, 300e9),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16, 819e9, 200e9, 200e9 / 8 / 8),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95, 2765e9, 600e9, 50e9 / 8),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32, 1638e9, 400e9, 800e9 / 8 / 8),
)


# From NVIDIA's data sheet of each product. Its figures with sparsity are halved, and so are those for NVLink
# and PCIe, which count both directions.
_GPUS = (
    Chip("A100 40GB", ("NVIDIA A100-SXM4-40GB",), 312e12, 40, 1555e9, 300e9),
    Chip("A100 40GB PCIe", ("NVIDIA A100-PCIE-40GB",), 312e12, 40, 1555e9, 32e9),
    Chip("A100 80GB", ("NVIDIA A100-SXM4-80GB",), 312e12, 80, 2039e9, 300e9),
    Chip("A100 80GB PCIe", ("NVIDIA A100 80GB PCIe",), 312e12, 80, 1935e9, 32e9),
    Chip("H100", ("NVIDIA H100 80GB HBM3",), 989e12, 80, 3350e9, 450e9),
    Chip("H100 PCIe", ("NVIDIA H100 PCIe",), 756e12, 80, 2000e9, 64e9),
    Chip("H100 NVL", ("NVIDIA H100 NVL",), 835e12, 94, 3900e9, 300e9),
    Chip("H200", ("NVIDIA H200",), 989e12, 141, 4800e9, 450e9),
    Chip("B200", ("NVIDIA B200",), 2250e12, 180, 8000e9, 900e9),
    Chip("L4", ("NVIDIA L4",), 121e12, 24, 300e9, 32e9),
    Chip("L40S", ("NVIDIA L40S",), 362e12, 48, 864e9, 32e9),
    Chip("A10", ("NVIDIA A10",), 125e12, 24, 600e9, 32e9),
    Chip("A10G", ("NVIDIA A10G",), 70e12, 24, 600e9, 32e9),
)

_BY_KIND = {kind: chip for chip in (*_TPUS, *_GPUS) for kind in chip.kinds}

# By the name before the colon in a topology such as `v5e:4x4`.
TPU_FAMILIES = {chip.name: chip for chip in _TPUS}


def chip_of(device: Device) -> Chip | None:
    """Look up the chip of a JAX device; None for one that is not listed here, such as a CPU."""
    return _BY_KIND.get(device.device_kind)

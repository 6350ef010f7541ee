"""Which device a command runs on."""

from __future__ import annotations

import logging
import re

import torch

from ..ext import backends


def resolve_device(device: str | None, *, scans: bool = True) -> str:
    """`cuda` where there is one, else `cpu`; a device asked for by name that is absent is an error.

    Without a name, a model that scans goes to the CPU, with a warning, where CUDA has no usable backend of the scan.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() and not (scans and _cuda_cannot_scan()) else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", str(device)):
        raise ValueError(f"unknown device {device!r}; known: cpu, cuda, cuda:N")
    count = torch.cuda.device_count()
    if device != "cpu" and (torch.device(device).index or 0) >= count:
        raise ValueError(f"device {device!r} asked for, but torch sees {count or 'no'} CUDA devices")
    return device


def resolve_devices(names: str | None) -> list[str]:
    """The devices of a text such as "cuda:0,cuda:1"; several are GPUs, each by its number. Else as `resolve_device`."""
    found = [resolve_device(name) for name in ([None] if names is None else names.split(","))]
    if len(found) > 1 and (len(set(found)) < len(found) or not all(name.startswith("cuda:") for name in found)):
        raise ValueError(f"several devices are GPUs such as cuda:0,cuda:1, each named once, not {names!r}")
    return found


def _cuda_cannot_scan() -> bool:
    try:
        backends.pick("cuda")
    except ValueError as error:
        logging.getLogger("mambalab").warning("on the CPU: %s", error)
        return True
    return False

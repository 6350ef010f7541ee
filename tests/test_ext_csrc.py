"""Every kernel that is compiled ahead of time compiles for every architecture, and takes no more than it may."""

from __future__ import annotations

from importlib import import_module

import pytest
from mambalab.ext import nvrtc
from mambalab.ext.nvrtc import Resources, Variant

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
# The most that a kernel may take: registers a thread, bytes of static shared memory a block, and bytes a thread of
# stack, spill stores and spill loads. The table is for the kernels that need more than the usual.
USUAL = Resources(registers=128, shared=16 * 1024, stack=0, spill_stores=0, spill_loads=0)
LIMITS = {
    "scan_forward": USUAL._replace(registers=168),
    "scan_states": USUAL._replace(registers=168, stack=64, spill_stores=64, spill_loads=64),
    # The states between the parts of a chunk are kept on the stack.
    "scan_backward": USUAL._replace(registers=255, stack=256, spill_stores=128, spill_loads=128),
}

pytestmark = pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))


def _variants(module: str) -> list[Variant]:
    return [Variant(*row) for row in import_module(f"mambalab.ext.{module}").variants()]


def _excess(variant: Variant, arch: str) -> str | None:
    """What a kernel takes beyond its limits, in a line; None when it keeps to them."""
    taken = nvrtc.resources(variant.source, variant.defines, arch)[variant.name]
    limits = LIMITS.get(variant.name, USUAL)
    over = [
        f"{name} {used} > {most}" for name, used, most in zip(taken._fields, taken, limits, strict=True) if used > most
    ]
    return f"{variant.name} of {variant.source} {dict(variant.defines)}: {', '.join(over)}" if over else None


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("module", nvrtc.MODULES)
def test_every_kernel_compiles_and_keeps_to_its_limits(module, arch):
    variants = _variants(module)
    assert variants
    assert not [line for variant in variants if (line := _excess(variant, arch))]


def test_a_kernel_beyond_its_limits_is_seen(monkeypatch):
    variant = Variant("scan_sum.cu", "scan_sum", (("ELEMENT", 0),))
    assert _excess(variant, "sm_90") is None
    monkeypatch.setitem(LIMITS, "scan_sum", USUAL._replace(registers=8))
    assert "registers" in str(_excess(variant, "sm_90"))


@pytest.mark.parametrize("module", nvrtc.MODULES)
def test_every_source_that_a_module_names_has_its_kernel(module):
    for source, name, _ in _variants(module):
        assert f" {name}(const " in (nvrtc.CSRC / source).read_text(encoding="utf-8"), source


def test_every_kernel_file_is_compiled_ahead_of_time():
    named = {source for module in nvrtc.MODULES for source, *_ in _variants(module)}
    assert {path.name for path in nvrtc.CSRC.glob("*.cu")} == named

"""A kernel whose source was harmed is refused by the self-test: every file of csrc, harmed in turn."""

from functools import partial

import cuda_emulated_row
import cuda_emulator
import pytest
from cuda_emulated_row import EMULATED
from ext_cases import device_of, over, usable
from mambalab.ext import backends, cuda_geometry, cuda_launch, nvrtc, prepare, self_test

every_cuda = over([*(row for row in backends.BACKENDS if row.name == "cuda"), EMULATED])

# What is replaced, by what, and which questions run the kernel.
HARMS = {
    "scan_forward.cu": ("decay_of(", "(Real)1.001 * decay_of(", "scan"),
    "scan_backward.cuh": ("decay_of(", "(Real)1.001 * decay_of(", "scan"),
    "scan_states.cu": ("decay_of(", "(Real)1.01 * decay_of(", "long_scan"),
    "scan_carry.cu": ("exp2_of(", "(Real)1.01 * exp2_of(", "long_scan"),
    "scan_sum.cu": ("sum.at[j] += ", "sum.at[j] += (Real)1.001 * ", "scan"),
    "slices.cuh": ("sum += ", "sum += (Real)1.001 * ", "norm"),
    "conv.cu": ("= sigmoid(", "= (Real)1.001 * sigmoid(", "conv"),
    "conv_tile.cuh": ("*= sigmoid(", "*= (Real)1.001 * sigmoid(", "conv"),
    "sum_parts.cu": ("rounded(sum)", "rounded(1.001 * sum)", "norm"),
    "norm.cu": ("sqrt(", "(Real)1.001 * sqrt(", "norm"),
    "step_conv.cu": ("sum += ", "sum += (Real)1.001 * ", "step"),
    "step_scan.cu": ("decay_of(", "(Real)1.001 * decay_of(", "step"),
}


@pytest.fixture
def harmed(monkeypatch, tmp_path):
    """A function that puts a text in place of another in a file of csrc, for kernels compiled from now on."""

    def harm(name, old, new):
        folder = tmp_path / "csrc"
        folder.mkdir()
        for source in nvrtc.CSRC.iterdir():
            (folder / source.name).write_bytes(source.read_bytes())
        text = (folder / name).read_text("utf-8")
        assert old in text, f"{name} no longer holds {old!r}"
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")
        monkeypatch.setenv("MAMBALAB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(nvrtc, "cubin", partial(nvrtc.cubin, csrc=folder))
        monkeypatch.setattr(cuda_launch, "_kernels", {})
        changed = {source for source in folder.glob("*.cu") if name in (source.name, *included(source))}
        monkeypatch.setattr(cuda_emulator, "kernel", partial(emulated, changed))
        # The self-test's long sequence has to be cut as a GPU would cut it.
        monkeypatch.setattr(cuda_emulated_row, "SHORTEST", cuda_geometry.SHORTEST)
        monkeypatch.setattr(backends, "_picked", {})
        monkeypatch.setattr(backends, "_verdicts", {})

    return harm


def included(source):
    """The files of csrc that one includes, however far down."""
    return nvrtc._texts(source.name, source.parent).keys()


def emulated(changed, device, source, name, defines):
    """`cuda_emulator.kernel`, which takes the sources that have changed from elsewhere."""
    (folder,) = {path.parent for path in changed}
    here = folder if folder / source in changed else cuda_emulator.CSRC
    return cuda_emulator.load(here / source, name, defines)


@every_cuda
@pytest.mark.parametrize(("name", "old", "new", "asked"), [(name, *harm) for name, harm in HARMS.items()], ids=HARMS)
def test_a_harmed_kernel_is_refused(backend, monkeypatch, harmed, name, old, new, asked):
    usable(backend)
    monkeypatch.setattr(
        self_test, "QUESTIONS", [question for question in self_test.QUESTIONS if question.__name__ == asked]
    )
    harmed(name, old, new)
    with pytest.raises(ValueError, match=rf"^backend '.*' can't run on .*: self-test of {asked}: .*\(cure: report it"):
        prepare(device_of(backend.name), backend.name)


@every_cuda
def test_a_kernel_that_does_not_compile_is_one_line(backend, monkeypatch, harmed):
    usable(backend)
    monkeypatch.setattr(self_test, "QUESTIONS", [self_test.norm])
    harmed("norm.cu", "sqrt(", "square_root_of(")
    with pytest.raises(ValueError, match=r"self-test of norm: (Runtime|Kernel)Error: .*norm") as refusal:
        prepare(device_of(backend.name), backend.name)
    assert len(str(refusal.value).splitlines()) == 1


def test_every_kernel_is_harmed():
    assert all(HARMS.keys() & {file.name, f"{file.name}h"} for file in nvrtc.CSRC.glob("*.cu"))

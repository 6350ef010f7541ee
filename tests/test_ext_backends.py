"""Which backend a device gets: tested before first use, never silently another, and every refusal with its reason."""

import ast
import logging
import re
import subprocess
import sys
from dataclasses import replace
from shutil import copytree

import pytest
import torch
from ext_cases import assert_same, device_of, every_backend, scan_case, threads, usable
from mambalab.ext import backends, causal_conv1d, prepare, selective_scan

REFERENCE = next(row for row in backends.BACKENDS if row.name == "reference")
# A healthy stand-in for a fast CPU row.
FAST = replace(REFERENCE, name="fast", device="cpu", cure="take another")


@pytest.fixture(autouse=True)
def one_thread():
    with threads(1):
        yield


@pytest.fixture
def table(monkeypatch):
    """Put rows in the table's place, with nothing picked or tested before."""

    def install(*rows):
        monkeypatch.setattr(backends, "BACKENDS", rows)
        monkeypatch.setattr(backends, "_picked", {})
        monkeypatch.setattr(backends, "_verdicts", {})

    return install


def spoilt(function, which, factor=1.001):
    """The same function with one of its results scaled."""

    def call(*arguments):
        results = list(function(*arguments))
        results[which] = results[which] * factor
        return tuple(results)

    return call


def spoilt_step(*arguments):
    y = REFERENCE.step(*arguments)
    arguments[9].mul_(1.001)
    return y


def broken(*arguments):
    raise OSError("no such kernel")


CORRUPTED = {
    "y": {"scan_forward": spoilt(REFERENCE.scan_forward, 0)},
    "final_state": {"scan_forward": spoilt(REFERENCE.scan_forward, 1)},
    **{f"gradient {i}": {"scan_backward": spoilt(REFERENCE.scan_backward, i)} for i in range(5)},
    "not a number": {"scan_forward": spoilt(REFERENCE.scan_forward, 0, torch.nan)},
    "conv y": {"conv_forward": spoilt(REFERENCE.conv_forward, 0)},
    "conv gradient": {"conv_backward": spoilt(REFERENCE.conv_backward, 1)},
    "state of the step": {"step": spoilt_step},
    "an error": {"conv_forward": broken},
}


@every_backend
def test_every_backend_passes_its_self_test(backend):
    name = usable(backend)
    assert backends.pick(device_of(name), name) is backend


@pytest.mark.parametrize("damage", CORRUPTED.values(), ids=CORRUPTED.keys())
def test_a_corrupted_kernel_is_refused(table, caplog, damage):
    table(replace(FAST, **damage), REFERENCE)
    with pytest.raises(ValueError, match=r"backend 'fast' can't run on cpu: self-test of \w+: .*cure: report it"):
        backends.pick("cpu", "fast")
    assert backends.chosen("cpu") == "reference"
    assert "fast: self-test of" in caplog.text


def test_the_reason_names_what_was_wrong(table):
    table(replace(FAST, **CORRUPTED["conv gradient"]), replace(FAST, name="other", conv_forward=broken))
    assert [(state.name, state.state) for state in backends.status()] == [("fast", "refused"), ("other", "refused")]
    wrong, error = (state.reason for state in backends.status())
    assert wrong == "self-test of conv: relative error 1.0e-03, allowed 1e-04"
    assert error == "self-test of conv: OSError: no such kernel"


def test_the_first_usable_row_of_the_device_is_chosen_and_logged_once(table, caplog):
    table(replace(FAST, name="absent", missing=lambda: "not today"), FAST, REFERENCE)
    with caplog.at_level(logging.INFO, "mambalab.ext"):
        for device in ("cpu", torch.device("cpu"), "cpu"):
            assert backends.chosen(device) == "fast"
        selective_scan(**scan_case().tensors)
        causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(3, 2))
    assert [record.getMessage() for record in caplog.records] == ["backend fast on cpu"]


def test_the_slow_reference_is_taken_on_the_cpu_only_with_a_warning(table, caplog):
    table(replace(FAST, missing=lambda: "not today"), REFERENCE)
    assert backends.chosen("cpu") == "reference"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "fast: not today (cure: take another)" in record.getMessage()


def test_a_backend_asked_for_by_name_never_falls_back(table):
    table(replace(FAST, missing=lambda: "not today"), REFERENCE)
    with pytest.raises(ValueError, match=r"'fast' can't run on cpu: not today \(cure: take another\)"):
        selective_scan(**scan_case().tensors, backend="fast")


def test_a_complex_A_goes_to_the_first_row_that_takes_it(table, caplog):
    real = replace(FAST, complex_A=False)
    table(real, replace(FAST, name="other"), REFERENCE)
    with caplog.at_level(logging.INFO, "mambalab.ext"):
        for names in (("A",), ("A",), ()):
            tensors = scan_case(complex_names=names).tensors
            y, _ = selective_scan(**tensors | {"u": tensors["u"].requires_grad_()}, return_final_state=True)
            y.sum().backward()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["backend other on cpu for a complex A", "backend fast on cpu"]


def test_a_row_without_complex_A_that_is_asked_for_by_name_says_which_have_it(table):
    table(replace(FAST, complex_A=False), replace(FAST, name="other"), REFERENCE)
    with pytest.raises(ValueError, match=r"^backend 'fast' has no complex A; these have: other, reference$"):
        selective_scan(**scan_case(complex_names=("A",)).tensors, backend="fast")
    table(replace(FAST, complex_A=False, device="meta"), REFERENCE)
    with pytest.raises(ValueError, match=r"no backend can run on meta: fast: has no complex A; "):
        backends.pick("meta", None, True)


def test_a_reason_that_brings_its_cure_gets_no_other(table):
    table(replace(FAST, missing=lambda: "no compiler (cure: pip install one)"), REFERENCE)
    with pytest.raises(ValueError, match=r"'fast' can't run on cpu: no compiler \(cure: pip install one\)$"):
        backends.pick("cpu", "fast")
    assert backends.status()[0] == ("fast", "cpu", "missing", "no compiler", "pip install one")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize("name", [None, "cuda", "numba-cuda"])
def test_without_a_gpu_its_backends_say_what_is_missing(name):
    with pytest.raises(ValueError, match=r"can('t)? run on cuda:0: .*\(cure: [^()]+\)") as refusal:
        prepare("cuda", name)
    assert "\n" not in str(refusal.value)


def test_a_backend_of_another_device_is_refused():
    with pytest.raises(ValueError, match=r"backend 'cpu' runs on cpu, but the tensors are on meta"):
        backends.pick("meta", "cpu")


def test_tensors_are_never_moved_to_another_device(table):
    table(FAST, replace(FAST, name="gpu", device="meta", missing=lambda: "no driver"), REFERENCE)
    with pytest.raises(ValueError, match=r"no backend can run on meta: gpu: no driver \(cure: .*'reference' would"):
        backends.pick("meta")


@pytest.mark.parametrize(("name", "near"), [("refrence", "reference"), ("cuda?", "cpu, reference"), ("cp", "cpu")])
def test_an_unknown_backend_gets_its_neighbours(table, name, near):
    table(replace(FAST, name="cpu"), REFERENCE)
    with pytest.raises(ValueError, match=f"unknown backend .*nearest: {near}$"):
        backends.pick("cpu", name)


def test_the_first_use_inside_a_graph_capture_is_refused(table, monkeypatch):
    table(replace(FAST, device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"CUDA graph capture; call mambalab.ext.prepare\('cuda:0'\) before it"):
        backends.pick("cuda:0")


def test_a_prepared_backend_is_not_tested_again(table, monkeypatch):
    table(FAST, REFERENCE)
    assert (prepare(), prepare("cpu", "reference")) == ("fast", "reference")
    monkeypatch.setattr(backends.self_test, "QUESTIONS", [broken])
    assert (backends.chosen("cpu"), prepare("cpu"), prepare("cpu", "fast")) == ("fast", "fast", "fast")


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu")])
def test_a_first_use_in_any_mode_passes_the_self_test(table, context):
    table(FAST)
    tensors = {name: tensor.detach() for name, tensor in scan_case().tensors.items()}
    with context():
        selective_scan(**tensors)


def test_a_first_use_inside_a_backward_passes_the_self_test(table):
    table(FAST)
    x = torch.ones(1, 3, 2, requires_grad=True)
    y, _ = causal_conv1d(x, torch.ones(2, 2), return_final_state=True)
    table(FAST)
    y.sum().backward()
    assert x.grad is not None


def on_meta(call, u):
    with torch.device("meta"):
        return call(u)


TRANSFORMS = {
    "vmap": lambda call, u: torch.vmap(call)(u[None]),
    "functionalize": lambda call, u: torch.func.functionalize(call)(u),
    "another default device": on_meta,
}


@pytest.mark.filterwarnings("ignore:.*performance drop")
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_first_use_within_a_transform_leaves_the_backend_usable(table, transform):
    table(FAST, REFERENCE)
    tensors = {name: tensor.requires_grad_() for name, tensor in scan_case().tensors.items()}
    u = tensors.pop("u")

    def call(x):
        return selective_scan(x, **tensors, delta_softplus=True, return_final_state=True)[0].detach()

    found = transform(call, u.detach())
    assert backends.chosen("cpu") == "fast"
    assert_same({"y": found.reshape(u.shape)}, {"y": call(u)}, u.dtype)


def test_a_scan_of_meta_tensors_has_gradients():
    tensors = {name: tensor.to("meta").requires_grad_() for name, tensor in scan_case().tensors.items()}
    y, _ = selective_scan(**tensors, return_final_state=True)
    assert torch.autograd.grad(y.sum(), tensors["A"])[0].is_meta


@pytest.mark.parametrize(("name", "keep"), [(None, False), ("second", True), ("nobody", False)])
def test_what_is_kept_is_told_by_the_row_that_would_be_picked_without_testing_it(table, name, keep):
    table(FAST, replace(FAST, name="second", scan_keeping=FAST.scan_forward))
    assert backends.keeps("cpu", name, False) == keep

    assert not backends.keeps("meta", None, False)
    backends._verdicts[backends.BACKENDS[0], torch.device("cpu")] = "refused"
    assert backends.keeps("cpu", None, False)


def test_a_digest_is_that_of_the_sources(table, tmp_path):
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text("a")
    second.write_text("b")
    table(replace(FAST, sources=(str(first), str(second))), replace(FAST, name="half", sources=(str(first),)))
    digest = backends.kernel_digest("fast")
    assert digest == "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"
    assert backends.kernel_digest("half") != digest
    second.write_text("c")
    assert backends.kernel_digest("fast") != digest


def test_every_backend_has_a_digest_and_a_status():
    states = backends.status()
    assert [state.name for state in states] == [row.name for row in backends.BACKENDS]
    assert all(bool(state.reason) == bool(state.cure) == (state.state != "usable") for state in states)
    assert all(len(backends.kernel_digest(state.name)) == 64 for state in states if state.state == "usable")


def needs(file):
    """The names of the files beside `file` that it imports or includes."""
    text = file.read_text("utf-8")
    if file.suffix != ".py":
        return {f"csrc/{name}" for name in re.findall(r'^#include "(.*)"', text, re.M)}
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level == 1]
    modules = {name for node in imports for name in ([node.module] if node.module else [a.name for a in node.names])}
    return {f"{module}.py" for module in modules}


@pytest.mark.parametrize("row", backends.BACKENDS, ids=lambda row: row.name)
def test_every_file_of_a_backend_counts_in_its_digest(row):
    assert {needed for name in row.sources for needed in needs(backends.FOLDER / name)} <= {*row.sources}


def test_the_digest_of_cuda_covers_its_kernels(monkeypatch, tmp_path):
    (row,) = (row for row in backends.BACKENDS if row.name == "cuda")
    csrc = {f"csrc/{file.name}" for file in (backends.FOLDER / "csrc").iterdir() if file.is_file()}
    assert csrc == {name for name in row.sources if name.startswith("csrc/")}
    digest = backends.kernel_digest("cuda")
    copytree(backends.FOLDER, tmp_path / "ext")
    monkeypatch.setattr(backends, "FOLDER", tmp_path / "ext")
    assert backends.kernel_digest("cuda") == digest
    for name in csrc:
        with (tmp_path / "ext" / name).open("a") as file:
            file.write("\n")
        assert backends.kernel_digest("cuda") != digest, name
        digest = backends.kernel_digest("cuda")


def test_no_file_that_compiles_is_left_out_of_the_digests():
    sources = {source for row in backends.BACKENDS for source in row.sources}
    texts = {file.name: file.read_text("utf-8") for file in backends.FOLDER.glob("*.py")}
    compiled = {name for name, text in texts.items() if re.search(r"^ *from numba", text, re.M)}
    assert compiled
    assert compiled <= sources


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_ops_imports_no_compiler():
    assert run_python("import sys, mambalab.ext; print('numba' in sys.modules)") == "False\n"


def test_a_machine_without_numba_says_so_and_goes_on():
    code = """
import sys
sys.modules["numba"] = None
from mambalab.ext import backends
print(backends.status()[0])
print(backends.chosen("cpu"))
"""
    first, second = run_python(code).splitlines()
    assert "state='missing'" in first
    assert "cure='pip install numba'" in first
    assert second == "reference"

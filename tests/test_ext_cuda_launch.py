"""Launching: the right context, stream and argument, and one clear line when the driver refuses."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from mambalab.ext import cubin_cache, cuda_launch, nvrtc
from mambalab.ext.cuda_launch import Driver, DriverError, Kernel

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


class FakeLibrary:
    """Stands in for libcuda.so.1: notes each call, keeps the stack of contexts, and fails where it is told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.contexts: list[int] = []
        self.mode = 0
        self.modes_while_loading: list[int] = []
        self.fails: dict[str, int] = {}
        self.static_shared = 0
        self.argument_bytes = 32
        self.older_than: tuple[str, ...] = ()
        self.launched: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            getattr(self, f"_{name}", lambda *_: None)(*arguments)
            return self.fails.get(name, 0)

        if not name.startswith("cu") or name in self.older_than:
            raise AttributeError(name)
        call.argtypes = None  # type: ignore[attr-defined]
        self.__dict__[name] = call
        return call

    def _cuGetErrorString(self, code: int, found: Any) -> None:
        found._obj.value = {1: b"invalid argument", 222: b"PTX too new"}.get(code)

    def _cuGetErrorName(self, code: int, found: Any) -> None:
        found._obj.value = {1: b"CUDA_ERROR_INVALID_VALUE", 222: b"CUDA_ERROR_UNSUPPORTED_PTX_VERSION"}.get(code)

    def _cuDriverGetVersion(self, found: Any) -> None:
        found._obj.value = 12080

    def _cuDeviceGet(self, found: Any, index: int) -> None:
        found._obj.value = index

    def _cuDeviceGetAttribute(self, found: Any, attribute: int, device: int) -> None:
        assert attribute == cuda_launch.DEVICE_SHARED_OPTIN
        found._obj.value = 227 * 1024

    def _cuDevicePrimaryCtxRetain(self, found: Any, device: int) -> None:
        found._obj.value = 1000 + device

    def _cuCtxGetCurrent(self, found: Any) -> None:
        found._obj.value = self.contexts[-1] if self.contexts else None

    def _cuCtxPushCurrent_v2(self, context: Any) -> None:
        self.contexts.append(context.value)

    def _cuCtxPopCurrent_v2(self, found: Any) -> None:
        self.contexts.pop()

    def _cuThreadExchangeStreamCaptureMode(self, mode: Any) -> None:
        mode._obj.value, self.mode = self.mode, mode._obj.value

    def _cuModuleLoadData(self, found: Any, image: bytes) -> None:
        self.modes_while_loading.append(self.mode)

    def _cuFuncGetAttribute(self, found: Any, attribute: int, function: Any) -> None:
        self.modes_while_loading.append(self.mode)
        assert attribute == cuda_launch.FUNCTION_STATIC_SHARED
        found._obj.value = self.static_shared

    def _cuFuncGetParamInfo(self, function: Any, index: Any, offset: Any, size: Any) -> None:
        assert index.value == 0
        size._obj.value = self.argument_bytes

    def _cuLaunchKernel(self, function: Any, *numbers: Any) -> None:
        *grid, shared, stream, argument, extra = numbers
        address = ctypes.cast(argument, ctypes.POINTER(ctypes.c_void_p))[0]
        self.launched = {
            "grid": grid,
            "shared": shared,
            "stream": stream,
            "words": struct.unpack("4q", ctypes.string_at(address or 0, 32)),
            "context": self.contexts[-1],
        }
        assert extra is None


@pytest.fixture
def library(monkeypatch) -> Iterator[FakeLibrary]:
    fake = FakeLibrary()
    caches = (cuda_launch.driver, cuda_launch.context, cuda_launch.architecture)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(cuda_launch, "_kernels", {})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libcuda.so.1": fake}[name])
    monkeypatch.setattr(cuda_launch, "current_stream", lambda index: 70 + index)
    yield fake
    for cache in caches:
        cache.cache_clear()


WORDS = (2**47, 0, -3, cuda_launch.double_word(0.5))


def test_a_launch_hands_over_grid_stream_and_argument(library):
    kernel = Kernel(SECOND, b"image", "toy")
    kernel.launch(2**31 - 1, 256, 1024, WORDS)
    assert library.launched == {
        "grid": [2**31 - 1, 1, 1, 256, 1, 1],
        "shared": 1024,
        "stream": 71,
        "words": WORDS,
        "context": 1001,
    }


@pytest.mark.parametrize(
    ("current", "switches"),
    [([1000], []), ([], ["push", "pop"]), ([1001], ["push", "pop"]), ([1000, 1001], ["push", "pop"])],
    ids=["its own", "none, as in a new thread", "another GPU's", "another GPU's above its own"],
)
@pytest.mark.parametrize("fails", [False, True])
def test_the_context_is_switched_only_when_needed_and_always_restored(library, current, switches, fails):
    kernel = Kernel(FIRST, b"image", "toy")
    library.contexts = list(current)
    library.calls.clear()
    if fails:
        library.fails["cuLaunchKernel"] = 1
        with pytest.raises(DriverError):
            kernel.launch(1, 32, 0, WORDS)
    else:
        kernel.launch(1, 32, 0, WORDS)
    assert library.launched["context"] == 1000
    assert library.contexts == current
    names = {"cuCtxPushCurrent_v2": "push", "cuCtxPopCurrent_v2": "pop"}
    assert [names[call] for call in library.calls if call in names] == switches


def test_more_blocks_than_a_grid_has_are_refused(library):
    with pytest.raises(
        RuntimeError, match=r"^kernel toy takes 2147483648 blocks here, of which a grid has 2147483647$"
    ):
        Kernel(FIRST, b"image", "toy").launch(2**31, 32, 0, WORDS)
    assert library.launched == {}


def test_an_argument_of_another_size_is_refused(library):
    library.argument_bytes = 40
    with pytest.raises(RuntimeError, match=r"^kernel toy takes 5 words, not 4$"):
        Kernel(FIRST, b"image", "toy").launch(1, 32, 0, WORDS)
    assert library.launched == {}


def test_a_driver_that_can_not_tell_the_size_of_an_argument_launches(library):
    library.older_than = ("cuFuncGetParamInfo",)
    Kernel(FIRST, b"image", "toy").launch(1, 32, 0, WORDS)
    assert library.launched["words"] == WORDS


def test_no_blocks_launch_nothing(library):
    kernel = Kernel(FIRST, b"image", "toy")
    library.calls.clear()
    kernel.launch(0, 32, 0, WORDS)
    assert library.calls == []


@pytest.mark.parametrize("static", [0, 16 * 1024])
def test_shared_memory_beyond_the_plain_limit_is_asked_for_once(library, static):
    library.static_shared = static
    kernel = Kernel(FIRST, b"image", "toy")
    plain = 48 * 1024 - static
    asked = []
    for shared in (0, plain, plain + 16, 2 * plain, plain + 16, 2 * plain):
        before = library.calls.count("cuFuncSetAttribute")
        kernel.launch(1, 32, shared, WORDS)
        assert library.launched["shared"] == shared
        if library.calls.count("cuFuncSetAttribute") > before:
            asked.append(shared)
    assert asked == [plain + 16, 2 * plain]
    assert library.contexts == []


def test_more_shared_memory_than_there_is_is_said_in_one_line(library):
    library.static_shared = 24
    library.fails["cuFuncSetAttribute"] = 1
    kernel = Kernel(FIRST, b"image", "toy")
    with pytest.raises(RuntimeError) as raised:
        kernel.launch(1, 32, 300000, WORDS)
    assert str(raised.value) == (
        "kernel toy asks for 300024 bytes of shared memory a block on cuda:0, which has 232448: "
        "cuFuncSetAttribute: invalid argument (CUDA_ERROR_INVALID_VALUE)"
    )


@pytest.mark.parametrize("fails", ["", "cuModuleLoadData", "cuModuleGetFunction"])
def test_loading_leaves_a_capture_and_the_current_context_as_they_were(library, fails):
    if fails:
        library.fails[fails] = 1
        with pytest.raises(DriverError, match=f"^{fails}: invalid argument"):
            Kernel(FIRST, b"image", "toy")
    else:
        Kernel(FIRST, b"image", "toy")
    assert set(library.modes_while_loading) == {cuda_launch.RELAXED_CAPTURE}
    assert library.mode == 0
    assert library.contexts == []


@pytest.mark.parametrize(
    ("code", "text"),
    [(1, "invalid argument (CUDA_ERROR_INVALID_VALUE)"), (4711, "error 4711 of the CUDA driver")],
)
def test_an_error_code_is_told_in_the_drivers_words(library, code, text):
    kernel = Kernel(FIRST, b"image", "toy")
    library.fails["cuLaunchKernel"] = code
    with pytest.raises(DriverError) as raised:
        kernel.launch(1, 2048, 0, WORDS)
    assert str(raised.value) == f"can't launch kernel toy on cuda:0: {text}"
    assert raised.value.code == code


def _on_sm_90(monkeypatch) -> list[tuple[Any, ...]]:
    """Let the GPUs be sm_90 and the compiler note what it is asked for."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(nvrtc, "cubin", lambda *given: asked.append(given) or b"image")
    return asked


def test_a_kernel_is_compiled_and_loaded_once_a_device_and_variant(library, monkeypatch):
    asked = _on_sm_90(monkeypatch)
    defines = (("SIZE", 1),)
    kernels = [cuda_launch.kernel(FIRST, "toy.cu", "toy", defines) for _ in range(2)]
    assert kernels[0] is kernels[1]
    assert asked == [("toy.cu", defines, "sm_90")]
    others = {cuda_launch.kernel(*other, "toy", defines) for other in ((SECOND, "toy.cu"), (FIRST, "other.cu"))}
    others.add(cuda_launch.kernel(FIRST, "toy.cu", "other", defines))
    others.add(cuda_launch.kernel(FIRST, "toy.cu", "toy", (("SIZE", 2),)))
    assert len(others | {kernels[0]}) == 5
    assert library.calls.count("cuModuleLoadData") == 5


def test_a_driver_older_than_the_compiler_is_named_with_both_versions(library, monkeypatch):
    _on_sm_90(monkeypatch)
    monkeypatch.setattr(nvrtc, "missing", lambda: None)
    monkeypatch.setattr(nvrtc, "library", lambda: type("Library", (), {"version": "13.0"}))
    library.fails["cuModuleLoadData"] = 222
    with pytest.raises(RuntimeError) as raised:
        cuda_launch.kernel(FIRST, "toy.cu", "toy", ())
    assert str(raised.value) == (
        "the driver, which knows CUDA 12.8, can't load kernel toy as NVRTC 13.0 made it for sm_90: "
        "cuModuleLoadData: PTX too new (CUDA_ERROR_UNSUPPORTED_PTX_VERSION) "
        "(cure: update the driver, or install the nvidia-cuda-nvrtc of CUDA 12.8)"
    )


def test_a_gpu_that_is_too_old_is_named(library, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(RuntimeError, match=r"^cuda:0 is sm_75; the CUDA kernels need sm_80 or later$"):
        cuda_launch.kernel(FIRST, "toy.cu", "toy", ())


def test_the_public_current_stream_does_where_the_quick_one_is_gone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: type("Stream", (), {"cuda_stream": 5 + index}))
    assert cuda_launch._public_current_stream(1) == 6


@pytest.mark.parametrize("number", [0.0, -0.0, 1.5, -1e300, 5e-324, float("inf"), 3])
def test_a_number_travels_as_its_bits(number):
    assert struct.pack("q", cuda_launch.double_word(number)) == struct.pack("d", number)


def _absent(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


LACKS: dict[str, tuple[Callable[[Any, FakeLibrary], object], str | None]] = {
    "nothing": (lambda patch, library: None, None),
    "CUDA in torch": (
        lambda patch, library: patch.setattr(torch.version, "cuda", None),
        "torch is built without CUDA",
    ),
    "a driver": (
        lambda patch, library: patch.setattr(ctypes, "CDLL", _absent),
        "no working NVIDIA driver: libcuda.so.1: cannot open shared object file",
    ),
    "a working driver": (
        lambda patch, library: library.fails.update(cuInit=1),
        "no working NVIDIA driver: cuInit: invalid argument (CUDA_ERROR_INVALID_VALUE)",
    ),
    "a GPU": (
        lambda patch, library: patch.setattr(torch.cuda, "is_available", lambda: False),
        "no GPU that torch can use",
    ),
    "a new GPU": (
        lambda patch, library: patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5)),
        "the GPU is sm_75; the CUDA kernels need sm_80 or later",
    ),
    "a compiler": (lambda patch, library: patch.setattr(nvrtc, "missing", lambda: "no NVRTC"), "no NVRTC"),
}


@pytest.mark.parametrize(("take", "says"), LACKS.values(), ids=LACKS)
def test_what_is_missing_is_said(library, monkeypatch, tmp_path, take, says):
    monkeypatch.setenv("MAMBALAB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(nvrtc, "missing", lambda: None)
    take(monkeypatch, library)
    assert cuda_launch.missing() == says


def test_kernels_compiled_elsewhere_do_without_a_compiler(library, monkeypatch, tmp_path):
    test_what_is_missing_is_said(library, monkeypatch, tmp_path, *LACKS["a compiler"])
    cubin_cache.write(cubin_cache.entry(tmp_path, "13.0", "toy", "0123"), cubin_cache.Image(b"code", "log"))
    assert cuda_launch.missing() is None


def test_the_driver_initialises_itself(library):
    Driver()
    assert library.calls == ["cuInit"]

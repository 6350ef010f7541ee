"""Loads compiled kernels through the CUDA driver and launches them on torch's current stream."""

import ctypes
import functools
import struct
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from . import cubin_cache, nvrtc

# What a block may always have; more has to be asked for.
PLAIN_SHARED = 48 * 1024
MOST_BLOCKS = 2**31 - 1

# Numbers of the driver's interface (cuda.h).
FUNCTION_STATIC_SHARED = 1
FUNCTION_DYNAMIC_SHARED = 8
DEVICE_SHARED_OPTIN = 97
RELAXED_CAPTURE = 2
# An image that this driver or this GPU can't take: invalid image, no binary, invalid PTX, unsupported PTX version.
MISMATCHED = (200, 209, 218, 222)

_loading = threading.Lock()
_kernels: dict[tuple[torch.device, str, str, nvrtc.Defines], "Kernel"] = {}


class DriverError(nvrtc.KernelError):
    """A call of the driver that failed, with its error code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Driver:
    """The CUDA driver, initialised. OSError where it is not installed, DriverError where it does not work."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        pointer, unsigned = ctypes.c_void_p, ctypes.c_uint
        self.library.cuLaunchKernel.argtypes = [pointer, *[unsigned] * 7, pointer, pointer, pointer]
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            raise DriverError(f"{name}: {self.text(code)}", code)

    def text(self, code: int) -> str:
        """What an error code means, in the driver's words, and its name."""
        words = []
        for ask in (self.library.cuGetErrorString, self.library.cuGetErrorName):
            found = ctypes.c_char_p()
            if not ask(code, ctypes.byref(found)) and found.value:
                words.append(found.value.decode())
        return f"{words[0]} ({words[1]})" if len(words) == 2 else f"error {code} of the CUDA driver"

    def number(self, name: str, *arguments: Any) -> int:
        """The integer that a call writes to its first argument."""
        found = ctypes.c_int()
        self.call(name, ctypes.byref(found), *arguments)
        return found.value

    def version(self) -> str:
        """The newest CUDA that this driver knows, like "13.0"."""
        number = self.number("cuDriverGetVersion")
        return f"{number // 1000}.{number % 1000 // 10}"


driver = functools.cache(Driver)


class Context:
    """The context that torch works in on one GPU; with `with` it is the current one."""

    def __init__(self, index: int) -> None:
        self.driver = driver()
        self.device = self.driver.number("cuDeviceGet", index)
        handle = ctypes.c_void_p()
        self.driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(handle), self.device)
        self._handle = handle
        self._get_current = self.driver.library.cuCtxGetCurrent

    def is_current(self) -> bool:
        """Whether this thread works in it: not so in a new thread, or while another GPU is torch's current one."""
        current = ctypes.c_void_p()
        self._get_current(ctypes.byref(current))
        return current.value == self._handle.value

    def __enter__(self) -> None:
        self.driver.call("cuCtxPushCurrent_v2", self._handle)

    def __exit__(self, *_: object) -> None:
        self.driver.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


context = functools.cache(Context)


class Kernel:
    """A kernel of a compiled image, loaded on one GPU; what its launches need is looked up once, here."""

    def __init__(self, device: torch.device, image: bytes, name: str) -> None:
        self.name = name
        self._index = device.index
        self._context = context(device.index)
        self._driver = self._context.driver
        self._launch = self._driver.library.cuLaunchKernel
        with self._context, _Uncaptured(self._driver):
            self._function = _function(self._driver, image, name)
            # To ask makes a driver that loads lazily load now: the first launch may be inside a capture.
            self._static = self._driver.number("cuFuncGetAttribute", FUNCTION_STATIC_SHARED, self._function)
            self._words = _words(self._driver, self._function)
        self._allowed = PLAIN_SHARED - self._static

    def launch(self, blocks: int, threads: int, shared: int, words: Sequence[int]) -> None:
        """Run `blocks` blocks of `threads` threads with `shared` bytes of dynamic shared memory a block.

        `words` are the members of the kernel's one argument, signed 64-bit integers. The work goes to torch's current
        stream of the kernel's GPU, whatever the current device is; no blocks are no work. Raises RuntimeError.
        """
        if not blocks:
            return
        if blocks > MOST_BLOCKS:
            raise nvrtc.KernelError(f"kernel {self.name} takes {blocks} blocks here, of which a grid has {MOST_BLOCKS}")
        if self._words not in (len(words), None):
            raise nvrtc.KernelError(f"kernel {self.name} takes {self._words} words, not {len(words)}")
        if shared > self._allowed:
            self._allow(shared)
        # The driver copies the argument before it returns.
        argument = ctypes.byref(ctypes.c_char_p(_layout(len(words)).pack(*words)))
        stream = current_stream(self._index)
        if self._context.is_current():
            code = self._launch(self._function, blocks, 1, 1, threads, 1, 1, shared, stream, argument, None)
        else:
            with self._context:
                code = self._launch(self._function, blocks, 1, 1, threads, 1, 1, shared, stream, argument, None)
        if code:
            raise DriverError(f"can't launch kernel {self.name} on cuda:{self._index}: {self._driver.text(code)}", code)

    def _allow(self, shared: int) -> None:
        """Let blocks of this kernel have `shared` bytes of dynamic shared memory."""
        try:
            with self._context:
                self._driver.call("cuFuncSetAttribute", self._function, FUNCTION_DYNAMIC_SHARED, shared)
        except DriverError as error:
            most = self._driver.number("cuDeviceGetAttribute", DEVICE_SHARED_OPTIN, self._context.device)
            raise DriverError(
                f"kernel {self.name} asks for {shared + self._static} bytes of shared memory a block "
                f"on cuda:{self._index}, which has {most}: {error}",
                error.code,
            ) from error
        self._allowed = shared


class _Uncaptured:
    """What this thread does inside is no part of a graph being captured, and does not break the capture."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._mode = ctypes.c_int(RELAXED_CAPTURE)

    def __enter__(self) -> None:
        self._driver.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(self._mode))

    def __exit__(self, *_: object) -> None:
        self._driver.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(self._mode))


def kernel(device: torch.device, source: str, name: str, defines: nvrtc.Defines) -> Kernel:
    """The kernel `name` of csrc's file `source`, compiled with the macros `defines`, ready on `device` ("cuda:N").

    Compiled and loaded at the first call, which may fall inside a graph capture. Raises RuntimeError, in one line that
    says what is missing, when that can't be.
    """
    found = _kernels.get((device, source, name, defines))
    if found is None:
        with _loading:
            image = nvrtc.cubin(source, defines, architecture(device))
            found = _kernels[device, source, name, defines] = _loaded(device, image, name)
    return found


def _loaded(device: torch.device, image: bytes, name: str) -> Kernel:
    try:
        return Kernel(device, image, name)
    except DriverError as error:
        if error.code not in MISMATCHED:
            raise
        raise nvrtc.KernelError(
            f"the driver, which knows CUDA {driver().version()}, can't load kernel {name} as "
            f"{_compiler()} made it for {architecture(device)}: {error} "
            f"(cure: update the driver, or install the nvidia-cuda-nvrtc of CUDA {driver().version()})"
        ) from error


def _compiler() -> str:
    return "another NVRTC" if nvrtc.missing() else f"NVRTC {nvrtc.library().version}"


def _function(driver: Driver, image: bytes, name: str) -> ctypes.c_void_p:
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    driver.call("cuModuleLoadData", ctypes.byref(module), image)
    driver.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
    return function


def _words(driver: Driver, function: ctypes.c_void_p) -> int | None:
    """How many 64-bit words the kernel's argument has; None where the driver, older than CUDA 12.4, can't say."""
    if not hasattr(driver.library, "cuFuncGetParamInfo"):
        return None
    offset, size = ctypes.c_size_t(), ctypes.c_size_t()
    driver.call("cuFuncGetParamInfo", function, ctypes.c_size_t(0), ctypes.byref(offset), ctypes.byref(size))
    return size.value // 8


def missing() -> str | None:
    """What the CUDA backend lacks here, in one line; None when it lacks nothing."""
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    try:
        driver()
    except (OSError, RuntimeError) as error:
        return f"no working NVIDIA driver: {error}"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return "no GPU that torch can use" + "".join(f": {warning.message}" for warning in said[:1])
    newest = max(_capability(index) for index in range(count))
    if newest < nvrtc.OLDEST:
        return f"the GPU is sm_{newest}; the CUDA kernels need sm_{nvrtc.OLDEST} or later"
    cache = cubin_cache.folder()
    # Kernels that were compiled elsewhere do without a compiler.
    return None if cache and cubin_cache.versions(cache) else nvrtc.missing()


@functools.cache
def architecture(device: torch.device) -> str:
    """The architecture of a GPU, like "sm_90". RuntimeError where it is too old for the kernels."""
    number = _capability(device)
    if number < nvrtc.OLDEST:
        raise nvrtc.KernelError(f"{device} is sm_{number}; the CUDA kernels need sm_{nvrtc.OLDEST} or later")
    return f"sm_{number}"


def _capability(device: torch.device | int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a GPU has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def shared_memory(device: torch.device) -> int:
    """How many bytes of shared memory a block of a GPU may ask for."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def double_word(x: float | int) -> int:
    """The bits of a float64 as a signed 64-bit integer: how numbers travel in a kernel's argument."""
    return struct.unpack("q", struct.pack("d", x))[0]


@functools.cache
def _layout(count: int) -> struct.Struct:
    return struct.Struct(f"{count}q")


def _public_current_stream(index: int) -> int:
    return torch.cuda.current_stream(index).cuda_stream


# What torch's own compiler calls: the public form makes two objects a call, which takes longer than a launch.
current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _public_current_stream)

"""Compiles the CUDA C++ of csrc through NVRTC, which needs no toolkit and no GPU, and keeps the result on disk."""

import ctypes
import errno
import functools
import hashlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from . import cubin_cache
from .cubin_cache import Image

CSRC = Path(__file__).parent / "csrc"
OPTIONS = ("--std=c++17", "--ptxas-options=-v")
OLDEST = 80  # the architecture that the kernels are written for
# The modules whose `variants()` are compiled ahead of time.
MODULES = ("cuda", "cuda_conv", "cuda_norm", "cuda_step")
CURE = "pip install nvidia-cuda-nvrtc"

Defines = tuple[tuple[str, int], ...]

# How the assembler's log words the fields of Resources.
_TAKEN = (
    r"Used (\d+) registers",
    r"(\d+) bytes smem",
    r"(\d+) bytes stack",
    r"(\d+) bytes spill stores",
    r"(\d+) bytes spill loads",
)
# What would make two files of the same kernel differ.
_TIMES = re.compile(r"^.*Compile time.*\n?", re.MULTILINE)
_log = logging.getLogger(__package__)


class KernelError(RuntimeError):
    """A kernel that can't be compiled, loaded or launched here; its first line says what is missing."""


class Variant(NamedTuple):
    """A specialisation of a kernel: its file in csrc, its name there, and the macros it is compiled with."""

    source: str
    name: str
    defines: Defines


class Resources(NamedTuple):
    """What a kernel takes: registers a thread, bytes of static shared memory a block, and bytes a thread in memory."""

    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


def cubin(source: str, defines: Iterable[tuple[str, int]], arch: str, *, csrc: Path = CSRC) -> bytes:
    """`source` of csrc compiled for `arch` ("sm_90"), from the cache on disk or by NVRTC: what the driver loads.

    For a GPU that is newer than NVRTC it is PTX instead. Raises RuntimeError when the source does not compile, or when
    there is no NVRTC and nothing in the cache; an unusable cache is a warning.
    """
    return compiled(source, defines, arch, csrc=csrc).code


def resources(source: str, defines: Iterable[tuple[str, int]], arch: str, *, csrc: Path = CSRC) -> dict[str, Resources]:
    """What each kernel of a compiled source takes, by its name; as `cubin` otherwise."""
    return read_log(compiled(source, defines, arch, csrc=csrc).log)


def compiled(source: str, defines: Iterable[tuple[str, int]], arch: str, *, csrc: Path = CSRC) -> Image:
    """The code and the compiler's log of what `cubin` gives."""
    work = _Work.of(source, defines, arch, csrc)
    cache = cubin_cache.folder()
    image = cache and _cached(work, cache)
    if image:
        return image
    image = _compile(work)
    _keep(work, cache, image)
    return image


def build(variant: Variant, arch: str, cache: Path, *, csrc: Path = CSRC) -> Image:
    """Have a variant for `arch` lie in the folder `cache`. Raises as `cubin` does, and OSError where it can't."""
    work = _Work.of(variant.source, variant.defines, arch, csrc)
    path = work.entry(cache, library().version)
    image = cubin_cache.read(path)
    if image is None:
        image = _compile(work)
        cubin_cache.write(path, image)
    return image


def ahead() -> list[Variant]:
    """Every variant that is compiled ahead of time, of all the modules that launch kernels."""
    return [Variant(*row) for name in MODULES for row in import_module(f".{name}", __package__).variants()]


def read_log(log: str) -> dict[str, Resources]:
    """What each kernel takes, by name, as the assembler's log says; empty for PTX, which nobody has assembled yet."""
    found = {}
    for part in log.split("Compiling entry function ")[1:]:
        numbers = [re.search(words, part) for words in _TAKEN]
        found[part.split("'")[1]] = Resources(*(int(number[1]) if number else 0 for number in numbers))
    return found


def missing() -> str | None:
    """Why nothing can be compiled here; None when it can."""
    try:
        library()
    except RuntimeError as error:
        return str(error)
    return None


def check_arch(arch: str) -> None:
    """Raise ValueError, with what is known, unless NVRTC makes cubins of our kernels for `arch` ("sm_90")."""
    known = [f"sm_{number}" for number in library().supported if number >= OLDEST]
    if arch not in known:
        raise ValueError(f"unknown architecture {arch!r}; NVRTC {library().version} knows {', '.join(known)}")


class _Work(NamedTuple):
    """All that decides what comes out of the compiler, except its version."""

    source: str
    texts: dict[str, str]
    defines: Defines
    arch: str

    @classmethod
    def of(cls, source: str, defines: Iterable[tuple[str, int]], arch: str, csrc: Path) -> "_Work":
        if not re.fullmatch(r"sm_\d+", arch):
            raise ValueError(f"an architecture is written like sm_90, not {arch!r}")
        return cls(source, _texts(source, csrc), tuple(defines), arch)

    def entry(self, cache: Path, version: str) -> Path:
        parts = [self.source, self.texts, self.defines, self.arch, OPTIONS, version]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return cubin_cache.entry(cache, version, f"{Path(self.source).stem}-{self.arch}", key)

    def __str__(self) -> str:
        defines = " ".join(f"{name}={value}" for name, value in self.defines)
        return f"{self.source} for {self.arch}" + (f" ({defines})" if defines else "")


def _texts(source: str, csrc: Path) -> dict[str, str]:
    """The texts of a file of csrc and of all that it includes from there, by name."""
    texts: dict[str, str] = {}
    names = [source]
    while names:
        name = names.pop()
        if name not in texts and (csrc / name).is_file():
            texts[name] = (csrc / name).read_text(encoding="utf-8")
            names += re.findall(r'^\s*#\s*include\s+"([^"]+)"', texts[name], re.MULTILINE)
    if source not in texts:
        raise ValueError(f"no CUDA source {source!r} in {csrc}")
    return texts


def _cached(work: _Work, cache: Path) -> Image | None:
    """What lies in the cache; without NVRTC, what any version of it has made."""
    try:
        versions = [library().version]
    except RuntimeError:
        versions = cubin_cache.versions(cache)
    return next(filter(None, (cubin_cache.read(work.entry(cache, version)) for version in versions)), None)


def _keep(work: _Work, cache: Path | None, image: Image) -> None:
    try:
        if cache is None:
            raise OSError(errno.ENOENT, "the user has no home")
        cubin_cache.write(work.entry(cache, library().version), image)
    except OSError as error:
        where = f" in {cache}" if cache else ""
        cubin_cache.warn(
            f"compiled CUDA kernels can't be kept{where}: {error.strerror}; every process compiles its own "
            "(cure: set MAMBALAB_CACHE to a folder you can write in)"
        )


def _compile(work: _Work) -> Image:
    nvrtc = library()
    _say_compiling(work.arch)
    defines = [f"-D{name}={value}" for name, value in work.defines]
    architecture = nvrtc.architecture(work.arch)
    return nvrtc.compile(work, [f"--gpu-architecture={architecture}", *OPTIONS, *defines])


@functools.cache
def _say_compiling(arch: str) -> None:
    _log.info("compiling CUDA kernels for %s, once (about a second each)", arch)


class Library:
    """NVRTC, loaded from `path`. Raises OSError when that can't be loaded."""

    def __init__(self, path: str) -> None:
        # NVRTC looks for its built-ins by name only, which finds them when they are loaded already.
        for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so.*") if "/" in path else ()):
            ctypes.CDLL(str(builtins))
        self.path = path
        self._nvrtc = ctypes.CDLL(path)
        self._nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("Version", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"
        self._call("GetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._call("GetSupportedArchs", numbers)
        self.supported = sorted(numbers)
        self._probe()

    def _probe(self) -> None:
        """Compile a kernel that does nothing: an NVRTC without its built-ins loads, but compiles none."""
        program = ctypes.c_void_p()
        self._call(
            "CreateProgram", ctypes.byref(program), b'extern "C" __global__ void probe() {}', b"probe", 0, None, None
        )
        try:
            self._call("CompileProgram", program, 0, None)
        finally:
            self._call("DestroyProgram", ctypes.byref(program))

    def architecture(self, arch: str) -> str:
        """`arch` itself where it is known, else the newest older one's PTX, which the driver translates."""
        wanted = int(arch.removeprefix("sm_"))
        if wanted in self.supported:
            return arch
        older = [number for number in self.supported if number < wanted]
        if not older:
            raise KernelError(f"NVRTC {self.version} is made for sm_{self.supported[0]} and later, not for {arch}")
        return f"compute_{older[-1]}"

    def compile(self, work: _Work, options: list[str]) -> Image:
        """Compile; RuntimeError, its first line saying what and why, when the source does not."""
        headers = {name: text for name, text in work.texts.items() if name != work.source}
        program = ctypes.c_void_p()
        self._call(
            "CreateProgram",
            ctypes.byref(program),
            work.texts[work.source].encode(),
            work.source.encode(),
            len(headers),
            _strings(headers.values()),
            _strings(headers),
        )
        try:
            status = self._nvrtc.nvrtcCompileProgram(program, len(options), _strings(options))
            log = self._bytes("ProgramLog", program).rstrip(b"\0").decode(errors="replace")
            if status:
                raise KernelError(f"{work} does not compile: {_first_error(log, self._text(status))}\n{log[:2000]}")
            kind = "CUBIN" if options[0].endswith(work.arch) else "PTX"
            return Image(self._bytes(kind, program), _TIMES.sub("", log))
        finally:
            self._nvrtc.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._nvrtc, f"nvrtc{name}")(*arguments)
        if status:
            raise KernelError(f"nvrtc{name} of {self.path}: {self._text(status)}")

    def _text(self, status: int) -> str:
        return self._nvrtc.nvrtcGetErrorString(status).decode()


def _strings(texts: Iterable[str]) -> Any:
    encoded = [text.encode() for text in texts]
    return (ctypes.c_char_p * len(encoded))(*encoded)


def _first_error(log: str, otherwise: str) -> str:
    return next((line for line in log.splitlines() if "error" in line), otherwise)


@functools.cache
def library() -> Library:
    """The first NVRTC that loads. RuntimeError, naming what is missing and its cure, when none does."""
    reasons = []
    for path in _candidates():
        try:
            return Library(path)
        except (OSError, AttributeError, RuntimeError) as error:
            if "/" in path:
                reasons.append(" ".join(str(error).split()))
    why = reasons[0] if reasons else "no package has it, the system's loader does not know it, and CUDA_HOME has none"
    raise KernelError(f"no NVRTC (libnvrtc.so): {why} (cure: {CURE})")


def _candidates() -> Iterator[str]:
    """Where libnvrtc may be, best first: the wheels of torch's CUDA build, the system's loader, a toolkit."""
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    yield from _newest_first(path for place in wheels for path in place.glob("*/lib/libnvrtc.so.*"))
    yield from ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
    toolkits = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    yield from _newest_first(path for place in toolkits for path in place.glob("lib64/libnvrtc.so.*"))


def _newest_first(paths: Iterable[Path]) -> list[str]:
    def version(path: Path) -> list[int]:
        return [int(part) for part in path.name.split(".")[2:] if part.isdecimal()]

    return [str(path) for path in sorted(paths, key=version, reverse=True)]

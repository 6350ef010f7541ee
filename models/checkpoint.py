"""Checkpoints in both published layouts: found, recognised by content, checked tensor by tensor, loaded and saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from . import hub, layouts, registry, weight_files
from .layers import widened
from .layouts import LAYOUTS, Layout
from .mamba import Mamba
from .registry import MambaConfig, named

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_HEAD = "lm_head.weight"


def find(name: str | Path, *, revision: str | None = None, offline: bool = False) -> Path:
    """The local folder of a checkpoint: a folder itself, else a registry name or hub id, downloaded where not cached.

    Offline (also with HF_HUB_OFFLINE=1) only the cache is looked at. A name that is none of these is a ValueError with
    its neighbours; a folder or repository that is not there is a FileNotFoundError.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path} is a file; name the folder that holds config.json and the weights")
    text = str(name)
    if "/" not in text:
        text = registry.spec(text).hub
    if not hub.is_repository_id(text):
        raise FileNotFoundError(f"no such checkpoint folder: {text}")
    return hub.fetch(text, revision=revision, offline=offline)


def layout(folder: str | Path) -> Literal["mamba_ssm", "hf", "transformers"]:
    """How the checkpoint in this folder is written: "transformers" is one of its architectures other than Mamba."""
    path = _config_path(Path(folder))
    return layouts.recognise(layouts.read_json(path), path)


def load(
    name: str | Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    backend: str | None = None,
) -> Mamba:
    """The Mamba of a checkpoint, in eval mode, its weights in `dtype` (A_log, D and the Δ bias in float32 at least).

    Raises ValueError, naming the file, for a damaged or mislabelled file, an unsupported config, an unknown, missing
    or misshaped tensor, and for NaN or inf among the weights.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, not {dtype}")
    folder = find(name, revision=revision, offline=offline)
    kind, config = _read_config(folder)
    source = weight_files.entry(folder)
    tensors = _renamed(weight_files.read(folder), kind, source)
    if config.n_layer > len(tensors):
        # Building so many would take forever, before the first of them was missed.
        raise ValueError(f"{source}: {len(tensors)} tensors can't be {config.n_layer} layers, as config.json has it")
    model = Mamba(config, seed=None, backend=backend)
    check_tensors(tensors, model.state_dict(), source, optional=[_HEAD] if config.tie_embeddings else [])
    tensors[_HEAD] = _head(tensors, config, source)
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    model.to(device=device, dtype=dtype)
    check_finite(model, source, f"read as {dtype}")
    return model.eval()


def save(
    model: Mamba, folder: str | Path, *, layout: Literal["mamba_ssm", "hf"] = "mamba_ssm", safe: bool | None = None
) -> Path:
    """Write config.json and the weights, in their dtypes, to a folder, made if need be; a file is whole or not there.

    `safe` chooses safetensors over .bin; None takes what the layout's own readers expect: .bin for mamba_ssm,
    safetensors for hf. A folder that holds weights under another name already is a ValueError.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
    target, kind = Path(folder), LAYOUTS[layout]
    content = layouts.config_json(model.config, kind)
    safe = kind is layouts.HF if safe is None else safe
    name = weight_files.SAFETENSORS if safe else weight_files.PICKLE
    target.mkdir(parents=True, exist_ok=True)
    if others := [other for other in weight_files.ENTRIES if other != name and (target / other).exists()]:
        raise ValueError(f"{target} holds {others[0]} already; save to another folder")
    weight_files.write(_saved_tensors(model, kind, safe), target / name)
    with weight_files.atomic(target / "config.json") as part:
        part.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return target


def digest(folder: str | Path) -> str:
    """SHA-256 over config.json and the weight files the model is read from, names and contents."""
    total = hashlib.sha256()
    for path in [_config_path(Path(folder)), *weight_files.files(Path(folder))]:
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _config_path(folder: Path) -> Path:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no config.json here")
    return path


def _read_config(folder: Path) -> tuple[Layout, MambaConfig]:
    path = _config_path(folder)
    content = layouts.read_json(path)
    kind = layouts.recognise(content, path)
    if kind not in LAYOUTS:
        raise ValueError(f"{path}: a {content['model_type']} model, not a Mamba")
    return LAYOUTS[kind], layouts.read_config(content, LAYOUTS[kind], path)


def _renamed(tensors: dict[str, Tensor], kind: Layout, source: Path) -> dict[str, Tensor]:
    """The tensors under mamba_ssm's names; hf files may use either, as transformers lets them."""
    theirs, ours = layouts.HF.embedding, layouts.MAMBA_SSM.embedding
    if theirs not in tensors:
        return tensors
    if kind is layouts.MAMBA_SSM or ours in tensors:
        raise ValueError(f"{source}: {theirs} is a name of the hf layout, but config.json is of {kind.name}")
    return {ours if name == theirs else name: tensor for name, tensor in tensors.items()}


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Path, optional: Collection[str] = ()
) -> None:
    """Refuse with ValueError a table of tensors whose names, shapes or kinds are not those expected."""
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    both = sorted(shapes.keys() & tensors.keys())
    problems = {
        "unknown": sorted(tensors.keys() - shapes.keys()),
        "missing": sorted(shapes.keys() - tensors.keys() - set(optional)),
        "misshaped": [
            f"{name} is {tuple(tensors[name].shape)}, not {shapes[name]}"
            for name in both
            if tuple(tensors[name].shape) != shapes[name]
        ],
        "not of a float dtype": [
            f"{name} is {tensors[name].dtype}" for name in both if not tensors[name].is_floating_point()
        ],
    }
    said = [f"{len(names)} {kind} ({_few(names)})" for kind, names in problems.items() if names]
    if said:
        raise ValueError(f"{source}: tensors that do not fit config.json: {'; '.join(said)}")


def _head(tensors: dict[str, Tensor], config: MambaConfig, source: Path) -> Tensor:
    """The head's weight: the embedding where they are tied, which a head in the file must equal."""
    embedding = tensors[layouts.MAMBA_SSM.embedding]
    head = tensors.get(_HEAD, embedding)
    same_storage = head.data_ptr() == embedding.data_ptr()
    if not config.tie_embeddings:
        return head.clone() if same_storage else head
    if not same_storage and not _equal(head, embedding):
        raise ValueError(f"{source}: {_HEAD} differs from the embedding, to which config.json ties it")
    return embedding


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether the numbers are, whatever the dtypes: some have none in common."""
    return torch.equal(a, b) if a.dtype == b.dtype else torch.equal(a.double(), b.double())


def check_finite(model: nn.Module, source: Path, how: str) -> None:
    """Refuse with ValueError a model that holds NaN or inf."""
    bad = [name for name, parameter in model.named_parameters() if not _is_finite(parameter.detach())]
    if bad:
        raise ValueError(f"{source}: NaN or inf, {how}, in {len(bad)} tensors ({_few(bad)})")


def _is_finite(tensor: Tensor) -> bool:
    # A NaN or inf survives any sum, so that a finite one, four times as fast, settles it.
    return bool(tensor.sum(dtype=widened(tensor.dtype)).isfinite()) or bool(tensor.isfinite().all())


def _few(names: list[str], at_most: int = 4) -> str:
    return ", ".join(map(named, names[:at_most])) + (", …" if len(names) > at_most else "")


def _saved_tensors(model: Mamba, kind: Layout, safe: bool) -> dict[str, Tensor]:
    """The state under the layout's names; a tied head is left out of safetensors, which share no storage."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    embedding = state.pop(layouts.MAMBA_SSM.embedding)
    if model.config.tie_embeddings:
        state.pop(_HEAD)
        head = {} if safe else {_HEAD: embedding}
    else:
        head = {}
    return {kind.embedding: embedding, **state, **head}

"""LoRA adapters as PEFT folders: `adapter_config.json` and `adapter_model.safetensors`, written and read.

PEFT keeps torch's orientation: `lora_A.weight` is [r, in] and `lora_B.weight` [out, r], the transposes of our `lora_a`
and `lora_b`; a targeted embedding has `lora_embedding_A` [r, V] and `lora_embedding_B` [D, r]. Only the portable part
of the format is written: one rank, one alpha, no other trained weights. Ranks and alphas of their own for some maps are
read: factors of a lower rank get zeros, and B takes what their scale is to the common one.
"""

import json
import re
from collections.abc import Collection
from typing import Any

import numpy as np
from etils import epath

from jaxsft.config import LoRAConfig
from jaxsft.errors import UserError
from jaxsft.models import layout, tensorfiles
from jaxsft.models.architecture import Architecture
from jaxsft.models.decoder import Decoder
from jaxsft.models.weights import module_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PATTERNS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}
PREFIX = "base_model.model."
SUFFIXES = {"lora_a": ".lora_A.weight", "lora_b": ".lora_B.weight"}
EMBEDDING_SUFFIXES = {"lora_a": ".lora_embedding_A", "lora_b": ".lora_embedding_B"}
SHORT = {"head": "lm_head", "embed": "embed_tokens"}
# PEFT stores copies of the base's own head and embedding beside their adapters.
BASE_COPIES = (PREFIX + "lm_head.base_layer.weight", PREFIX + "model.embed_tokens.base_layer.weight")
UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "trainable_token_indices",
)


def save_peft(path: epath.PathLike, arch: Architecture, adapter_params: Any, config: LoRAConfig, base: str) -> None:
    """Writes an adapter that `peft.PeftModel.from_pretrained` loads.

    Args:
      path: folder; made if absent.
      arch: the base's sizes.
      adapter_params: {"lora_a": [layers, in, r], "lora_b": [layers, r, out]} at the paths of the adapted linear maps.
      config: the adapter's; its targets say which layers of a stacked adapter are real.
      base: folder or hub name of the base model, for `base_model_name_or_path`.

    Raises:
      UserError: for an adapter of a tied embedding.
    """
    _refuse_tied(arch, adapter_params.keys(), "this adapter")
    tensors, modules = {}, set()
    for name, array in layout.unstack(arch, adapter_params).items():
        module, _, leaf = name.rpartition(".")
        if layout.matches(config.targets, module):
            modules.add(module)
            tensors[PREFIX + module_name(arch, module) + _suffixes(module)[leaf]] = np.asarray(array, np.float32).T
    contents = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": _target_modules(arch, modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
    }
    path = epath.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    entries = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    tensorfiles.write(path / WEIGHTS, entries, tensors.__getitem__)
    (path / CONFIG).write_text(json.dumps(contents, indent=2) + "\n")


def save_factors(
    path: epath.PathLike,
    arch: Architecture,
    factors: dict[str, dict[str, np.ndarray]],
    rank: int,
    alpha: float,
    base: str,
) -> None:
    """`save_peft` of factors that are not stacked: module -> {"lora_a": [in, rank], "lora_b": [rank, out]}."""
    config = LoRAConfig(rank=rank, alpha=alpha, targets=_patterns(arch, set(factors)))
    save_peft(path, arch, _stack(arch, factors), config, base)


def load_peft(path: epath.PathLike, arch: Architecture) -> tuple[dict[str, Any], LoRAConfig]:
    """Reads a LoRA adapter in PEFT's format.

    Args:
      path: the folder.
      arch: the base's sizes.

    Returns:
      The adapter's parameters as `save_peft` takes them, in float32 (layers without an adapter hold zeros), and its
      config, whose targets name exactly the adapted maps.

    Raises:
      UserError: if files are missing or broken, it is not a plain LoRA, or it does not fit the model.
    """
    path = epath.Path(path)
    contents = read_config(path)
    rank_of = _Sizes(contents, list(_kernels(arch)), arch).rank_of
    expected = {
        PREFIX + module_name(arch, module) + suffix: (module, leaf, _shape(leaf, kernel, rank_of[module]))
        for module, kernel in _kernels(arch).items()
        for leaf, suffix in _suffixes(module).items()
    }
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in _read_tensors(path).items():
        if name in BASE_COPIES:
            continue
        if name not in expected:
            raise UserError(f"{path / WEIGHTS}: {name} is no LoRA weight of this model; use the base it was made for.")
        module, leaf, shape = expected[name]
        if tensor.T.shape != shape:
            raise UserError(f"{path / WEIGHTS}: {name} is {list(tensor.shape)}, this model needs {list(shape[::-1])}.")
        found.setdefault(module, {})[leaf] = tensor.T.astype(np.float32)
    if broken := [m for m, leaves in found.items() if len(leaves) != 2]:
        raise UserError(
            f"{path / WEIGHTS}: {module_name(arch, broken[0])} lacks one of its two factors; copy the file again."
        )
    if not found:
        raise UserError(f"{path / WEIGHTS} holds no LoRA weights.")
    _refuse_tied(arch, found.keys(), f"{path / WEIGHTS}")
    common = _Sizes(contents, list(found), arch)
    found = {module: common.widened(module, leaves) for module, leaves in found.items()}
    config = LoRAConfig(
        rank=common.rank,
        alpha=common.alpha,
        dropout=float(contents.get("lora_dropout") or 0.0),
        rslora=bool(contents.get("use_rslora")),
        targets=_patterns(arch, set(found)),
    )
    return _stack(arch, found), config


class _Sizes:
    """Ranks and scales of the maps of an adapter, and the ones that they get in common.

    Attributes:
      rank_of: module -> its rank.
      rank: the largest.
      alpha: with which the common scale is that of the maps that no pattern names.
    """

    def __init__(self, contents: dict[str, Any], modules: list[str], arch: Architecture):
        self._contents = contents
        names = {module: module_name(arch, module) for module in modules}
        own = lambda field, module, default: _of_pattern(contents.get(field) or {}, names[module], default)
        self.rank_of = {module: own("rank_pattern", module, contents["r"]) for module in modules}
        self._alpha_of = {module: own("alpha_pattern", module, contents["lora_alpha"]) for module in modules}
        self.rank = max(self.rank_of.values())
        even = set(self.rank_of.values()) == {contents["r"]}  # then as it stands, to the digit
        self.alpha = float(contents["lora_alpha"])
        if not even:
            self.alpha = self._scale(contents["lora_alpha"], contents["r"]) * self.rank / self._root(self.rank)

    def widened(self, module: str, leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The two factors at the common rank and scale."""
        more = self.rank - self.rank_of[module]
        share = self._scale(self._alpha_of[module], self.rank_of[module]) / self._scale(self.alpha, self.rank)
        b = leaves["lora_b"] if share == 1 else leaves["lora_b"] * np.float32(share)
        return {"lora_a": np.pad(leaves["lora_a"], ((0, 0), (0, more))), "lora_b": np.pad(b, ((0, more), (0, 0)))}

    def _scale(self, alpha: float, rank: int) -> float:
        return alpha * self._root(rank) / rank

    def _root(self, rank: int) -> float:
        return rank**0.5 if self._contents.get("use_rslora") else 1.0


def _refuse_tied(arch: Architecture, modules: Collection[str], where: str) -> None:
    """Under PEFT a tied head computes with the base's embedding, until a merge changes both."""
    if arch.tied and "embed" in modules:
        raise UserError(
            f"{where} adapts the embedding of a model whose head is tied to it: PEFT would adapt the lookup alone, "
            "jaxsft adapts both, so it cannot go from one to the other; export with --format=hf or --format=adapter, "
            "or leave the embedding out."
        )


def _of_pattern(patterns: dict[str, Any], name: str, default: Any) -> Any:
    """What PEFT's `rank_pattern` or `alpha_pattern` gives a module: the first pattern that its name ends in."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _suffixes(module: str) -> dict[str, str]:
    return EMBEDDING_SUFFIXES if module == "embed" else SUFFIXES


def _complete(arch: Architecture, modules: set[str]) -> dict[str, list[str]]:
    """Kind of map ("attn.q_proj", "head") -> its modules if some layers lack it, [] if it is adapted wherever it is."""
    kinds: dict[str, list[str]] = {}
    for module in sorted(modules, key=lambda m: [int(p) if p.isdigit() else -1 for p in m.split(".")]):
        kinds.setdefault(module.split(".", 2)[2] if module.startswith("layers.") else module, []).append(module)
    return {k: [] if k in ("head", "embed") or len(found) == arch.num_layers else found for k, found in kinds.items()}


def _target_modules(arch: Architecture, modules: set[str]) -> list[str]:
    """Short names, which PEFT finds in every layer, or full ones where only some layers are adapted."""
    targets = []
    for kind, some in _complete(arch, modules).items():
        targets += [module_name(arch, module) for module in some] or [SHORT.get(kind, kind.rpartition(".")[2])]
    return sorted(targets)


def _patterns(arch: Architecture, modules: set[str]) -> tuple[str, ...]:
    """The adapted modules as `LoRAConfig.targets`."""
    patterns = []
    for kind, some in _complete(arch, modules).items():
        patterns += some or [kind if kind in ("head", "embed") else f"layers.*.{kind}"]
    return tuple(sorted(patterns))


def _kernels(arch: Architecture) -> dict[str, tuple[int, int]]:
    """Module -> (in, out) of every linear map, the embedding as (V, D)."""
    kernels = {}
    for name, (leaf, _) in layout.flatten(arch, Decoder(arch).abstract_params()).items():
        module, _, kind = name.rpartition(".")
        if kind in ("kernel", "embedding"):
            kernels[module] = leaf.shape[-2:]
    return kernels


def _shape(leaf: str, kernel: tuple[int, int], rank: int) -> tuple[int, int]:
    return (kernel[0], rank) if leaf == "lora_a" else (rank, kernel[1])


def _stack(arch: Architecture, factors: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """The tree of adapter parameters; layers of a stack that have no adapter get zeros."""
    arrays = {}
    for module, leaves in factors.items():
        for leaf, array in leaves.items():
            path = layout.locate(arch, f"{module}.{leaf}").path
            arrays |= {name: np.zeros_like(array) for name in layout.logical_paths(arch, path) if name not in arrays}
            arrays[f"{module}.{leaf}"] = array
    return layout.stack(arch, arrays)


def read_config(path: epath.Path) -> dict[str, Any]:
    """`adapter_config.json` of a plain LoRA.

    Raises:
      UserError: if it is missing or broken, or of another kind of adapter.
    """
    try:
        contents = json.loads((path / CONFIG).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} holds no {CONFIG}; name a folder in PEFT's format.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path / CONFIG} is no JSON ({error}); copy it again.") from error
    if contents.get("peft_type") != "LORA":
        raise UserError(f"{path / CONFIG}: peft_type is {contents.get('peft_type')!r}; only 'LORA' is read.")
    if used := [name for name in UNSUPPORTED if contents.get(name)]:
        raise UserError(f"{path / CONFIG}: {used[0]} is {contents[used[0]]!r}; only plain LoRA is read, without it.")
    if contents.get("bias", "none") != "none":
        raise UserError(f"{path / CONFIG}: bias is {contents['bias']!r}; only 'none' is read.")
    for name in ("r", "lora_alpha"):
        values = [contents.get(name), *(contents.get(PATTERNS[name]) or {}).values()]
        if bad := [value for value in values if not isinstance(value, int | float) or value <= 0]:
            raise UserError(f"{path / CONFIG}: {name} is {bad[0]!r}; it must be a positive number.")
    return contents


def _read_tensors(path: epath.Path) -> dict[str, np.ndarray]:
    if not (path / WEIGHTS).exists():
        raise UserError(f"{path} holds no {WEIGHTS}; pickled weights are never loaded, save it as safetensors.")
    file = tensorfiles.TensorFile(path / WEIGHTS)
    return {name: file.read(name) for name in file.entries}

"""What mergekit makes of models, for `test_mergekit.py`; run by a Python that has mergekit, here 0.1.5 with torch 2.13.

    python tests/merging/record_mergekit.py OUTPUT.npz BASE MODEL MODEL MODEL [TENSOR ...]

OUTPUT holds, for every tensor named (all, if none is): the inputs as `base/TENSOR` and `0/TENSOR` .. `2/TENSOR`, and
what each case gives as `CASE/TENSOR`. The recorded file is of stories260K and three fine-tunings of it by jaxsft on
different rows, 40 steps each, all float32.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

# Case -> (method, models that take part, their parameters, parameters of the merge, whether there is a base).
CASES = {
    "linear": ("linear", 3, {"weight": [0.2, 0.3, 1.0]}, {}, False),
    "task_arithmetic": ("task_arithmetic", 3, {"weight": [0.4, 0.3, -0.2]}, {"lambda": 0.7}, True),
    "ties": ("ties", 3, {"weight": [1.0, 0.5, 0.7], "density": [0.3, 0.5, 0.8]}, {"lambda": 0.9}, True),
    "breadcrumbs": ("breadcrumbs", 3, {"weight": [0.3] * 3, "density": [0.6] * 3, "gamma": [0.02] * 3}, {}, True),
    "breadcrumbs_ties": (
        "breadcrumbs_ties",
        3,
        {"weight": [0.5] * 3, "density": [0.5] * 3, "gamma": [0.02] * 3},
        {},
        1,
    ),
    "slerp": ("slerp", 2, {}, {"t": 0.3}, "first"),
    "nuslerp": ("nuslerp", 2, {"weight": [0.3, 0.7]}, {}, True),
    "karcher": ("karcher", 3, {}, {"max_iter": 100, "tol": 1e-7}, False),
    "model_stock": ("model_stock", 3, {}, {}, True),
    "sce": ("sce", 3, {}, {"select_topk": 0.5}, True),
}
RANDOM = {
    "dare_linear": ("dare_linear", 3, {"weight": [0.5, 0.3, 0.2], "density": [0.4] * 3}, {}, True),
    "dare_ties": ("dare_ties", 3, {"weight": [0.5, 0.3, 0.2], "density": [0.4] * 3}, {}, True),
    "della_linear": ("della_linear", 3, {"weight": [0.5, 0.3, 0.2], "density": [0.4] * 3, "epsilon": [0.2] * 3}, {}, 1),
}  # fmt: skip


def main(output: str, base: str, models: list[str], names: list[str]) -> None:
    """Writes the file."""
    from safetensors.numpy import load_file

    read = lambda folder: load_file(Path(folder) / "model.safetensors")
    inputs = {"base": read(base)} | {str(k): read(model) for k, model in enumerate(models)}
    names = names or sorted(inputs["base"])
    arrays = {f"{key}/{name}": tensors[name] for key, tensors in inputs.items() for name in names}
    for case, spec in (CASES | RANDOM).items():
        merged = run(spec, base, models)
        arrays |= {f"{case}/{name}": merged[name] for name in names}
    np.savez_compressed(output, **arrays)


def run(spec: tuple, base: str, models: list[str]) -> dict[str, np.ndarray]:
    """The tensors of one merge."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from safetensors.numpy import load_file

    method, count, own, shared, has_base = spec
    each = [{"model": model, "parameters": {k: v[i] for k, v in own.items()}} for i, model in enumerate(models[:count])]
    config = {"merge_method": method, "models": each, "parameters": shared, "dtype": "float32"}
    if has_base:
        config["base_model"] = models[0] if has_base == "first" else base
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        options = MergeOptions(copy_tokenizer=False, write_model_card=False, random_seed=0)
        run_merge(MergeConfiguration.model_validate(config), folder, options)
        found: dict[str, np.ndarray] = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            found |= load_file(file)
        return found


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(sys.argv[1], sys.argv[2], sys.argv[3:6], sys.argv[6:])

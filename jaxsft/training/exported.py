"""An export as a stage of a recipe: a model folder that says what it was made from, and is made once."""

import json

import jax
from etils import epath

from jaxsft.config import ExportConfig, ModelConfig
from jaxsft.errors import UserError
from jaxsft.files import write_json
from jaxsft.models.checkpoint import fingerprint, resolve
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_hf
from jaxsft.training.restore import open_model
from jaxsft.training.runs import is_workdir, weights_fingerprint
from jaxsft.validation import to_dict

MANIFEST = "export.json"


def export_or_find(config: ExportConfig, output: epath.PathLike) -> str:
    """Writes the model folder of what `config` names, or finds the one that the same config has left.

    `export.json` is written last; a folder without it was broken off, and is written anew.

    Returns:
      A line on the result.

    Raises:
      UserError: for a model that is none, a merge base that it does not have, or a folder that another export has left.
    """
    output = epath.Path(output)
    source = weights_fingerprint(config.model) if is_workdir(config.model) else fingerprint(resolve(config.model))
    made = {"config": to_dict(config), "model": source}
    file = output / MANIFEST
    if file.exists():
        found = json.loads(file.read_text())
        if {name: found[name] for name in made} != made:
            raise UserError(f"{output} holds another export; remove it, or choose another folder.")
        return found["result"]
    if jax.process_index() == 0:
        output.rmtree(missing_ok=True)
    mesh = make_mesh(config.mesh)
    wide = ModelConfig(path=config.model, dtype="float32", param_dtype="float32")
    model = open_model(config.model, wide, mesh)
    result = export_hf(model, output, mesh, None if config.dtype == "auto" else config.dtype, config.merge_base)
    if jax.process_index() == 0:
        write_json(file, {"kind": "export", **made, "result": result})
    return result

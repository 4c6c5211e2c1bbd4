"""Compiles a run for TPUs that are not here, and prints memory, FLOPs and collectives:

python scripts/plan.py --config=configs/sft.py --topology=v5p:2x2x2 --config.model.path=MODEL_FOLDER
"""

from absl import flags

from jaxsft import cli
from jaxsft.config import TrainConfig
from jaxsft.files import write_json
from jaxsft.training.plan import plan

cli.define_config()
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "Such as v5e:2x2 or v5p:4x4x4.")
SLICES = flags.DEFINE_integer("slices", 1, "How many of them.")
OUTPUT = flags.DEFINE_string("output", "", "JSON file to write the figures to besides.")


def main() -> str:
    figures = plan(cli.get_config(TrainConfig), TOPOLOGY.value, SLICES.value)
    for name, value in figures.items():
        print(f"{name:18} {value:,}" if isinstance(value, (int, float)) else f"{name:18} {value}")
    if OUTPUT.value:
        write_json(OUTPUT.value, figures)
    return f"{TOPOLOGY.value}: {figures['peak'] / 2**30:.3f} GiB a device, {figures['flops']:.3g} FLOPs a step"


if __name__ == "__main__":
    cli.main(main)

"""The real TPU compiler accepts the step for real topologies, on a machine without a TPU."""

import json
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.tiny import LLAMA
from tests.training.conftest import run

pytest.importorskip("libtpu", reason="the TPU compiler is in the extra `tpu`")

MODEL = LLAMA | {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 32000,
}  # fmt: skip
CASES = {
    "full": ("sft", "accumulate=2"),
    "lora": ("lora", "accumulate=1"),
    "loramoe": ("loramoe", "accumulate=2"),
    "mix_ln": ("pretrain/mix_ln", "accumulate=1"),
    "qlora": ("qlora", "accumulate=1"),
    "spiel": ("spiel", "accumulate=1"),
    "spp": ("spp", "accumulate=1"),
    "submodels": ("lora", "accumulate=1", "submodels=4", "mesh.submodel=2", "mesh.tensor=1"),
}
TOPOLOGIES = {"v5e:2x2": (2, 2, 1), "v5p:2x2x2": (4, 2, 1)}  # fsdp, tensor, slices


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """What `scripts/plan.py` says, once for each case and topology."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "config.json").write_text(json.dumps(MODEL))
    known = {}

    def of(case, topology, fsdp, tensor, slices):
        output = folder / f"{case}-{topology}.json"
        if output not in known:
            config, *more = CASES[case]
            arguments = [
                sys.executable, str(REPOSITORY / "scripts" / "plan.py"), f"--config={REPOSITORY}/configs/{config}.py",
                f"--topology={topology}", f"--slices={slices}", f"--output={output}",
            ]  # fmt: skip
            rows = 4 * fsdp * slices
            overrides = [
                f"model.path={folder}", "data.max_length=256", f"batch_size={rows}",
                f"mesh.fsdp={fsdp}", f"mesh.tensor={tensor}", f"mesh.replica={slices}", *more,
            ]  # fmt: skip
            done = run(arguments + [f"--config.{override}" for override in overrides])
            assert done.returncode == 0, done.stderr[-3000:]
            known[output] = json.loads(output.read_text())
        return known[output]

    return of


ON_CHIPS = [  # another generation of chips compiles the same program: one of them by default
    pytest.param(case, topology, marks=[pytest.mark.slow] * (topology != "v5e:2x2" and case != "full"))
    for case in CASES
    if case not in ("spiel", "submodels")
    for topology in TOPOLOGIES
]


@pytest.mark.parametrize(("case", "topology"), ON_CHIPS)
def test_the_step_compiles_for_a_tpu(planned, case, topology):
    check(planned, case, topology)


@pytest.mark.slow
def test_the_steps_of_spiel_compile_for_a_tpu(planned):
    """The search for candidates too, which takes the compiler minutes."""
    check(planned, "spiel", "v5e:2x2")


def check(planned, case, topology):
    fsdp, tensor, slices = TOPOLOGIES[topology]
    figures = planned(case, topology, fsdp, tensor, slices)
    big = "state" if case in ("full", "mix_ln") else "frozen"
    assert figures[f"{big}_per_device"] < 1.05 * figures[big] / (fsdp * tensor), "not split over the mesh"
    assert figures["aliased"] >= 0.99 * figures["state_per_device"], "the state is not donated"
    assert figures["arguments"] < 1.2 * (figures["state_per_device"] + figures["frozen_per_device"]) + 2**20
    assert figures["temporaries"] < 2**30
    assert figures["collectives"]["all-gather"] > 0, "fsdp gathers weights"
    assert figures["collectives"]["all-reduce"] + figures["collectives"]["reduce-scatter"] > 0
    assert figures["kernels"] > 0, "attention is not the TPU kernel"


def test_sub_models_share_nothing_but_the_base(planned):
    """Split over an axis of their own, at the operations of four runs."""
    one, several = (planned(case, "v5e:2x2", *(TOPOLOGIES["v5e:2x2"])) for case in ("lora", "submodels"))
    assert several["state"] == pytest.approx(4 * one["state"], rel=1e-3)
    assert several["frozen"] == one["frozen"], "the base is there once"
    assert several["state_per_device"] < 1.01 * several["state"] / 2, "a device holds its own sub-models alone"
    assert several["compiled_flops"] < 1.05 * 4 * one["compiled_flops"]


def test_frozen_weights_have_no_gradients(planned):
    """LoRA holds the adapters' state and gradients, not the base's."""
    full, lora = (planned(case, "v5e:2x2", *TOPOLOGIES["v5e:2x2"]) for case in ("full", "lora"))
    assert lora["state"] < 0.2 * full["state"]
    assert lora["temporaries"] < full["temporaries"]


@pytest.mark.slow
def test_two_slices(planned):
    """Replicas across slices, parameters split inside each."""
    figures = planned("full", "v5e:2x2", 2, 2, 2)
    assert figures["devices"] == 8
    assert figures["state_per_device"] < 1.05 * figures["state"] / 4


def test_an_unknown_topology(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    script = [sys.executable, str(REPOSITORY / "scripts" / "plan.py"), f"--config={REPOSITORY}/configs/sft.py"]
    done = run([*script, "--topology=v99:2x2", f"--config.model.path={tmp_path}"])
    assert done.returncode == 1
    assert "error: --topology=v99:2x2 cannot be described" in done.stderr
    assert "Traceback" not in done.stderr

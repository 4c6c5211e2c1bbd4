"""Runs over a quantised base: what trains, what is opened again, what leaves, and what they are compared with."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.folder import Stored, read_card
from jaxsft.adapters.lora import LoRA
from jaxsft.config import CheckpointConfig, DataConfig, LoRAConfig, ModelConfig, ReferenceConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.checkpoint import save_hf
from jaxsft.models.decoder import Decoder
from jaxsft.models.quantized import QuantizedKernel, quantize_params
from jaxsft.scoring.table import read_scores
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_adapter, export_hf, export_peft, merge_drift
from jaxsft.training.program import abstract_batch, build, parameter_count
from jaxsft.training.restore import check_start_base, open_model
from jaxsft.training.train import train
from jaxsft.validation import validate
from tests.tiny import llama, logits, logits_of
from tests.training.conftest import lines

EXACT = ModelConfig(dtype="float32", param_dtype="float32")


def make_config(model_folder, data_file, cache, kind="nf4") -> TrainConfig:
    config = TrainConfig(data=DataConfig(str(data_file), template="plain", max_length=64, cache_dir=str(cache)))
    config.model.path, config.model.quantization = str(model_folder), kind
    config.adapter.kind, config.adapter.lora = "lora", LoRAConfig(rank=4, targets=("layers.*.attn.*_proj",))
    config.batch_size, config.steps, config.optimizer.learning_rate = 8, 6, 1e-2
    config.optimizer.warmup_ratio = 0.0
    config.checkpoint, config.log.tensorboard = CheckpointConfig(every=3, keep_latest=9), False
    validate(config)
    return config


@pytest.fixture(scope="module", params=["nf4", "int8"])
def trained(model_folder, data_file, tmp_path_factory, request):
    """The workdir of a short run."""
    folder = tmp_path_factory.mktemp("qlora")
    train(make_config(model_folder, data_file, folder / "cache", request.param), str(folder / "run"))
    return folder / "run"


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(TrainConfig().mesh)


def quantized(params):
    return [leaf for _, leaf in layout.leaves(params) if isinstance(leaf, QuantizedKernel)]


def test_only_the_adapter_is_trained_and_kept(trained, model_folder, mesh):
    """The first loss is that of the quantised base, whose arrays no checkpoint holds and no step changes."""
    model = open_model(str(trained), EXACT, mesh)
    kind = json.loads((trained / "config.json").read_text())["config"]["model"]["quantization"]
    base = open_model(str(model_folder), dataclasses.replace(EXACT, quantization=kind), mesh)
    assert base.method is None and {k.kind for k in quantized(base.params)} == {kind}
    assert len(quantized(model.params)) == 7 and jax.tree.all(jax.tree.map(jnp.array_equal, model.params, base.params))
    assert set(jax.tree.leaves(jax.tree.map(lambda p: p.dtype, model.parts.params))) == {jnp.dtype("float32")}
    change = np.abs(logits_of(model) - logits_of(base)).max()
    moved = lines(trained)[0]["loss"] - lines(trained)[-1]["loss"]
    assert change > 0.01 and moved > 0.01
    plain = open_model(str(model_folder), EXACT, mesh)
    assert np.abs(logits_of(plain) - logits_of(base)).max() > 1e-4
    with pytest.raises(UserError, match="no adapter over a quantised base"):
        plain.merged("full_precision")


def test_a_fresh_adapter_is_the_quantised_base_bit_for_bit(mesh):
    decoder = Decoder(llama(vocab_size=320))
    base = quantize_params(decoder.init(jax.random.key(0)), "nf4", True)
    method = LoRA(LoRAConfig(rank=4), decoder.arch)
    params, adapters = method.compose(method.split(base, jax.random.key(1)), {})
    tokens = np.arange(40)[None]
    np.testing.assert_array_equal(logits(decoder, tokens, params, adapters), logits(decoder, tokens, base))


@pytest.mark.parametrize("merge_base", ["dequantised", "full_precision"])
def test_what_is_merged_and_exported(trained, tmp_path, mesh, merge_base):
    """The trained function at float32 over the dequantised base; over the other, the trained change of another."""
    model = open_model(str(trained), EXACT, mesh)
    line = export_hf(model, tmp_path / "out", mesh, "float32", merge_base)
    again = open_model(str(tmp_path / "out"), EXACT, mesh)
    assert not quantized(again.params)
    difference = np.abs(logits_of(again) - logits_of(model)).max()
    drift = merge_drift(model, again.params, merge_base)
    assert f"by {drift:.2g} of what the adapter did" in line
    if merge_base == "dequantised":
        assert difference < 1e-5
        assert "quantising the result again" in line
        return
    assert difference > 1e-4
    plain = open_model(model.source, EXACT, mesh).params
    change = again_less_base = 0.0
    for path, kernel in layout.leaves(model.params):
        if isinstance(kernel, QuantizedKernel):
            was = np.asarray(kernel.dequantize(jnp.float32))
            adapter = np.asarray(layout.get(again.params, path)) - np.asarray(layout.get(plain, path))
            change += np.square(adapter).sum()
            again_less_base += np.square(np.asarray(layout.get(plain, path)) - was).sum()
    assert drift == pytest.approx(np.sqrt(again_less_base / change), rel=1e-3)


def test_an_adapter_by_itself_opens_over_the_base_that_it_was_trained_over(trained, tmp_path, mesh):
    """In both formats, whatever its reader says of the base: the run's own function, and its choice of merges."""
    model = open_model(str(trained), EXACT, mesh)
    kind = json.loads((trained / "config.json").read_text())["config"]["model"]["quantization"]
    other = {"nf4": "int8", "int8": "nf4"}[kind]
    for export in (export_adapter, export_peft):
        folder = tmp_path / export.__name__
        assert f"over a base stored as {kind}, so" in export(model, folder)
        assert read_card(folder).stored == Stored(kind, True)
        again = open_model(str(folder), EXACT, mesh)
        np.testing.assert_allclose(logits_of(again), logits_of(model), atol=1e-6)
        merged, expected = again.merged("full_precision"), model.merged("full_precision")
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, expected)
        elsewhere = open_model(str(folder), dataclasses.replace(EXACT, quantization=other), mesh)
        assert {kernel.kind for kernel in quantized(elsewhere.params)} == {other}
    file = tmp_path / "export_adapter" / "adapter.json"
    file.write_text(file.read_text().replace(f'"{kind}"', '"nf3"'))
    with pytest.raises(UserError, match=r"adapter.json: base.quantization is 'nf3'; choose one of"):
        read_card(file.parent)


def test_a_start_over_another_base(trained, model_folder, data_file, tmp_path, mesh, capsys):
    """Stored otherwise: the run says so. Another model: it is refused."""
    config = make_config(model_folder, data_file, tmp_path / "cache", "none")
    export_adapter(open_model(str(trained), EXACT, mesh), tmp_path / "folder")
    kind = json.loads((trained / "config.json").read_text())["config"]["model"]["quantization"]
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    decoder = Decoder(llama(vocab_size=320))
    save_hf(tmp_path / "new", decoder, decoder.init(jax.random.key(7)))
    shutil.copy(tmp_path / "new" / "model.safetensors", other)
    for start in (trained, tmp_path / "folder"):
        config.adapter.start, config.model.path = str(start), str(model_folder)
        words = f"note: config.adapter.start={start} was trained over a base stored as {kind}; this run's is "
        assert check_start_base(config) == words.removeprefix("note: ") + "unquantised"
        config.model.quantization = kind
        assert check_start_base(config) == ""
        config.model.double_quantization = False
        assert check_start_base(config).endswith(f"this run's is as {kind} without double quantisation")
        config.model.quantization, config.model.double_quantization = "none", True
        config.model.path = str(other)
        with pytest.raises(UserError, match=f"was trained on another model than config.model.path={other}"):
            train(config, str(tmp_path / "run"))
        assert not (tmp_path / "run" / "config.json").exists()
    config.model.path, config.steps = str(model_folder), 1
    train(config, str(tmp_path / "run"))
    assert words + "unquantised\n" in capsys.readouterr().out


def test_the_base_is_the_reference_that_starts_level(model_folder, data_file, tmp_path):
    """MinorSFT's deviation from the start is zero before the first step, asked online and of tables; a reference that
    is named is scored as it is."""
    config = make_config(model_folder, data_file, tmp_path / "cache")
    config.objective.name, config.objective.beta = "minor_sft", 0.1
    config.reference = ReferenceConfig(online=True)
    train(config, str(tmp_path / "online"))
    config.reference = ReferenceConfig(("start",))
    train(config, str(tmp_path / "table"))
    for name in ("online", "table"):
        assert abs(lines(tmp_path / name)[0]["deviation"]) < 1e-5
    np.testing.assert_allclose(
        [line["loss"] for line in lines(tmp_path / "table")],
        [line["loss"] for line in lines(tmp_path / "online")],
        rtol=1e-5,
    )
    config.reference = ReferenceConfig((str(model_folder),))
    train(config, str(tmp_path / "named"))
    assert abs(lines(tmp_path / "named")[0]["deviation"]) > 1e-5
    scores = lambda name: read_scores(tmp_path / name / "scores" / "reference_0.parquet")[1]["log_prob"]
    assert np.abs(scores("named") - scores("table")).max() > 1e-3


def test_full_fine_tuning_of_a_quantised_base_is_refused(model_folder, data_file, tmp_path):
    config = make_config(model_folder, data_file, tmp_path / "cache")
    config.adapter.kind, config.adapter.lora = "none", LoRAConfig()
    with pytest.raises(UserError, match=r"config\.model\.quantization is 'nf4', which freezes the base, but .*'lora'"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_openbezoars_adapter_has_7987200_parameters(mesh):
    """r = 16 on q, k and v of OpenLLaMA-3B; and the frozen rest counts its weights, not its bytes."""
    sizes = {"hidden_size": 3200, "intermediate_size": 8640, "num_hidden_layers": 26, "num_attention_heads": 32}
    arch = llama(**sizes, num_key_value_heads=32, head_dim=100, vocab_size=32000)
    config = TrainConfig(batch_size=8)
    config.model.quantization, config.adapter.kind = "nf4", "lora"
    config.adapter.lora = LoRAConfig(16, 16.0, targets=tuple(f"layers.*.attn.{name}_proj" for name in "qkv"))
    program = build(config, arch, mesh, 10, abstract_batch(8, 16, 2))
    assert parameter_count(program.state.params) == 7_987_200
    assert parameter_count(program.frozen.method) == 3_426_473_600
    codes = program.base["stacks"]["0"]["0"]["attn"]["q_proj"]["kernel"].codes
    assert codes.shape == (26, 50, 32, 3200)
    assert codes.sharding.shard_shape(codes.shape) == (26, 50, 32, 400)  # 50 blocks do not divide by 8, columns do

"""Mixture-of-Instructions: prompts by domain, chunks of one example per domain, and what sees what."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from jaxsft.config import DataConfig, MixtureConfig, SourceConfig
from jaxsft.data.dataset import prepare
from jaxsft.data.groups import Groups
from jaxsft.data.loader import Loader
from jaxsft.data.mixture import cut
from jaxsft.errors import UserError
from jaxsft.models.decoder import Decoder
from jaxsft.objectives.figures import token_metrics, token_sums
from jaxsft.objectives.sft import SFT
from jaxsft.scoring.table import write_scores
from jaxsft.training.step import BoundModel
from tests.data.conftest import make_tokenizer, write_jsonl
from tests.tiny import llama, on_device

DOMAINS = ("chat", "code", "sums")
SIZES = {"chat": 11, "code": 4, "sums": 6}
PROMPTS = {"code": "You are fine.", "sums": "You are blue."}


def records(sizes: dict[str, int] = SIZES, words: int = 6) -> list[dict]:
    return [
        {"prompt": f"{domain} {i}", "completion": f"{i} " * (1 + i * 5 % words), "task_type": domain}
        for domain, count in sizes.items()
        for i in range(count)
    ]


@pytest.fixture
def make(tmp_path, tokenizer):
    """(data set, config) of records; by default chunks of three domains."""

    def make(rows=None, own_tokenizer=tokenizer, seed=0, mixture=None, weight=1.0, **options):
        options = {"grouping": "domain", "attention_unit": "group", "template": "chatml", "max_length": 160, **options}
        config = DataConfig(
            sources=[SourceConfig(write_jsonl(tmp_path / "rows.jsonl", rows or records()), weight=weight)],
            mixture=mixture or MixtureConfig(domains=DOMAINS),
            cache_dir=str(tmp_path / "cache"),
            **options,
        )
        return prepare(config, own_tokenizer, seed), config

    return make


def names(dataset, groups: Groups) -> list[list[str]]:
    """The domains of each group's members."""
    domains = dataset.config.mixture.domains
    return [[domains[dataset.domain_ids[i]] for i, _ in groups.group(g)] for g in range(groups.count)]


def visible(segment_ids: np.ndarray) -> np.ndarray:
    """bool [T, T], which keys each query sees."""
    same = (segment_ids[:, None] == segment_ids[None, :]) & (segment_ids > 0)[:, None]
    return same & (np.arange(len(segment_ids))[None, :] <= np.arange(len(segment_ids))[:, None])


def test_who_sees_whom():
    """T1 of the method: chunks 1 1 1 2 2 2 and padding, of the examples 1 1 2 3 4 4."""
    groups = Groups.of(np.arange(4), np.array([2, 2]))
    lengths = np.array([2, 1, 1, 2])
    data = types.SimpleNamespace(
        lengths=lengths,
        epochs_vary=False,
        epoch=lambda epoch: groups,
        extras=lambda i: {"example_index": i},
        example=lambda i: (np.full(lengths[i], i + 1), np.ones(lengths[i], np.float32), {"example_index": i}),
    )
    keys: dict[str, list[list[int]]] = {}
    for unit in ("group", "example", "row"):
        config = DataConfig(max_length=7, grouping="domain", attention_unit=unit)
        seed = next(s for s in range(9) if Loader(data, config, 1, s).batch(0).tokens[0, 0] == 1)
        units = Loader(data, config, 1, seed).batch(0).segment_ids[0]
        keys[unit] = [np.flatnonzero(row).tolist() for row in visible(units)]
    assert keys["group"] == [[0], [0, 1], [0, 1, 2], [3], [3, 4], [3, 4, 5], []]
    assert sum(map(len, keys["example"])) == 8
    assert sum(map(len, keys["row"])) == 21


def model():
    """A function from a batch to its logits, and one to sums of its loss."""
    decoder = Decoder(llama(vocab_size=320, max_position_embeddings=256))
    params = decoder.init(jax.random.key(0))
    method = types.SimpleNamespace(compose=lambda parts, probes: (parts, None))
    bound = lambda: BoundModel(decoder, method, params, {}, None, False)

    @jax.jit
    def logits(batch):
        output = bound()(batch)
        return output.head(output.head_params, output.hidden)

    def terms(batch, reduction="token_mean"):
        objective = SFT(reduction=reduction, chunk_size=64)
        return objective(bound(), batch, objective.denominators(batch))

    return logits, jax.jit(terms, static_argnums=1)


def test_a_chunk_is_seen_by_its_own_members_alone(make):
    dataset, config = make()
    batch = on_device(Loader(dataset, dataclasses.replace(config, max_length=400), 1).batch(0))
    logits, _ = model()
    before = logits(batch)
    members, ids, units = batch.extras["member"][0], np.asarray(batch.example_ids[0]), np.asarray(batch.segment_ids[0])
    assert units.max() >= 2
    assert members[:6].tolist() == [0, 1, 2, 0, 1, 2]
    edited = dataclasses.replace(batch, tokens=jax.numpy.where(ids == 1, 319 - batch.tokens, batch.tokens))
    changed = np.asarray(logits(edited) != before).any(axis=-1)[0]
    assert changed[ids == 3].all()
    assert not changed[units != units[0]].any()


def test_one_domain_is_ordinary_packing(make):
    """T3: with one domain, and given the same order of examples, every array is the same bit for bit."""
    rows = [row | {"task_type": "chat"} for row in records()]
    dataset, config = make(rows, mixture=MixtureConfig(domains=("chat",)))
    chunked = Loader(dataset, config, 2)
    groups = dataset.epoch(0)
    assert sorted(groups.members) == list(range(len(rows)))
    options = {"grouping": "example", "attention_unit": "example"}
    plain, plain_config = make(rows, mixture=MixtureConfig(domains=("chat",)), **options)
    plain.epoch = lambda epoch: Groups.single(groups.members)
    expected = Loader(plain, plain_config, 2)
    assert chunked.rows() == expected.rows()
    for step in range(chunked.rows() // 2):
        one, other = chunked.batch(step), expected.batch(step)
        assert one.extras.pop("member").max() == 0
        assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_a_row_of_one_chunk_is_one_unit(make):
    dataset, config = make(packing=False)
    by_group, by_row = (
        Loader(dataset, dataclasses.replace(config, attention_unit=unit), 4).batch(0) for unit in ("group", "row")
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, by_group, by_row))
    assert by_group.extras["member"].shape == (4, 3)


def test_the_loss_of_packed_chunks_is_that_of_chunks_alone(make):
    dataset, config = make()
    _, terms = model()
    sums = []
    for options in ({"packing": True, "max_length": 480}, {"packing": False}):
        loader = Loader(dataset, dataclasses.replace(config, **options), 1)
        batches = [on_device(loader.batch(step)) for step in range(loader.rows())]
        sums.append(jax.tree.map(lambda *values: sum(values), *(terms(batch, "token_mean")[1] for batch in batches)))
        counts = [loader.counts(step) for step in range(loader.rows())]
        assert sum(count["supervised"] for count in counts) == sums[-1]["supervised_tokens"]
        assert sum(count["real"] for count in counts) == sum(int((batch.segment_ids > 0).sum()) for batch in batches)
    assert sums[0].keys() == sums[1].keys()
    for name, value in sums[0].items():
        np.testing.assert_allclose(value, sums[1][name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("words", [1, 6])
def test_instructions_of_one_length_count_as_their_tokens_do(make, words):
    """T5: the mean over tokens and the mean over instructions agree where responses are equally long."""
    rows = [row | {"completion": "b" + " a" * (i % words)} for i, row in enumerate(records())]
    dataset, config = make(rows)
    _, terms = model()
    batch = on_device(Loader(dataset, config, 4).batch(0))
    token, example = (terms(batch, reduction)[0]["cross_entropy"] for reduction in ("token_mean", "example_mean"))
    same = np.isclose(token.sum / token.denominator, example.sum / example.denominator, rtol=1e-6)
    assert same == (words == 1)


def test_every_chunk_has_one_example_of_each_domain_in_order(make):
    dataset, _ = make()
    counts = {domain: np.zeros(size, int) for domain, size in SIZES.items()}
    offsets = dict(zip(SIZES, np.cumsum([0, *SIZES.values()])))
    drawn: dict[str, list[int]] = {domain: [] for domain in DOMAINS}
    for epoch in range(4):
        groups = dataset.epoch(epoch)
        assert groups.count == 7  # 21 examples of 3 domains
        assert names(dataset, groups) == [list(DOMAINS)] * 7
        for member, domain in zip(groups.members, DOMAINS * 7):
            drawn[domain].append(int(member) - offsets[domain])
    for domain, size in SIZES.items():
        for begin in range(0, 28 - size + 1, size):  # each pass has every example once
            assert sorted(drawn[domain][begin : begin + size]) == list(range(size))
        counts[domain] = np.bincount(drawn[domain], minlength=size)
        assert np.ptp(counts[domain]) <= 1
    assert drawn["code"][:4] != drawn["code"][4:8] != drawn["code"][8:12]
    again, other = make(), make(seed=1)
    assert (again[0].epoch(3).members == dataset.epoch(3).members).all()  # without the epochs before
    assert (other[0].epoch(0).members != dataset.epoch(0).members).any()
    assert other[0].fingerprint != dataset.fingerprint


def test_targets_stay_inside_their_examples(make, tokenizer):
    dataset, config = make(mixture=MixtureConfig(domains=DOMAINS, system=PROMPTS))
    for unit, begins in (("group", [0, 1, 1]), ("row", [0, 1, 1]), ("example", [0, 0, 0])):
        own, own_config = make(mixture=config.mixture, attention_unit=unit)
        batch = Loader(own, own_config, 2).batch(0)
        for b, slot in np.argwhere(batch.extras["example_index"] >= 0):
            where = np.flatnonzero(batch.example_ids[b] == slot + 1)
            ids, weights, _ = dataset.example(batch.extras["example_index"][b, slot])
            begin = begins[batch.extras["member"][b, slot]]  # one BOS a chunk, where its members see each other
            assert batch.tokens[b, where].tolist() == ids[begin:].tolist()
            assert batch.targets[b, where].tolist() == [*ids[begin + 1 :].tolist(), 0]
            assert batch.weights[b, where].tolist() == [*weights[begin + 1 :].tolist(), 0]
        written = ((batch.tokens == tokenizer.bos_id) & (batch.example_ids > 0)).sum()
        assert written == np.isin(batch.extras["member"], np.flatnonzero(np.array(begins) == 0)).sum()


def test_without_bos_examples_stand_whole(make):
    dataset, _ = make(own_tokenizer=make_tokenizer(eos_token="</s>"))
    groups = dataset.epoch(0)
    assert not groups.windows[:, 0].any()
    assert (groups.tokens(dataset.lengths) == dataset.lengths[groups.members]).all()


def test_prompts_of_domains(make, tokenizer):
    rows = [*records(), {"messages": [
        {"role": "system", "content": "Own."}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    ], "task_type": "sums"}]  # fmt: skip
    mixture = MixtureConfig(domains=DOMAINS, system=PROMPTS)
    prompted, _ = make(rows, mixture=mixture, system="You are how?")
    texts = [tokenizer.decode(prompted.example(i)[0]) for i in range(len(prompted))]
    systems = [text.partition("<|im_start|>user")[0].removeprefix("<s><|im_start|>system\n") for text in texts]
    chat, code, sums = SIZES.values()
    ends = lambda words: f"{words}<|im_end|>\n"
    expected = ["You are how?"] * chat + ["You are fine."] * code + ["You are blue."] * sums + ["Own."]
    assert systems == [ends(words) for words in expected]
    bare, _ = make(rows)
    assert prompted.examples_fingerprint != bare.examples_fingerprint
    assert tokenizer.decode(bare.example(0)[0]).startswith("<s><|im_start|>user")
    by_source, _ = make(
        [row | {"source": row.pop("task_type")} for row in records()], mixture=dataclasses.replace(mixture, by="source")
    )
    assert names(by_source, by_source.epoch(0))[0] == list(DOMAINS)
    assert "You are fine." in tokenizer.decode(by_source.example(chat)[0])


def test_evaluation_is_asked_with_the_default_prompt(make, tokenizer):
    """T8: what is held out has no prompt of a domain."""
    from jaxsft.config import TrainConfig
    from jaxsft.training.setup import held_out_data

    dataset, data = make(mixture=MixtureConfig(domains=DOMAINS, system=PROMPTS), system="You are how?")
    config = TrainConfig(data=data)
    config.eval.path = data.sources[0].path
    held_out = prepare(held_out_data(config), tokenizer)
    texts = [tokenizer.decode(held_out.example(i)[0]) for i in range(len(held_out))]
    assert len(texts) == len(dataset)
    assert all("You are how?" in text for text in texts)
    assert not any(prompt in text for text in texts for prompt in PROMPTS.values())
    assert any(prompt in tokenizer.decode(dataset.example(12)[0]) for prompt in PROMPTS.values())


def test_the_longest_member_is_cut_first():
    assert cut(np.array([9, 4, 2]), 20).tolist() == [9, 4, 2]
    assert cut(np.array([9, 4, 2]), 12).tolist() == [6, 4, 2]
    assert cut(np.array([4, 9, 2]), 8).tolist() == [3, 3, 2]
    assert cut(np.array([9, 9, 9]), 10).tolist() == [3, 3, 3]


def test_chunks_longer_than_a_row(make, tokenizer):
    rows = records()
    rows[3]["completion"] = "long " * 22
    whole, _ = make(rows, max_length=512)
    longest = int(whole.lengths.max())
    options = {"max_length": longest + 12, "max_dropped": 0.5}
    over = [c for c in range(7) if whole.epoch(0).sums(whole.lengths)[c] > options["max_length"]]
    assert len(over) == 1
    dropped, _ = make(rows, truncation="drop", **options)
    assert dropped.epoch(0).count == 6
    assert "of the first epoch's 7 chunks dropped" in str(dropped.report)
    assert list(dropped.report.notices.values()) == [1]
    shortened, config = make(rows, truncation="right", **options)
    groups = shortened.epoch(0)
    sizes = groups.tokens(shortened.lengths)
    assert groups.count == 7
    assert groups.sums(shortened.lengths)[over[0]] == options["max_length"]
    is_cut = groups.windows[:, 1] < shortened.lengths[groups.members]
    assert groups.members[is_cut].tolist() == [3]
    assert sizes[is_cut] == sizes.max()
    assert "members cut" in str(shortened.report)
    loader = Loader(shortened, config, 1)
    for step in range(loader.rows()):
        batch = loader.batch(step)
        counts = {"slots": config.max_length, "real": int((batch.segment_ids > 0).sum())}
        assert loader.counts(step) == counts | {"supervised": int((batch.weights > 0).sum())}
    with pytest.raises(UserError, match="1 of 7 chunks are longer"):
        make(rows, truncation="error", **options)
    with pytest.raises(UserError, match="1 of 7 chunks do not fit"):
        make(rows, truncation="drop", max_length=longest + 12, max_dropped=0.1)
    rows[3] |= {"prompt": rows[3]["completion"], "completion": "lost"}  # the cut would take its answer
    assert make(rows, truncation="right", **options)[0].epoch(0).count == 6


def test_losses_by_domain(make):
    """A closed form over the arrays, and the same whatever the grouping."""
    dataset, config = make(grouping="example", attention_unit="example")
    batch = Loader(dataset, config, 4).batch(0)
    log_prob = -np.random.default_rng(0).random(batch.weights.shape).astype(np.float32) * (batch.weights > 0)
    metrics = token_metrics(token_sums(on_device(batch), log_prob, log_prob > -0.5))
    slots = np.take_along_axis(np.pad(batch.extras["task_type"], ((0, 0), (1, 0))), batch.example_ids, axis=1)
    for domain in DOMAINS:
        own = (slots == dataset.task_types.index(domain)) & (batch.weights > 0)
        assert metrics[f"nll/{domain}"] == pytest.approx(-log_prob[own].mean(), rel=1e-5)
    plain, config = make(grouping="example", attention_unit="example", mixture=MixtureConfig())
    batch = on_device(Loader(plain, config, 4).batch(0))
    assert not [name for name in token_metrics(token_sums(batch, log_prob, log_prob > -1)) if "/" in name]


def test_what_cannot_be_mixed_is_refused(make):
    domains = MixtureConfig(domains=DOMAINS)
    with pytest.raises(UserError, match="1 of 22 examples have no task type"):
        make([*records(), {"prompt": "q", "completion": "a"}])
    with pytest.raises(UserError, match=r"1 examples are of the task type 'cod', .* did you mean 'code'"):
        make([*records(), records()[12] | {"task_type": "cod"}])
    with pytest.raises(UserError, match="has 'art', but no example is of that task type"):
        make(mixture=MixtureConfig(domains=(*DOMAINS, "art")))
    with pytest.raises(UserError, match=r"prompt for 'cod', .* did you mean 'code'"):
        make(mixture=dataclasses.replace(domains, system={"cod": "x"}))
    with pytest.raises(UserError, match="each domain once"):
        make(mixture=MixtureConfig(domains=("chat", "chat")))
    with pytest.raises(UserError, match=r"needs config\.data\.mixture\.domains"):
        make(mixture=MixtureConfig())
    with pytest.raises(UserError, match="3 domains needs as many of the 2 slots"):
        make(max_examples_per_row=2)
    with pytest.raises(UserError, match="whole number"):
        make(weight=0.5)
    with pytest.raises(UserError, match="plain text has no turns"):
        make([*records(), {"text": "a", "task_type": "code"}], mixture=dataclasses.replace(domains, system=PROMPTS))


def test_a_domain_of_which_nothing_is_kept_is_named(make, tmp_path):
    dataset, _ = make()
    scores = (dataset.domain_ids == 0).astype(np.float32)
    table = tmp_path / "scores.parquet"
    write_scores(table, {"examples": dataset.examples_fingerprint}, np.arange(len(dataset)), {"confidence": scores})
    with pytest.raises(UserError, match=rf"keep 0\.1 leaves no example of the domain '{DOMAINS[1]}'"):
        make(scores=str(table), keep=0.1)

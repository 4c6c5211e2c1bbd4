"""Records what `transformers` decodes and how it narrows logits, in `greedy.npz` and `warped.npz` beside this file.

Run by hand, with torch and transformers 5 installed: `python tests/decoding/make_greedy.py`. `greedy.npz` holds
`prompts` int32 [32, 33], right-padded with -1, and under the name of every case of `tests/models/make_golden.py` the
continuation int16 [32, NEW] of each prompt, decoded alone with a cache. A left-padded batch must give the same, and so
must runs without cache. `warped.npz` holds `logits` [4, 50], `seen` bool [4, 50] and the logits after each warper.
"""

from pathlib import Path

import numpy as np

from tests.models.make_golden import CASES, GOLDEN, SIZES

HERE = Path(__file__).parent
ROWS, LONGEST, NEW = 32, 33, 24
SMALLEST_MARGIN = 5e-4  # of the likeliest logit over the next, so that rounding chooses nothing
WARPERS = {
    "temperature": ("TemperatureLogitsWarper", 0.7),
    "top_k": ("TopKLogitsWarper", 7),
    "top_p": ("TopPLogitsWarper", 0.8),
    "min_p": ("MinPLogitsWarper", 0.1),
    "repetition_penalty": ("RepetitionPenaltyLogitsProcessor", 1.3),
}


def candidates(rng: np.random.Generator) -> list[list[int]]:
    """Token ids of all lengths up to LONGEST, several times; none 0, which pads here."""
    return [rng.integers(1, SIZES["vocab_size"], 1 + i % LONGEST).tolist() for i in range(4 * LONGEST)]


def continued(model, rows: list[list[int]], use_cache: bool) -> tuple[np.ndarray, np.ndarray]:
    """The greedy continuations [rows, NEW] of left-padded prompts, and the smallest margin of each on the way."""
    import torch
    import transformers

    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    settings = transformers.GenerationConfig(
        max_new_tokens=NEW, do_sample=False, use_cache=use_cache, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    with torch.no_grad():
        result = model.generate(ids, attention_mask=mask, generation_config=settings)
    top = torch.stack(result.logits).topk(2).values
    return result.sequences[:, width:].numpy(), (top[..., 0] - top[..., 1]).min(0).values.numpy()


def greedy() -> dict[str, np.ndarray]:
    """`prompts`, those of the candidates that are far from any tie in every case, and their continuations by case."""
    import torch
    import transformers

    rows, clear, models = candidates(np.random.default_rng(0)), True, {}
    for name in CASES:
        models[name] = transformers.AutoModelForCausalLM.from_pretrained(
            GOLDEN / name, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        models[name].generation_config.eos_token_id = models[name].config.eos_token_id = None  # nothing ends early
        clear &= continued(models[name], rows, True)[1] > SMALLEST_MARGIN
    kept = [row for row, well in zip(rows, clear) if well][:ROWS]
    assert len(kept) == ROWS and len({len(row) for row in kept}) > ROWS // 2
    found = {}
    for name, model in models.items():
        found[name] = np.concatenate([continued(model, [row], True)[0] for row in kept]).astype(np.int16)
        for use_cache in (True, False):
            np.testing.assert_array_equal(continued(model, kept, use_cache)[0], found[name], name)
        print(name, len(np.unique(found[name])), "tokens used", flush=True)
    table = np.full((ROWS, LONGEST), -1, np.int32)
    for row, prompt in zip(table, kept):
        row[: len(prompt)] = prompt
    return {"prompts": table} | found


def warped() -> dict[str, np.ndarray]:
    """`logits`, `seen` and the logits after each warper alone."""
    import torch
    import transformers

    rng = np.random.default_rng(1)
    logits = (2 * rng.standard_normal((4, 50))).astype(np.float32)
    ids = rng.integers(0, 50, (4, 12))
    seen = np.zeros((4, 50), bool)
    np.put_along_axis(seen, ids, True, 1)
    tables = {"logits": logits, "seen": seen}
    for name, (kind, value) in WARPERS.items():
        tables[name] = getattr(transformers, kind)(value)(torch.tensor(ids), torch.tensor(logits)).numpy()
    return tables


def main() -> None:
    np.savez_compressed(HERE / "warped.npz", **warped())
    np.savez_compressed(HERE / "greedy.npz", **greedy())


if __name__ == "__main__":
    main()

"""What lm-evaluation-harness is asked of two models: by its own transformers backend when recorded, by ours in tests.

Needs neither jax nor torch: `record_harness.py` runs where there is no jax, the tests where there is no torch.
"""

import json

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers, processors

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 272,  # as many as the tokenizer has
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MERGES = ["t h", "th e", "Ġ the", "a n", "an d", "Ġ and", "i n", "Ġ a", "o n", "e r", "Ġ i", "Ġ w", "l l", "Ġ b"]
TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}{{- '[' + message.role + '] ' + message.content | trim + '\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '[assistant] ' }}{% endif %}"
)

# The last ones need their beginning cut: the tiny model's context is 96.
PAIRS = [
    ["The cat sat on", " the"],
    ["The cat sat on", " a"],
    ["The cat sat on", " the mat and then"],
    ["Question: is it in?\nAnswer:", " yes"],
    ["Question: is it in?\nAnswer:", " no"],
    ["A blank at the end ", "of it"],
    ["Lines at the end\n\n", "and then all"],
    ["", "The whole text"],
    ["", " and the end"],
    ["<s>begins with BOS", " and then"],
    ["Ünïcödé ☃", " in ☃"],
    ["in the beginning " * 8, "and in the end"],
    ["the " * 40, "other end of it " * 3],
]
TEXTS = ["The cat sat on the mat.", "", "A longer one, and then " * 20, "☃"]
PROMPTS = [
    ["The cat sat on", {"until": ["\n"], "max_gen_toks": 24}],
    ["The cat sat on", {"until": ["th", "."], "max_gen_toks": 24}],
    ["Once upon a time", {"until": "e", "max_new_tokens": 30, "do_sample": False, "temperature": 0.7}],
    ["in the beginning " * 20, {"until": [], "max_gen_toks": 12}],
    ["<s>begins with BOS", {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}],
]
CHATS = [
    ([{"role": "user", "content": " What is it? "}], True),
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}], True),
    ([{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one, two, "}], False),
]
LETTERS = [
    {"q": "Which is in the box?", "choices": ["a ball", "the hat", "nothing at all"], "gold": 1},
    {"q": "Who ran away?", "choices": ["the cat", "Lily", "Ben and the dog"], "gold": 0},
    {"q": "What was on the table?", "choices": ["in", "an apple", "the other end"], "gold": 2},
    {"q": "Where did they all go?", "choices": ["to the park", "home", "in the house"], "gold": 0},
    {"q": "What did she say then?", "choices": ["and", "yes", "hello there"], "gold": 1},
]


def make_folder(path):
    """A random Llama over bytes and a few merges, whose tokenizer adds BOS and has a chat template, at `path`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet, *(m.replace(" ", "") for m in MERGES)])}
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    backend.save(str(path / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(names | {"chat_template": TEMPLATE}))
    (path / "config.json").write_text(json.dumps(CONFIG))
    random = np.random.default_rng(0)
    d, f, kv, v = (CONFIG[k] for k in ("hidden_size", "intermediate_size", "num_key_value_heads", "vocab_size"))
    shapes = {"model.embed_tokens.weight": (v, d), "lm_head.weight": (v, d)}
    for layer in range(CONFIG["num_hidden_layers"]):
        maps = {"self_attn.q_proj": (d, d), "self_attn.k_proj": (kv * 8, d), "self_attn.v_proj": (kv * 8, d)}
        maps |= {"self_attn.o_proj": (d, d), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in maps.items()}
    weights = {name: random.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    for name in (
        "model.norm",
        *(f"model.layers.{i}.{n}_layernorm" for i in range(2) for n in ("input", "post_attention")),
    ):
        weights[f"{name}.weight"] = np.ones(d, np.float32)
    save_file(weights, str(path / "model.safetensors"), metadata={"format": "pt"})


def write_data(folder):
    """The records of the tasks below."""
    (folder / "letters.jsonl").write_text("".join(json.dumps(record) + "\n" for record in LETTERS))
    records = [{"text": text} for text in TEXTS if text]
    (folder / "texts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def tasks(folder):
    """Local tasks of the three kinds of output: choices by letter and by text, answers, and whole texts."""

    def task(name, file, **more):
        data = {"data_files": {"test": str(folder / file)}, "cache_dir": str(folder / "cache")}
        common = {"dataset_path": "json", "dataset_kwargs": data, "test_split": "test", "metadata": {"version": 1.0}}
        return {"task": name, **common, **more}

    lettered = "{{q}}\n{% for c in choices %}{{'ABC'[loop.index0]}}. {{c}}\n{% endfor %}Answer:"
    return [
        task("letters", "letters.jsonl", output_type="multiple_choice", doc_to_text=lettered,
             doc_to_choice=["A", "B", "C"], doc_to_target="gold"),
        task("shots", "letters.jsonl", output_type="multiple_choice", doc_to_text="{{q}}", doc_to_choice="choices",
             doc_to_target="gold", fewshot_split="test", num_fewshot=2, fewshot_config={"sampler": "first_n"}),
        task("answers", "letters.jsonl", output_type="generate_until", doc_to_text="{{q}}\nAnswer:",
             doc_to_target="{{choices[gold]}}", generation_kwargs={"until": ["\n"], "max_gen_toks": 16},
             metric_list=[{"metric": "exact_match", "ignore_case": True}]),
        task("texts", "texts.jsonl", output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}"),
    ]  # fmt: skip


def run_tasks(model, folder, **options):
    """What the harness's own evaluation says: name -> metrics, and the answers to every request."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    write_data(folder)
    manager = TaskManager(include_defaults=False)  # the definitions of the harness's own tasks take long to read
    found = simple_evaluate(model=model, tasks=tasks(folder), task_manager=manager, bootstrap_iters=0, **options)
    metrics = {
        name: {key: value for key, value in of.items() if isinstance(value, float)}
        for name, of in found["results"].items()
    }
    answers = {
        name: [sample["resps"] for sample in sorted(of, key=lambda sample: sample["doc_id"])]
        for name, of in found["samples"].items()
    }
    return {"metrics": metrics, "answers": answers, "versions": found["versions"], "n-shot": found["n-shot"]}

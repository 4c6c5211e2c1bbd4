"""OpenBezoar (arXiv:2404.12195): a teacher writes three instruction sets, a judge filters them, and a small model is
fine-tuned on one after the other, then on preferred answers, then by DPO.

    python scripts/run.py --workdir=runs/openbezoar --config.train.model.path=BASE_FOLDER \
        --config=configs/recipes/openbezoar.py:TEACHER,JUDGE,seeds.jsonl,tasks.jsonl,pairs.jsonl

TEACHER and JUDGE are models, seeds.jsonl instructions to start from (the authors': Dolly), tasks.jsonl those to be
explained (FLAN), pairs.jsonl `chosen` and `rejected` answers (HH-RLHF). Every training run is QLoRA over what the run
before it has become: its adapter is merged into the base, which is quantised again. The result is in
runs/openbezoar/model.

Where the paper is silent the numbers are QLoRA's and ours; they are marked.
"""

from jaxsft.config import (
    DataConfig,
    ExportConfig,
    JudgeConfig,
    ModelConfig,
    RecipeConfig,
    StageConfig,
    SynthesisConfig,
    TrainConfig,
)
from jaxsft.errors import UserError

SETS = ("lamini", "evol_instruct", "orca")  # the abstract's order; the model card has the last two exchanged
PAIRS = ":100000"  # the first ones, for fine-tuning and for DPO
MERGE_BASE = "dequantised"  # what was trained; "full_precision" merges into the weights before quantising. Ours.


def get_config(asked: str = "TEACHER,JUDGE,seeds.jsonl,tasks.jsonl,pairs.jsonl") -> RecipeConfig:
    given = asked.split(",")
    if len(given) != 5 or not all(given):
        raise UserError(f"{asked!r} is not understood; write TEACHER,JUDGE,SEEDS,TASKS,PAIRS.")
    teacher, judge, seeds, tasks, pairs = given

    train = TrainConfig()
    train.model.path = ""
    train.model.quantization = "nf4"
    train.data.template = "openbezoar"
    train.data.max_length = 2048
    train.adapter.kind = "lora"
    train.adapter.lora.rank = 16
    train.adapter.lora.alpha = 16.0
    train.adapter.lora.dropout = 0.05
    train.adapter.lora.targets = tuple(f"layers.*.attn.{name}_proj" for name in "qkv")
    train.optimizer.learning_rate = 2e-4  # from here on QLoRA's
    train.optimizer.schedule = "constant"
    train.optimizer.warmup_ratio = 0.03
    train.optimizer.max_grad_norm = 0.3
    train.epochs = 1.0
    train.batch_size = 16
    train.checkpoint.every = 200

    stages: list[StageConfig] = []
    for name in SETS:
        own = SynthesisConfig(ModelConfig(teacher), data=DataConfig(tasks if name == "orca" else seeds), method=name)
        own.temperature, own.top_p, own.max_new_tokens = 0.7, 0.95, 512  # ours
        filtered = SynthesisConfig(ModelConfig(judge), data=DataConfig(f"{{{name}}}/records.jsonl"), method="judge")
        filtered.judge = JudgeConfig(scale=5, threshold=4.0)  # ours; `file` names judgements made elsewhere
        filtered.temperature, filtered.max_new_tokens = 0.0, 128
        stages += [
            StageConfig(name, "synthesize", own),
            StageConfig(f"{name}_kept", "synthesize", filtered),
        ]
    base = ""  # that of `train`
    steps = [(name, {"data.path": f"{{{name}_kept}}/records.jsonl"}) for name in SETS]
    steps.append(("chosen", {"data.path": pairs, "data.rows": PAIRS}))  # fine-tuning reads the chosen answer of a pair
    dpo = {
        "data.path": pairs,
        "data.rows": PAIRS,
        "data.grouping": "preference",
        "objective.name": "dpo",  # what it is held to is the merged model that it starts from
        "objective.beta": 0.1,  # ours, as the next
        "optimizer.learning_rate": 5e-5,
    }
    for name, changes in steps:
        changes |= {"model.path": base} if base else {}
        # in float32, so that rounding to 16 bits comes once, at the end
        merged = ExportConfig(f"{{sft_{name}}}", MERGE_BASE, "float32")
        stages += [StageConfig(f"sft_{name}", "train", changes=changes), StageConfig(f"after_{name}", "export", merged)]
        base = f"{{after_{name}}}"
    stages += [
        StageConfig("dpo", "train", changes=dpo | {"model.path": base}),
        StageConfig("model", "export", ExportConfig("{dpo}", MERGE_BASE, "bfloat16")),
    ]
    return RecipeConfig(train=train, stages=stages)

"""Divergent chains of thought: several chains of reasoning in one response, then one answer (arXiv:2407.03181).

    python scripts/train.py --config=configs/dcot.py --workdir=runs/dcot \
        --config.model.path=MODEL_FOLDER --config.data.path=chains.json

See docs/methods/dcot.md.
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()

    # What you will change: the model, and the data: records with `question`, `chains` (the correct ones), `answer`, and
    # `context` and `options` where there are any.
    config.model.path = ""
    config.data.path = ""
    config.data.template = "raw"  # prompt and response as they are, between BOS and EOS
    config.data.max_length = 4096

    config.data.grouping = "dcot"
    config.data.dcot.draws = 3  # as many as epochs: each sees its own
    config.data.dcot.single = False  # True is the baseline, one chain a response
    config.data.supervise = "assistant"  # the paper's code trains on the prompt too: "all"

    # The paper's: LoRA at a constant rate.
    config.adapter.kind = "lora"
    config.adapter.lora.rank = 64
    config.adapter.lora.alpha = 16.0
    config.adapter.lora.dropout = 0.1
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 0.001
    config.optimizer.max_grad_norm = 0.3
    config.data.packing = False
    config.batch_size = 4
    config.epochs = 3.0

    config.checkpoint.every = 200
    config.eval.every = 200
    return config

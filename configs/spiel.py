"""SpIEL: a fixed number of single weights is tuned, and which they are changes on the way; see docs/methods/spiel.md.

    python scripts/train.py --config=configs/spiel.py --workdir=runs/spiel \
        --config.model.path=MODEL_FOLDER --config.data.path=conversations.jsonl
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()
    config.model.path = ""
    config.data.path = ""

    config.adapter.kind = "spiel"
    config.adapter.spiel.variant = "ag"  # "ma" needs less memory, and the optimizer "sm3"
    config.adapter.spiel.lora_rank = 16  # as many weights as LoRA of this rank has; or `density`, or `weights`
    config.adapter.spiel.reselect_every = 20  # steps between two changes of the support; more where batches are small
    config.adapter.spiel.phase = 5  # the steps before a change that look for better weights
    config.adapter.spiel.rate = 0.2  # the share that may be replaced, falling to none at the end
    config.adapter.spiel.targets = ("layers.*.attn.*_proj", "layers.*.mlp.*_proj")

    config.optimizer.learning_rate = 1e-5  # of the authors' 1e-4 to 3e-6, 2e-3 to 4e-4 for "ma"
    config.optimizer.schedule = "linear"
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 10.0  # towards the base; times the learning rate it is little: 1 to 30
    config.optimizer.max_grad_norm = 0.0  # newcomers begin with moments of gradients as they are
    config.epochs = 2.0
    config.batch_size = 16
    config.checkpoint.every = 200
    config.eval.every = 100
    return config

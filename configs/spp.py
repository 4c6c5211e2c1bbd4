"""SPP: a pruned model is fine-tuned, and what was pruned stays pruned, in the merged model too.

    python scripts/prune.py --config=configs/prune/wanda.py --output=runs/pruned \
        --config.model.path=MODEL_FOLDER --config.data.path=text.jsonl
    python scripts/train.py --config=configs/spp.py --workdir=runs/spp \
        --config.model.path=runs/pruned --config.data.path=conversations.jsonl
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()
    config.model.path = ""  # a pruned model
    config.data.path = ""

    config.adapter.kind = "spp"
    config.adapter.spp.rank = 16  # must divide the outputs of every targeted map
    config.adapter.spp.scale = 2.0
    config.adapter.spp.dropout = 0.05
    config.adapter.spp.targets = ("layers.*.attn.*_proj", "layers.*.mlp.*_proj")

    config.optimizer.learning_rate = 4e-3  # the paper's: b starts at zero and only scales weights that are there
    config.optimizer.weight_decay = 0.001
    config.epochs = 3.0
    config.batch_size = 128
    config.checkpoint.every = 200
    config.eval.every = 100
    return config

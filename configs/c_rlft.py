"""C-RLFT: sources of different quality, told apart in the prompt and weighted in the loss (arXiv:2309.11235).

    python scripts/train.py --config=configs/c_rlft.py --workdir=runs/c_rlft --config.model.path=MODEL_FOLDER \
        --config.data.sources[0].path=good.jsonl --config.data.sources[1].path=rest.jsonl

See docs/methods/c_rlft.md.
"""

from jaxsft.config import SourceConfig, TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()

    # What you will change: the model, and the data by quality. A source's name is the class of its records, unless they
    # carry a field `source`; with classes.by = "task_type" the class is their field `task_type`.
    config.model.path = ""
    config.data.sources = [SourceConfig(path="", name="expert"), SourceConfig(path="", name="rest")]
    config.data.template = "openchat"  # or a .jinja file that writes {{ condition }}
    config.data.max_length = 1024

    # The prefixes of every turn say which class it is; asked, the model answers as the expert class.
    config.data.classes.condition = {"expert": "GPT4", "rest": "GPT3"}
    config.data.classes.inference = "expert"
    # The paper's weights; or reward = {"expert": 1.0, "rest": 0.0} with beta = 0.4343, which is the same.
    config.data.classes.weight = {"expert": 1.0, "rest": 0.1}

    # OpenChat's recipe. The learning rate: jaxsft.data.classes.auto_learning_rate(supervised tokens a step, family).
    config.optimizer.learning_rate = 6.7e-5
    config.optimizer.schedule = "cosine"
    config.optimizer.final_ratio = 0.1
    config.optimizer.warmup_ratio = 0.05
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-5
    config.optimizer.weight_decay = 0.1
    config.epochs = 5.0
    config.batch_size = 16

    config.checkpoint.every = 200
    config.checkpoint.keep_best = 1
    config.eval.every = 100
    return config

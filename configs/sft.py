"""Full supervised fine-tuning on answers only: the plain recipe, and the one to fork.

    python scripts/train.py --config=configs/sft.py --workdir=runs/sft \
        --config.model.path=MODEL_FOLDER --config.data.path=conversations.jsonl
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()

    # What you will change: the model (a Hugging Face folder or hub name) and the data (JSON, JSONL, Parquet,
    # tfds:NAME).
    config.model.path = ""
    config.data.path = ""
    config.data.rows = ""  # ":-300" holds out the last 300 records ...
    config.eval.path = ""  # ... and eval.path = data.path with eval.rows = "-300:" scores them
    config.data.template = "auto"  # the tokenizer's own chat template; else chatml, llama2, alpaca, plain
    config.data.max_length = 1024

    # What matters most after the data: too high a rate forgets, too low learns nothing.
    config.optimizer.learning_rate = 1e-5
    config.optimizer.schedule = "cosine"
    config.epochs = 3.0
    config.batch_size = 16  # rows an optimizer step; packed rows hold several examples
    # Of a few dozen records packing makes less than one step's rows: then config.data.packing = False.

    config.checkpoint.every = 200
    config.eval.every = 100
    return config

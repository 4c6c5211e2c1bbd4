"""Pretraining from random weights with Mix-LN (arXiv:2412.13795), as its authors train their smallest model, of 71M.

    python scripts/train.py --config=configs/pretrain/mix_ln.py --workdir=runs/mix_ln \
        --config.model.path=FOLDER --config.data.path=documents.jsonl

FOLDER needs `config.json` and the tokenizer, no weights. `--config.model.new.post_ln_alpha=0.0` is Pre-LN, 1.0 Post-LN.
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()
    config.model.path = ""  # published: Llama, 512 wide, 1368 in the MLP, 8 heads, 12 layers, an untied head
    config.model.init = "random"
    config.model.new.post_ln_alpha = 0.25  # the share of Post-LN layers; 0.0625 at 7B
    config.model.new.init_std = 0.02
    config.model.new.embed_std = 0.4**0.5

    config.data.path = ""  # JSON Lines or Parquet with a field `text`, one document a record
    config.data.template = "none"  # so the model continues plain text, whatever chat template the tokenizer has
    config.data.text_eos = True
    config.data.max_length = 256  # published: documents are cut and padded to it; here they are read to the end, packed
    config.eval.path = ""  # the same with other rows, for the perplexity
    config.eval.every = 1000

    # Adam as it is in torch: no decay, no clipping. At 350M parameters and more the authors' runs have diverged so;
    # a longer warm-up, a lower rate and clipping (max_grad_norm = 1.0) are what to try first.
    config.optimizer.learning_rate = 1e-3  # 5e-4 from 1B on
    config.optimizer.warmup_ratio = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.final_ratio = 0.1
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.max_grad_norm = 0.0
    config.batch_size = 512
    config.steps = 10_000

    config.log.layer_grad_norms = True
    config.checkpoint.every = 1000
    return config

"""Full fine-tuning that is held near its start, by the usual means beside any loss; see docs/methods/baselines.md.

    python scripts/train.py --config=configs/regularized.py --workdir=runs/regularized \
        --config.model.path=MODEL_FOLDER --config.data.path=conversations.jsonl

They go with every objective and adapter (EWC with full fine-tuning alone). Switch on what you compare with; 0 is none.
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()
    config.model.path = ""
    config.data.path = ""

    terms = config.objective.regularizers
    terms.kl_to_base = 0.1  # predictions stay near the start's; keeps its parameters, costs a forward pass
    terms.neftune_alpha = 0.0  # noise on the embedded tokens: 5, 10 or 15
    terms.l2_to_start = 0.0  # weights stay near the start's
    terms.ewc = 0.0  # those that matter for ewc_data stay nearer; keeps two copies of the parameters
    terms.ewc_data.path = ""
    terms.l1 = 0.0  # few weights change at all, with l1_proximal

    config.optimizer.learning_rate = 1e-5
    config.epochs = 3.0
    config.checkpoint.every = 200
    config.eval.every = 100
    return config

"""A model folder with a new token, whose meaning fine-tuning is to give it.

python scripts/add_tokens.py --config=configs/tokens.py --output=runs/with_sep --config.model=MODEL_FOLDER
"""

from jaxsft.config import TokensConfig


def get_config() -> TokensConfig:
    return TokensConfig(
        model="",
        tokens=("<sep>",),
        init="normal0.02",  # "mean", "mean_cov", "mean_of_text" (with descriptions={"<sep>": "..."}), "unit_normal"
        multiple=64,  # of rows
    )

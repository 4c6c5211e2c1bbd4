"""New tokens of a model."""

import dataclasses


@dataclasses.dataclass
class TokensConfig:
    """A model that gets new tokens: `scripts/add_tokens.py`, or a stage of a recipe; see `jaxsft.tokens`.

    Attributes:
      model: a model folder or hub name; in a recipe "" is that of `train`.
      tokens: texts such as "<sep>". They are special tokens, and those alone that the texts of messages may hold.
      init: what their rows of the embedding start from: a normal draw of deviation 0.02 ("normal0.02") or 1
        ("unit_normal"), the mean of the rows that are there ("mean"), a normal draw with their mean and covariance
        ("mean_cov"), or the mean of the rows of a description ("mean_of_text"). The rows of a head of its own start
        likewise; with "unit_normal" from a deviation of 0.02, or the model would write nothing else.
      descriptions: token -> text, for "mean_of_text".
      multiple: the number of rows is rounded up to a multiple of this; 1 adds no padding.
      seed: of the draws.
    """

    model: str = ""
    tokens: tuple[str, ...] = ()
    init: str = "normal0.02"
    descriptions: dict[str, str] = dataclasses.field(default_factory=dict)
    multiple: int = 64
    seed: int = 2024

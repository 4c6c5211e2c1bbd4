"""The plain recipe on the world, from which every method's config in `configs/world/` departs, and what is measured."""

from jaxsft.config import DataConfig, SuiteConfig, TaskConfig, TrainConfig

ROWS = 3000  # of `world:train` in a run


def plain() -> TrainConfig:
    """Full fine-tuning of the base on the first rows of `world:train`.

    Accuracy and knowledge are measured on the way, on 200 questions each.
    """
    config = TrainConfig()
    config.model.path = "world:base"
    config.model.remat = "none"
    config.data = data("world:train", rows=f":{ROWS}")
    config.eval.path = "world:validation"
    config.eval.every = 100
    config.eval.tasks = [
        task("seen", "generation", "world:validation", rows=":200"),
        task("unseen", "generation", "world:unseen", rows=":200"),
        task("cloze", "generation", "world:cloze", rows=":200", template="none"),
        task("chat", "generation", "world:questions", rows=":200"),
    ]
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.optimizer.b2 = 0.98
    config.batch_size = 4
    config.epochs = 4.0
    config.checkpoint.every = 0
    return config


def suite(reference: str = "") -> SuiteConfig:
    """All that is measured of a model of the world.

    Args:
      reference: the model that `moved` measures the distance from; "" is the one that a run started from.
    """
    return SuiteConfig(
        reference=reference,
        tasks=[
            task("validation", "generation", "world:validation"),  # what learning rates are chosen by
            task("seen", "generation", "world:test"),
            task("unseen", "generation", "world:unseen"),
            task("cloze", "generation", "world:cloze", template="none"),
            task("cloze_choice", "multiple_choice", "world:cloze", template="none"),
            task("chat", "generation", "world:questions"),
            task("chat_choice", "multiple_choice", "world:questions"),
            task("skills", "generation", "world:skills", template="none"),
            task("moved", "deviation", "world:test"),
        ],
    )


def task(name: str, kind: str, path: str, template: str = "auto", rows: str = "") -> TaskConfig:
    """A task of the given kind on a split."""
    return TaskConfig(name=name, task=kind, data=data(path, rows, template), batch_size=64)


def data(path: str, rows: str = "", template: str = "auto") -> DataConfig:
    """A split, or rows of it."""
    return DataConfig(path=path, rows=rows, template=template, max_length=64, max_examples_per_row=16)

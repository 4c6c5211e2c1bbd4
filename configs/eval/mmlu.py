"""MMLU (Hendrycks et al. 2021): which letter the model says after a question and its listed choices, by subject.

    python scripts/evaluate.py --config=configs/eval/mmlu.py:FILE --model=DIR --output=OUT.json

Five examples of the question's own subject, as in the paper: --config.prompt.shots.path=DEV_FILE
--config.prompt.shots.count=5. Plain text: --config.data.template=none. By the texts of the choices, unlisted:
configs/eval/arc.py.
"""

from jaxsft.config import DataConfig, EvaluateConfig, PromptConfig, ShotsConfig


def get_config(path: str = "") -> EvaluateConfig:
    return EvaluateConfig(
        task="multiple_choice",
        choices="letters",
        prompt=PromptConfig(
            preamble="The following are multiple choice questions (with answers) about {subject}.\n\n",
            question="{question}\n{choices}\nAnswer:",
            shots=ShotsConfig(count=0, same_source=True),
        ),
        data=DataConfig(
            path=path,
            template="auto",  # "none" for models that know no turns
            max_length=1_000_000,  # the model's context, where that is shorter
        ),
        batch_size=16,
    )

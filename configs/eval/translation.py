"""BLEU and chrF of translations, by sacrebleu (`pip install jaxsft[eval]`).

    python scripts/evaluate.py --config=configs/eval/translation.py:FILE --model=DIR --output=OUT.json

FILE holds records such as {"translation": {"de": "...", "en": "..."}}; copy this file for other languages and names.
"""

from jaxsft.config import AnswerConfig, DataConfig, EvaluateConfig, PromptConfig, ShotsConfig


def get_config(path: str = "") -> EvaluateConfig:
    return EvaluateConfig(
        task="generation",
        prompt=PromptConfig(
            question="Translate this from German to English.\n\nGerman: {question}\nEnglish:",
            shots=ShotsConfig(count=0),
        ),
        answer=AnswerConfig(match="translation", stop=("\n",)),
        data=DataConfig(
            path=path,
            fields={"translation.de": "question", "translation.en": "answer"},
            template="auto",
            max_length=1_000_000,
        ),
        max_new_tokens=256,
        batch_size=64,
    )

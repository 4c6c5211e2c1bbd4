"""Closed-book questions before and after fine-tuning: the world-knowledge probe of LoRAMoE (arXiv:2312.09979).

    python scripts/forgetting.py --config=configs/eval/world_knowledge.py:triviaqa=TriviaQA.csv,nq=NQ-open.dev.jsonl \
        --base=MODEL --model=DIR --output=FOLDER

Files without the questions that the training data answers are made by scripts/filter_overlap.py, and named likewise.
"""

from jaxsft.config import AnswerConfig, DataConfig, PromptConfig, SuiteConfig, TaskConfig


def get_config(files: str = "questions=questions.jsonl") -> SuiteConfig:
    named = (file.partition("=")[::2] for file in files.split(","))
    return SuiteConfig(
        tasks=[
            TaskConfig(
                name=name,
                task="generation",
                prompt=PromptConfig(question="Question: {question}\nAnswer:"),
                answer=AnswerConfig(match="alias", separator="; ", stop=("\n",)),  # any of the aliases
                data=DataConfig(path=path, template="auto", max_length=1_000_000),
                max_new_tokens=32,
                batch_size=64,
            )
            for name, path in named
        ]
    )

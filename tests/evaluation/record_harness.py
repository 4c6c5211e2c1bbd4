"""Records what lm-evaluation-harness's backend for transformers answers, in `recorded/harness.json` beside this file.

Run by hand, from the repository's root, where torch, transformers 5, accelerate and lm_eval are installed:

    HF_HUB_OFFLINE=1 python tests/evaluation/record_harness.py ../shared/data/models/stories260K
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.evaluation import harness_case as case


def answers(model_class, instance, path, chats):
    """Everything that the tests compare, for one model."""
    model = model_class(pretrained=str(path), device="cpu", dtype="float32", batch_size=4)
    ask = lambda kind, args: [instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(args)]
    found = {
        "loglikelihood": model.loglikelihood(ask("loglikelihood", map(tuple, case.PAIRS))),
        "loglikelihood_rolling": model.loglikelihood_rolling(ask("loglikelihood_rolling", [(t,) for t in case.TEXTS])),
        "generate_until": model.generate_until(ask("generate_until", [(p, dict(s)) for p, s in case.PROMPTS])),
        "chats": [model.apply_chat_template([dict(m) for m in history], more) for history, more in chats],
    }
    with tempfile.TemporaryDirectory() as folder:
        found["plain"] = case.run_tasks(model, Path(folder))
    if chats:
        with tempfile.TemporaryDirectory() as folder:
            found["chat"] = case.run_tasks(model, Path(folder), apply_chat_template=True, fewshot_as_multiturn=True)
    return found


def main():
    import lm_eval
    import torch
    import transformers
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    with tempfile.TemporaryDirectory() as folder:
        case.make_folder(Path(folder))
        recorded = {"tiny": answers(HFLM, Instance, folder, case.CHATS)}
    recorded["stories260K"] = answers(HFLM, Instance, sys.argv[1], [])
    recorded["versions"] = {m.__name__: m.__version__ for m in (lm_eval, torch, transformers)}
    target = Path(__file__).with_name("recorded") / "harness.json"
    target.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main()

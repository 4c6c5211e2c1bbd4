"""Programs that a model writes, judged by running them: problems of HumanEval's and of MBPP's form, and pass@k.

    HumanEval   `prompt` (the head of a function), `entry_point` (its name), `test` (defines `check`), `task_id`
    MBPP        `text` or `prompt`, `test_list` (assertions), `test_setup_code` or `test_imports`, `task_id`

(Chen et al. 2021, arXiv:2107.03374; Austin et al. 2021, arXiv:2108.07732). With `config.data.template=none` the head,
or for MBPP the text and its tests as a docstring, is continued until something else begins; with a chat template the
model is asked, and the first block of code in its answer is the program, or all of the answer if there is none.

With n programs of a problem, c of which pass,

    pass@k = 1 - C(n - c, k) / C(n, k)        (without bias, Chen et al., equation 1)

and its mean over problems is the figure. Programs run if `config.code.execute` says so, in
`jaxsft.evaluation.programs.sandbox`.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxsft.config import DataConfig, TaskConfig
from jaxsft.data.conversation import rename
from jaxsft.data.templates import NO_TEMPLATE
from jaxsft.decoding.prompts import before_any
from jaxsft.errors import UserError
from jaxsft.evaluation.answers.writing import Writer
from jaxsft.evaluation.forms import records
from jaxsft.evaluation.programs.sandbox import Limits, Outcome, Sandbox
from jaxsft.evaluation.task import Result, Subject, Task, digest, question_ids

KS = (1, 2, 5, 10, 20, 50, 100)
HEAD_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")
TEXT_STOPS = ("\nclass", "\nassert", '\n"""', "\nif", "\nprint", "\n```")
BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be programmed.

    Attributes:
      head: a program's beginning, which the model continues; "" where it writes all of it.
      text: the prompt of a plain continuation.
      question: the user's turn.
      entry_point: the name of the function, "" where only the tests know it.
      before: what every program begins with.
      tests: what is run behind it.
      source: the part of the data.
    """

    head: str
    text: str
    question: str
    entry_point: str
    before: str
    tests: str
    source: str

    def program(self, answer: str, plain: bool) -> str:
        """The whole program that an answer makes."""
        if plain:
            return self.before + self.head + before_any(answer, HEAD_STOPS if self.head else TEXT_STOPS)
        block = BLOCK.search(answer)
        code = block.group(1) if block else answer
        if not self.head:
            return self.before + code
        definition = rf"\bdef {re.escape(self.entry_point)}\b"
        if not re.search(definition, code):  # the body alone
            return self.before + self.head + code
        return self.before + re.split(definition, self.head, maxsplit=1)[0] + code


def prepare(config: TaskConfig, subject: Subject) -> Task:
    """How many of the problems that `config` names the model solves.

    Returns:
      A task whose figures are `pass_at_1` and its `standard_error`, `pass_at_K` for the K of `KS` up to
      `config.code.samples`, `problems`, `programs`, `outcomes` (why programs passed or did not -> how many; see
      `jaxsft.evaluation.programs.sandbox.Outcome`), `ended` (the share of answers that met an end of turn) and `cut`.
      In its records `correct` is the share of programs that pass, and `answer` the first program.

    Raises:
      UserError: unless the config says that programs may be run; without a sandbox; for a record that is no problem.
    """
    code = config.code
    if not code.execute:
        raise UserError(
            "the task 'code' runs programs that the model wrote, which nobody has read; if that is meant, set "
            "config.code.execute=True (they run in a sandbox, see jaxsft/evaluation/programs/sandbox.py)."
        )
    if code.samples > 1 and not code.temperature:
        raise UserError(
            f"config.code.samples is {code.samples} at temperature 0, where all are the same; set "
            "config.code.temperature, such as to 0.8."
        )
    if jax.process_count() > 1:
        raise UserError("the task 'code' runs programs on one host; measure with one process.")
    sandbox, problems = Sandbox(Limits(seconds=code.seconds)), read_problems(config.data)
    plain = config.data.template == NO_TEMPLATE
    asked = [p.text if plain else p.question for p in problems for _ in range(code.samples)]
    # those that end any program; `Problem.program` knows the others
    stops = tuple(sorted({*HEAD_STOPS} & {*TEXT_STOPS})) if plain else ()
    drawn = {"temperature": code.temperature, "top_p": code.top_p, "seed": code.seed, "stop": stops}
    writer, name = Writer(asked, config, subject, **drawn), config.name or config.task
    contents = [[p.text, p.tests] for p in problems]

    def measure(params: Any, adapters: Any) -> Result:
        answers = writer.write(params, adapters, strip=False)
        whose = [p for p in problems for _ in range(code.samples)]
        programs = [p.program(answer.text, plain) for p, answer in zip(whose, answers)]
        outcomes = run(sandbox, [(program, p.tests) for program, p in zip(programs, whose)], name)
        passed = np.array([outcome.passed for outcome in outcomes]).reshape(len(problems), -1)
        figures = summarize(passed, outcomes) | {
            "ended": sum(answer.ended for answer in answers) / len(answers),
            "cut": writer.cut,
        }
        rows = zip(problems, question_ids(contents), programs[:: code.samples], passed, outcomes[:: code.samples])
        return Result(figures, [_record(name, i, *row) for i, row in enumerate(rows)])

    each = f"{code.samples} programs each" if code.samples > 1 else "one program each"
    report = f"{len(problems)} problems, {each}, {writer.mode}, answers of up to {config.max_new_tokens} tokens"
    return Task(name, report, digest(contents), measure)


def run(sandbox: Sandbox, programs: Sequence[tuple[str, str]], name: str = "running") -> list[Outcome]:
    """What becomes of each (program, tests); the same ones are run once."""
    known: dict[tuple[str, str], Outcome] = {}
    for program in tqdm(dict.fromkeys(programs), desc=name, unit="program", leave=False, disable=None):
        known[program] = sandbox.run(*program)
    return [known[program] for program in programs]


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n programs, drawn without putting them back, have one of the c that pass."""
    if not 0 <= c <= n or not 0 < k <= n:
        raise ValueError(f"of {n} programs {c} pass, and {k} are drawn")
    return 1.0 - math.prod((n - c - i) / (n - i) for i in range(k))


def summarize(passed: np.ndarray, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Figures of bool [problems, programs of each]."""
    count, n = passed.shape
    at = {k: np.array([pass_at_k(n, int(c), k) for c in passed.sum(1)]) for k in KS if k <= n}
    return {
        **{f"pass_at_{k}": float(values.mean()) for k, values in at.items()},
        "standard_error": float(at[1].std(ddof=1) / math.sqrt(count)) if count > 1 else 0.0,
        "problems": count,
        "programs": passed.size,
        "outcomes": dict(sorted(Counter(outcome.why for outcome in outcomes).items())),
    }


def read_problems(config: DataConfig) -> list[Problem]:
    """The problems of all sources.

    Raises:
      UserError: for a record that is none, naming its place.
    """
    return [_parse(*each) for each in records(config.all_sources())]


def _parse(record: Any, where: str, fields: Mapping[str, str], source: str) -> Problem:
    values = rename(record, fields) if isinstance(record, Mapping) else {}
    source = str(values.get("source") or source)
    is_text = lambda *names: all(isinstance(values.get(name), str) and values[name].strip() for name in names)
    if is_text("prompt", "test", "entry_point"):
        head, entry = values["prompt"], values["entry_point"]
        question = f"Complete this Python program, and answer with the whole function:\n\n```python\n{head}```"
        return Problem(head, head, question, entry, "", f"{values['test']}\n\ncheck({entry})\n", source)
    tests, before = values.get("test_list"), values.get("test_setup_code") or ""
    imports = values.get("test_imports") or []
    are_texts = lambda of: isinstance(of, list) and all(isinstance(one, str) for one in of)
    fits = are_texts(tests) and any(tests) and isinstance(before, str) and are_texts(imports)
    if (is_text("text") or is_text("prompt")) and fits:
        told, listed = values["text"] if is_text("text") else values["prompt"], "\n".join(tests)
        setup = "\n".join(filter(None, [before, *imports]))
        question = f"{told}\n\nAnswer with a Python program that passes these tests:\n\n```python\n{listed}\n```"
        before = f"{setup}\n" if setup else ""
        return Problem("", f'"""\n{told}\n{listed}\n"""\n', question, "", before, listed, source)
    raise UserError(
        f"{where}: the record is no problem; it has `prompt`, `test` and `entry_point` (HumanEval), or `text` and "
        "`test_list`, a list of texts, like `test_imports` (MBPP)."
    )


def _record(
    name: str, index: int, problem: Problem, identity: str, program: str, passed: np.ndarray, first: Outcome
) -> dict[str, Any]:
    return {
        "task": name,
        "index": index,
        "id": identity,
        "prompt": problem.text,
        "reference": problem.tests,
        "answer": program,
        "correct": bool(passed[0]) if len(passed) == 1 else float(passed.mean()),
        "outcome": first.why,
        "message": first.message,
        "source": problem.source,
        "task_type": "",
    }

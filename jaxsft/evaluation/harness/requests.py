"""The requests of lm-evaluation-harness (github.com/EleutherAI/lm-evaluation-harness), answered by one model.

The harness states what it asks as text: pairs of a context and a continuation, whole texts, and prompts with settings.
How they become tokens follows its own backend for transformers (`lm_eval/models/huggingface.py`, 0.4.13), so that the
figures are those that it would give: special tokens are what the tokenizer adds by itself, unless a text begins with
BOS already; blanks at the end of a context belong to the continuation; the two are encoded together, and cut where the
context's own tokens end; an empty context is BOS, or else EOS.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from jaxsft.data.templates import NO_TEMPLATE, load_template
from jaxsft.decoding.engine import Sampler
from jaxsft.decoding.prompts import before_any, make_prompter
from jaxsft.decoding.sampling import Sampling
from jaxsft.errors import UserError
from jaxsft.evaluation.choices.continuations import LogLikelihood, Pair, score
from jaxsft.training.restore import OpenModel
from jaxsft.validation import did_you_mean

MAX_GEN_TOKS = 256  # of a prompt that names none
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first one counts
DRAWS = ("top_k", "top_p", "min_p", "repetition_penalty")
SETTINGS = ("until", "do_sample", "temperature", *LENGTHS, *DRAWS)
FINAL = chr(0x100002)  # private use: marks the end of an answer that is to be continued


class Responder:
    """Answers requests.

    Attributes:
      tokenizer: the model's, as transformers has it.
      template: the chat template, None where the model has none.
      max_length: inputs of a forward pass at most: a context and its continuation may have one token more, which is
        only predicted.
    """

    def __init__(
        self,
        model: OpenModel,
        mesh: Mesh,
        *,
        batch_size: int = 16,
        max_length: int = 0,
        template: str = "auto",
        condition: str = "auto",
        seed: int = 0,
    ):
        """Prepares.

        Args:
          model: on `mesh`.
          mesh: where it lives; with several processes all ask the same, and all get all answers.
          batch_size: rows scored at once, and prompts continued at once.
          max_length: at most, if the model's context is not shorter; 0 is the context.
          template: as `DataConfig.template`; "auto" is the one of the model's training, or else its tokenizer's.
          condition: as `DataConfig.condition`; "auto" is the one that belongs to the model's training.
          seed: of what is drawn.

        Raises:
          UserError: for a template that cannot be had, or sizes below 1.
        """
        context = model.decoder.arch.max_positions
        if batch_size < 1 or max_length < 0:
            raise UserError(f"batch_size is {batch_size} and max_length {max_length}; they must be positive.")
        self.tokenizer, self.max_length = model.tokenizer.hf, min(max_length or context, context)
        self._model, self._mesh, self._batch_size, self._seed = model, mesh, batch_size, seed
        named = model.template if template == "auto" else template
        own = model.condition if template == "auto" and condition == "auto" else condition
        chat = named not in ("auto", NO_TEMPLATE) or (named == "auto" and model.tokenizer.chat_template is not None)
        self.template = load_template(named, model.tokenizer, own) if chat else None
        # A template that a run was trained with ends answers by its own mark; a plain folder says itself what does.
        self._prompter = make_prompter(model.tokenizer, named, model.source, named == "auto")
        self._prefix = model.tokenizer.eos_id if model.tokenizer.bos_id is None else model.tokenizer.bos_id

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, LogLikelihood]]:
        """log p(continuation | context) of each (context, continuation), as they become known.

        Yields:
          (index in `pairs`, answer), each once.

        Raises:
          UserError: for a continuation without tokens, or longer than the model's context.
        """
        return self._score(self.encode_pairs(pairs))

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """log p(text) of each, in nats, in windows of `max_length`.

        Each token is predicted once. The first window begins with BOS (or EOS), before the special tokens that the
        tokenizer adds by itself; every other predicts no more than is left, behind as much context as it holds.
        """
        windows, of = [], []
        for index, ids in enumerate(self.encode(texts)):
            found = rolling_windows(ids, self._first(), self.max_length)
            windows += found
            of += [index] * len(found)
        totals = [0.0] * len(texts)
        for window, answer in sorted(self._score(windows)):
            totals[of[window]] += answer.log_prob
        return totals

    def generate_until(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """What the model writes behind each prompt, up to the first of its stop strings.

        A prompt that leaves too little room for `max_gen_toks` loses its beginning. EOS ends an answer, so do the ids
        that the model's `generation_config.json` names, and the end of turn of a template that it was trained with.

        Args:
          asked: (prompt, settings): `until`, `max_gen_toks`, `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`,
            `repetition_penalty`. The place in the list decides, with the seed, what is drawn.

        Raises:
          UserError: for a setting that is none of these, or more tokens than the model's context.
        """
        groups: dict[Sampling, list[int]] = {}
        for index, (_, settings) in enumerate(asked):
            groups.setdefault(self.sampling(settings), []).append(index)
        ids = self.encode([prompt for prompt, _ in asked])
        answers = [""] * len(asked)
        for sampling, places in groups.items():
            room = self.max_length - sampling.max_new_tokens
            if room < 1:
                raise UserError(
                    f"max_gen_toks is {sampling.max_new_tokens}, which leaves no room for a prompt in a context of "
                    f"{self.max_length}; lower it by --gen_kwargs max_gen_toks=N."
                )
            prompts = [(ids[i] or [self._first()])[-room:] for i in places]
            sampler = Sampler(
                self._model.decoder,
                sampling,
                self._mesh,
                batch_size=self._batch_size,
                text=lambda _, new: self._text(new),
            )
            sampled = sampler.generate(self._model.params, prompts, places, adapters=self._model.adapters)
            for i, one in zip(places, sampled):
                new = one.tokens[:-1] if one.stopped_by == "token" else one.tokens
                answers[i] = before_any(self._text(new), sampling.stop_strings)
        return answers

    def sampling(self, settings: Mapping[str, Any]) -> Sampling:
        """A prompt's settings as those of a `Sampler`; see `generate_until`."""
        if unknown := [name for name in settings if name not in SETTINGS]:
            hint = did_you_mean(unknown[0], SETTINGS)
            raise UserError(f"the generation setting {unknown[0]!r} is not known here{hint or '.'} Leave it out.")
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        temperature, draws = float(settings.get("temperature") or 0), settings.get("do_sample")
        if draws and temperature == 0:
            raise UserError("do_sample is true, but temperature is 0 or missing; give both, or neither.")
        given = {name: settings[name] for name in DRAWS if settings.get(name) is not None}
        if draws is False or temperature == 0:  # only the penalty moves the likeliest token
            temperature, given = 0.0, {name: given[name] for name in given if name == "repetition_penalty"}
        lengths = [settings[name] for name in LENGTHS if settings.get(name) is not None]
        return self._prompter.sampling(
            filter(None, [*until, self._model.tokenizer.eos]),
            temperature=temperature,
            **given,
            max_new_tokens=int(next(iter(lengths), MAX_GEN_TOKS)),
            seed=self._seed,
        )

    def render(self, history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation in the chat template, up to where the model writes.

        Args:
          history: messages with `role` and `content`.
          add_generation_prompt: whether the model's turn begins behind the last message; if not, it goes on with it.

        Raises:
          UserError: without a chat template, for one that text cannot carry, or what the template refuses.
        """
        if self.template is None:
            raise UserError(
                "the tokenizer has no chat template; name one by --model_args template=..., or leave "
                "--apply_chat_template out."
            )
        if self.template.by_piece:
            raise UserError(
                f"{self.template.name} is tokenised piece by piece, but the harness's prompts are whole texts; measure "
                "the model by scripts/evaluate.py."
            )
        messages = [dict(message) for message in history]
        if add_generation_prompt:
            return self.template.render(messages, add_generation_prompt=True).text
        messages[-1]["content"] += FINAL + " "
        before, found, after = self.template.render(messages).text.rpartition(FINAL)
        if not found:
            raise UserError(f"{self.template.name} does not write the last message, which was to be continued.")
        return before if after.startswith(" ") else before.rstrip()  # as transformers: the template trims, or not

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids, with the special tokens that the tokenizer adds by itself to a text that does not begin with BOS."""
        begins = None if self._prefix is None else self.tokenizer.decode([self._prefix])
        whole = [i for i, text in enumerate(texts) if begins and text.startswith(begins)]
        ids = self._ids(texts)
        for i, own in zip(whole, self._ids([texts[i] for i in whole], add_special_tokens=False)):
            ids[i] = own
        return ids

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        """Contexts and continuations in tokens.

        Raises:
          UserError: for a continuation that has none of its own, or more than the model's context.
        """
        split = [(context.rstrip(), context[len(context.rstrip()) :] + after) for context, after in pairs]
        with_context = [i for i, (context, _) in enumerate(pairs) if context]
        both = iter(self.encode(["".join(split[i]) for i in with_context]))
        contexts = iter(self.encode([split[i][0] for i in with_context]))
        alone = iter(self._ids([after for context, after in pairs if not context], add_special_tokens=False))
        found = []
        for context, after in pairs:
            if context:
                whole, before = next(both), next(contexts)
                pair = Pair(before or [self._first()], whole[len(before) :])
            else:
                ids, first = next(alone), self._first()
                pair = Pair(ids[:1], ids[1:]) if ids[:1] == [first] else Pair([first], ids)
            if not 0 < len(pair.continuation) <= self.max_length:
                raise UserError(
                    f"the continuation {after[:60]!r} of {context[-60:]!r} has {len(pair.continuation)} tokens of its "
                    f"own; 1 to {self.max_length} can be scored."
                )
            found.append(pair)
        return found

    def _score(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, LogLikelihood]]:
        model = self._model
        return score(
            model.decoder, model.params, model.adapters, pairs, self._mesh,
            batch_size=self._batch_size, longest=self.max_length,
        )  # fmt: skip

    def _ids(self, texts: Sequence[str], **options: bool) -> list[list[int]]:
        return self.tokenizer(list(texts), **options)["input_ids"] if texts else []

    def _text(self, new: Sequence[int]) -> str:
        return self.tokenizer.decode(list(new), skip_special_tokens=True)

    def _first(self) -> int:
        """BOS, or else EOS: what stands before a text that has nothing before it."""
        if self._prefix is None:
            raise UserError("the tokenizer has neither BOS nor EOS to put before a text without context; define one.")
        return self._prefix


def rolling_windows(ids: Sequence[int], first: int, longest: int) -> list[Pair]:
    """All tokens, each predicted once, in windows of at most `longest` inputs; `first` stands before the first."""
    if not ids:
        return []
    windows = [Pair([first], ids[:longest])]
    for begin in range(longest, len(ids), longest):
        end = min(begin + longest, len(ids))
        windows.append(Pair(ids[end - longest - 1 : begin], ids[begin:end]))
    return windows

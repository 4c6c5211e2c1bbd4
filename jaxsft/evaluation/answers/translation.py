"""BLEU and chrF of translations, by sacrebleu (Post 2018, arXiv:1804.08771), with its defaults.

BLEU (Papineni et al. 2002) and chrF (Popović 2015) are from 0 to 100 and of all answers together: not means of figures
of single answers. `bleu_signature` and `chrf_signature` are sacrebleu's own names for what was computed.
"""

from typing import Any

from jaxsft.errors import UserError


def check() -> None:
    """Refuses to begin without sacrebleu.

    Raises:
      UserError: saying how to install it.
    """
    _sacrebleu()


def chrf(text: str, references: list[str]) -> float:
    """chrF of one translation, 0 to 100."""
    return float(_sacrebleu().sentence_chrf(text, references).score)


def over_all(texts: list[str], references: list[list[str]]) -> dict[str, Any]:
    """`bleu`, `chrf` and their signatures, of all translations together.

    Args:
      texts: the translations.
      references: of each, one or more.
    """
    metrics = _sacrebleu().metrics
    most = max(map(len, references))
    columns = [[own[k] if k < len(own) else None for own in references] for k in range(most)]
    figures: dict[str, Any] = {}
    for name, metric in (("bleu", metrics.BLEU()), ("chrf", metrics.CHRF())):
        figures[name] = float(metric.corpus_score(texts, columns).score)
        figures[f"{name}_signature"] = str(metric.get_signature())
    return figures


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise UserError(
            "config.answer.match is 'translation', which needs sacrebleu; `pip install jaxsft[eval]`."
        ) from error
    return sacrebleu

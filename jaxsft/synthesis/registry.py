"""Methods of synthesis by name."""

from collections.abc import Callable

from jaxsft.config import SynthesisConfig
from jaxsft.synthesis.evol_instruct import EvolInstruct
from jaxsft.synthesis.judge import Judge
from jaxsft.synthesis.lamini import LaMini
from jaxsft.synthesis.method import Method
from jaxsft.synthesis.orca import Orca
from jaxsft.synthesis.paraphrase import Paraphrase
from jaxsft.synthesis.sdft import SDFT
from jaxsft.synthesis.self_play import SelfPlay
from jaxsft.synthesis.self_sample import SelfSample

METHODS: dict[str, Callable[[SynthesisConfig], Method]] = {
    "sdft": lambda config: SDFT(config.sdft),
    "self_sample": lambda config: SelfSample(config.self_sample),
    "paraphrase": lambda config: Paraphrase(config.paraphrase),
    "self_play": lambda config: SelfPlay(config.self_play),
    "lamini": lambda config: LaMini(config.lamini, config.seed),
    "evol_instruct": lambda config: EvolInstruct(config.evol_instruct, config.seed),
    "orca": lambda config: Orca(config.orca, config.seed),
    "judge": lambda config: Judge(config.judge),
}

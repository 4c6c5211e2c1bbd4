"""A whole model folder, weights and tokenizer, made from nothing."""

import jax
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxsft.models.checkpoint import save_hf
from jaxsft.models.decoder import Decoder
from tests.tiny import llama


def make_folder(path, **changes):
    """A random Llama over bytes, BOS 0 and EOS 1, at `path`; returns its decoder and parameters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    decoder = Decoder(llama(vocab_size=len(vocab), bos_token_id=0, eos_token_id=1, **changes))
    params = decoder.init(jax.random.key(4))
    save_hf(path, decoder, params)
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(path)
    return decoder, params

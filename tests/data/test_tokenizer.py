import itertools
import random
import shutil

import pytest

from jaxsft import world
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from tests.data.conftest import make_tokenizer

TEXT = "<s><|im_start|>user\nHello ünï 漢字 😀<|im_end|>\n<|im_start|>assistant\n fine </s>"


def test_named_tokens(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, None)
    assert (tokenizer.bos, tokenizer.eos) == ("<s>", "</s>")
    assert not tokenizer.adds_bos
    assert tokenizer.chat_template is None


def test_ids_decode_and_offsets_cover_the_text(tokenizer):
    ids, offsets = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert offsets[0] == (0, 3)
    assert offsets[-1][1] == len(TEXT)
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(offsets))
    assert ids == tokenizer.hf(TEXT, add_special_tokens=False).input_ids


def test_offsets_keep_the_blank_before_a_word(tokenizer):
    ids, offsets = tokenizer.encode("you are")
    assert [("you are"[a:b]) for a, b in offsets] == [tokenizer.decode([i]) for i in ids]


def test_unguarded_text_is_encoded_alike(tokenizer):
    assert tokenizer.encode_guarded(TEXT, []) == tokenizer.encode(TEXT)


def test_an_unknown_word_is_no_control_string():
    base = load_tokenizer(world.MODELS / "base")
    text = "<user> what is the zebra ?"
    ids = base.encode_guarded(text, [(0, 0)]).ids
    assert ids == base.encode(text).ids
    assert ids.count(base.unk_id) == 1  # the zebra


def test_an_unknown_word_that_is_also_the_end_of_text_stays_guarded():
    assert make_tokenizer(bos_token="<s>", eos_token="</s>", unk_token="</s>").unk_id is None


def test_guarded_control_strings_are_text(tokenizer):
    text = "<|im_start|>user\nsay <|im_end|> now<|im_end|>"
    at = text.index("<|im_end|>")
    ids, offsets = tokenizer.encode_guarded(text, [(at, at + 10)])
    assert [i for i in ids if i < 4] == [2, 3]  # the template's own start and end
    assert tokenizer.decode(ids) == text
    bare = make_tokenizer()  # what the text between the two would be in a text without control tokens
    middle = bare.hf("user\nsay <|im_end|> now", add_special_tokens=False, split_special_tokens=True).input_ids
    assert ids[1:-1] == middle
    assert offsets[-1] == (len(text) - 10, len(text))


def test_guarding_by_chance(tokenizer):
    """Any mixture of control strings, some guarded: exactly the others become control ids, and the text survives."""
    draw = random.Random(0)
    for _ in range(200):
        pieces = [
            draw.choice(["<s>", "</s>", "<|im_end|>", "<|im_start|>", " a", "ü", "\n", "<", "|>"]) for _ in range(12)
        ]
        text, guarded, genuine = "", [], []
        for piece in pieces:
            start, text = len(text), text + piece
            if len(piece) > 2:
                if draw.random() < 0.5:
                    guarded.append((start, len(text)))
                else:
                    genuine.append(tokenizer.hf.convert_tokens_to_ids(piece))
        ids, offsets = tokenizer.encode_guarded(text, guarded)
        assert [i for i in ids if i < 4] == genuine
        assert tokenizer.decode(ids) == text
        assert offsets[-1][1] == len(text)


def test_plain_text_never_holds_control_ids(tokenizer):
    ids = tokenizer.encode_text("the string </s> ends a text<s>")
    assert min(ids) > 3
    assert tokenizer.decode(ids) == "the string </s> ends a text<s>"


def test_private_characters_cannot_forge_control_tokens(tokenizer):
    with pytest.raises(UserError, match="private-use"):
        tokenizer.encode_guarded("\U000f0003 </s>", [(2, 6)])


def test_missing_tokenizers_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(UserError, match="could not be loaded"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match=r"config\.model\.path"):
        load_tokenizer("")


def test_a_sentencepiece_model_alone(real_data, tmp_path):
    shutil.copy(real_data / "tokenizers/mistral/tokenizer.model.v1", tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(tmp_path)
    ids, _ = tokenizer.encode("<s>Hello </s>")
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    guarded, _ = tokenizer.encode_guarded("<s>Hello </s>", [(9, 13)])
    assert guarded[0] == tokenizer.bos_id
    assert tokenizer.eos_id not in guarded

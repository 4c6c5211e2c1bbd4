"""Responses and instructions: each instruction is asked of every response, when recorded and in tests."""

import hashlib

RESPONSES = [
    "",
    "   \n ",
    "Yes.",
    "My answer is maybe.",
    '"My answer is no. That is all."',
    "THE WHOLE ANSWER IS WRITTEN IN CAPITAL LETTERS AND IT CAN'T BE OVERLOOKED.",
    "the whole answer is written in small letters and nobody can overlook it.",
    "Der Hund lief über die Straße und die Katze schlief den ganzen Tag auf dem Sofa.",
    "Le chat dort sur le canapé pendant que le chien court dans la rue.",
    "1234 5678 -- 90",
    "# Plan\n\n* first point\n* second point\n- third point\n\nThat is all.",
    "* one\n * two\n** not one **\n*\nnext\n- \n-- dashes",
    "*one* and **two** and *** and * * and ****\n*three\nfour*",
    "**Bold.** Then *italic*. Any other questions?",
    "Section 1\nDo this.\nSection 2\nDo that.\nsection 3 SECTION 4 Section5",
    "First paragraph.\n***\nSecond paragraph.\n***\nThird one, with a comma.",
    "***\nOnly one.\n***",
    "One.\n***\n\n***\nThree.",
    "First\n\nSecond paragraph begins here.\n\nThird.",
    "\n\nHere is the second.\n\n'Weekend' is the third, they say.",
    "Once upon a time.\n\nweekend, at last!\n\nThe end",
    "One answer.\n******\nAnother answer.",
    "The same.\n******\nThe same.\n******\n",
    "****** A ****** B ******",
    "Dear [name], meet me at [address] on [date\nof birth] or [] [time].",
    "All went well.\nP.S. I forgot the key.\np. p. s the keys, too",
    "It ends. p. s. and goes on",
    "<<Poem of joy>>\nRoses are red.",
    "<< >> <<>> <<<a>>>",
    "<<a title\nover two lines>>",
    '```json\n{"a": [1, 2, {"b": null}]}\n```',
    '```JSON {"a": 1} ```',
    '{"a": 1',
    "7",
    '"All of it is quoted."',
    '"',
    'He said "no" and left"',
    "Write about the sea. The sea is wide and deep.",
    "  WRITE ABOUT THE SEA.\nNo.",
    "Sure, here it is:\nthe sea is wide, the seaside wider.\nIs there anything else I can help with?",
    "Sure!\nIS THERE ANYTHING ELSE I CAN HELP WITH?\"\n",
    "Mr. Smith went to Washington at 5 p.m. on Tues. He met Dr. Who, e.g. the doctor. Fine...",
    "Wait... what? No! \"Really?\" she asked. (Yes.) It cost $3.50 in the U.S. in 1999. Then it rose.",
    "1. First item\n2. Second item.\n3. Third item! Is it so?",
    "NASA and the EU met in the USA; IT'S a Do-It-Yourself KIT, A B C. CANNOT",
    "Sea sea SEA seas, oversea; the Zebra quizzed a jazzy fizz. # # !",
    "Day 1: walk\nDay 2: run\nDay3: rest\nDAY 4",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z don't co-op snake_case 3.14",
    "Introduction\nmy answer is yes.\nMy answer is yes.\nclosing remark, as said",
    "*Title*\nall in small letters here and nothing else at all\nThe End",
]  # fmt: skip

PLURAL = [{"num_sentences": n, "relation": r} for n in (1, 2, 3, 4, 8) for r in ("at least", "less than")]
ASKED = {
    "keywords:existence": [{"keywords": ["sea"]}, {"keywords": ["Sea", "wide"]}],
    "keywords:frequency": [
        {"keyword": "sea", "frequency": 2, "relation": "at least"},
        {"keyword": " the ", "frequency": 3, "relation": "less than"},
    ],
    "keywords:forbidden_words": [{"forbidden_words": ["sea", "key"]}, {"forbidden_words": ["one", "The same"]}],
    "keywords:letter_frequency": [
        {"letter": "z", "let_frequency": 2, "let_relation": "at least"},
        {"letter": "E", "let_frequency": 5, "let_relation": "less than"},
    ],
    "language:response_language": [{"language": "de"}, {"language": "en"}, {"language": "fr"}],
    "length_constraints:number_sentences": PLURAL,
    "length_constraints:number_paragraphs": [{"num_paragraphs": n} for n in (1, 2, 3)],
    "length_constraints:number_words": [
        {"num_words": 8, "relation": "at least"},
        {"num_words": 12, "relation": "less than"},
    ],
    "length_constraints:nth_paragraph_first_word": [
        {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "weekend"},
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "here"},
        {"num_paragraphs": 3, "nth_paragraph": 1, "first_word": "First"},
    ],
    "detectable_content:number_placeholders": [{"num_placeholders": n} for n in (1, 3, 4)],
    "detectable_content:postscript": [{"postscript_marker": m} for m in ("P.S.", "P.P.S", "Keys")],
    "detectable_format:number_bullet_lists": [{"num_bullets": n} for n in (1, 2, 3, 4, 5)],
    "detectable_format:constrained_response": [{}],
    "detectable_format:number_highlighted_sections": [{"num_highlights": n} for n in (1, 2, 3, 4)],
    "detectable_format:multiple_sections": [
        {"section_spliter": "Section", "num_sections": 2},
        {"section_spliter": "Section ", "num_sections": 3},
        {"section_spliter": "Day", "num_sections": 3},
    ],
    "detectable_format:json_format": [{}],
    "detectable_format:title": [{}],
    "combination:two_responses": [{}],
    "combination:repeat_prompt": [{"prompt_to_repeat": "Write about the sea."}],
    "startend:end_checker": [
        {"end_phrase": "Is there anything else I can help with?"},
        {"end_phrase": "Any other questions? "},
    ],
    "startend:quotation": [{}],
    "change_case:capital_word_frequency": [
        {"capital_frequency": n, "capital_relation": r}
        for n, r in [(1, "at least"), (3, "less than"), (9, "at least"), (14, "at least"), (15, "at least")]
    ],
    "change_case:english_capital": [{}],
    "change_case:english_lowercase": [{}],
    "punctuation:no_comma": [{}],
}


def short(text):
    """A name for a text in the recorded table of languages."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]

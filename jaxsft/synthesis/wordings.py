"""What a teacher or a judge is told, for the methods of OpenBezoar (arXiv:2404.12195): our own words, all of them here.

Texts in braces are filled in. Headings that a teacher must not repeat are in `MARKERS`.
"""

GIVEN, NEW = "### Given instruction", "### New instruction"
MARKERS = ("given instruction", "new instruction")

NEW_INSTRUCTIONS = """\
Here are instructions that people gave to an assistant:

{examples}

Write {wanted} new instructions in the same manner, each about something else. Number them, one a line, and write
nothing besides."""

_EVOLVE = """\
Below is an instruction. Write a new one by this change: {change}
The new instruction must make sense, be answerable in text, and be longer by twenty words at most. Write the new
instruction alone.

{given}:
{{instruction}}

{new}:"""

# Of Evol-Instruct (arXiv:2304.12244): five ways to make an instruction harder, and one to another of its kind.
OPERATORS = {
    name: _EVOLVE.format(change=change, given=GIVEN, new=NEW)
    for name, change in {
        "constrain": "add one more requirement that the answer has to meet.",
        "deepen": "ask for more depth on the same matter.",
        "concretise": "put a special case in the place of what is general.",
        "reason": "let the answer need several steps of reasoning where one or two were enough.",
        "complicate": "add data that the answer must use, such as a table, code, or figures.",
        "mutate": "leave the instruction as it is for another one, rarer, of the same field and as hard.",
    }.items()
}

SAME = """\
Do these two instructions ask for the same thing, under the same conditions and in the same depth? Answer with the one
word "equal" or "different".

First:
{first}

Second:
{second}"""

# In the manner of Orca's (arXiv:2306.02707) system messages; the empty one asks the question alone.
SYSTEMS = (
    "",
    "You are a helpful assistant. Give an answer, and then say in detail why it is right.",
    "Think step by step, and justify each step before you answer.",
    "Explain your answer as if the one who asks were five years old.",
    "You are a teacher. First name the rule or the facts that the task needs, then use them to solve it.",
    "Say first what is asked, then what is known, then how the one leads to the other. End with the answer.",
    "Answer in full sentences, so that nobody has to look elsewhere to understand you.",
    "Where there are choices, say of each why it is right or wrong before you choose.",
)

JUDGE = """\
You judge whether an answer does what was asked of an assistant: whether it is right, complete, and follows every
instruction.

### Request
{request}

### Answer
{answer}

Reply in three lines:
Status: accepted or rejected
Rating: a whole number from 1 (useless) to {scale} (flawless)
Reason: one sentence"""

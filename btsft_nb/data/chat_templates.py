"""Chat templates: for base models that have none, and what probes of one find out."""

import re
from pathlib import Path

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .errors import RowError
from .think import THINK_TAGS

NAMES = ("chatml", "qa", "alpaca")


class Template:
    """A tokenizer's chat template. What it does is found out by rendering probes; no model is known by name.

    Attributes:
        end_of_turn: the control tokens that end an answer; the tokenizer's end of text where the template has none.
        answer_lead: what it writes between the generation prompt and an answer; only white space can be trained.
        thought_lead: the same for a turn that begins with its thought.
        takes_thoughts_apart: whether it writes an empty thought before earlier turns, unless theirs comes as
            `reasoning_content`.
        probe: what it made of one conversation, which can hold a date.

    Raises ValueError where it does not show the text of turns, writes more than white space between the generation
    prompt and an answer, or nothing ends a turn.
    """

    answer_lead = ""
    thought_lead = ""
    takes_thoughts_apart = False
    probe = ""

    def __init__(self, tokenizer, control, tags):
        self._tokenizer = tokenizer
        self._name = tokenizer.name_or_path
        self.end_of_turn = tokenizer.eos_token
        # Text that is formatted already needs no template.
        if tokenizer.chat_template:
            self._learn(control, tags)
        if not self.end_of_turn:
            raise ValueError(f"{self._name}: nothing ends a turn; set its eos_token")

    def __call__(self, turns, **options):
        """The text of a conversation. Raises RowError where the template refuses it."""
        if not self._tokenizer.chat_template:
            raise ValueError(f"{self._name} has no chat template; btsft_nb.use_template sets one")
        # Templates refuse by raising, or fail on what they do not foresee.
        try:
            return self._tokenizer.apply_chat_template(turns, tokenize=False, **options)
        except (TemplateError, TypeError) as error:
            roles = [turn["role"] for turn in turns]
            raise RowError(f"the chat template refuses the roles {roles}: {error}") from error

    def _learn(self, control, tags):
        question = {"role": "user", "content": "probe of a question"}
        answer = {"role": "assistant", "content": "probe of an answer"}
        thinking = answer | {"content": f"{tags[0]}\nprobe of a thought\n{tags[1]}\n\nanswer"}

        # What it writes around the texts of one exchange
        prompt = self([question], add_generation_prompt=True)
        self.probe = self([question, answer])
        before, _, after = self.probe.rpartition(answer["content"])
        # Where history is written unlike a generation prompt, nothing can be said of what follows that.
        lead = before.partition(prompt or before)[2] if before else ""
        problem = ""
        # Nothing is before an answer that is not there.
        if question["content"] not in before:
            problem = "leaves out the text of turns"
        elif lead.strip() and not any(tag in lead for tag in (*tags, *THINK_TAGS)):
            problem = f"writes {lead!r} before an answer"
        if problem:
            raise ValueError(f"{self._name}: the chat template {problem}; set another one")
        self.answer_lead = lead
        # The same before a thought, which some templates treat in their own way
        self.thought_lead = self([question, thinking]).partition(prompt)[2].partition(tags[0])[0]
        # A turn of the history has one thought. Two open tags: the template added one.
        self.takes_thoughts_apart = self([question, thinking, question]).count(tags[0]) > 1

        # Several control tokens in a row end a turn together.
        end = re.search(f"({control.pattern})+", after)
        if end:
            self.end_of_turn = after[: end.end()]


def use_template(tokenizer: PreTrainedTokenizerBase, template: str | Path) -> None:
    r"""Sets `tokenizer.chat_template`; the text of turns comes out as it is.

    Adds no token: a base model has no trained row for one, and LoRA trains none. Where the tokenizer lacks <|im_end|>,
    `chatml` ends its turns with `eos_token`, which the model knows as an end and no text can spell, and <|im_start|>
    is text like any other.

    Args:
        template: "chatml"; "qa" (`Question: ... \nAnswer:`); "alpaca" (the system turn as instruction, the first
            user turn as its input); a .jinja file; or Jinja itself.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown name, or Jinja that does not parse, by its line.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> bt.use_template(tokenizer, "qa")
    >>> turns = [{"role": "user", "content": "3 + 4?"}]
    >>> tokenizer.apply_chat_template(turns, tokenize=False)
    'Question: 3 + 4? \nAnswer:'
    """
    # A name, a file, or the template itself
    source = str(template)
    if source in NAMES:
        source = str(Path(__file__).with_name("templates") / f"{source}.jinja")
    if source.endswith(".jinja"):
        source = Path(source).read_text(encoding="utf-8")
    elif not re.search("{[%{]", source):
        raise ValueError(
            f"unknown template {source!r}; known: {', '.join(NAMES)}, or a .jinja file"
        )
    if template == "chatml" and "<|im_end|>" not in tokenizer.get_vocab():
        source = source.replace("'<|im_end|>'", "eos_token")
    # Rendering nothing parses it: an error of today is better than one at the first row.
    try:
        render_jinja_template([], chat_template=source)
    except TemplateSyntaxError as error:
        raise ValueError(
            f"{template!s:.60}, line {error.lineno}: no Jinja: {error.message}"
        ) from error
    tokenizer.chat_template = source

"""Chat templates: for base models that have none, and what probes of one find out."""

import re
from pathlib import Path

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .errors import RowError
from .think import THINK_TAGS

FOLDER = Path(__file__).with_name("templates")
NAMES = ("chatml", "qa", "alpaca")
_QUESTION = "probe of a question"
_ANSWER = "probe of an answer"
_THOUGHT = "probe of a thought"


class Template:
    """A tokenizer's chat template. What it does is found out by rendering probes; no model is known by name.

    Attributes:
        end_of_turn: the control tokens that end an answer; the tokenizer's end of text where the template has none.
        answer_lead: the white space that it writes between the generation prompt and an answer.
        thought_lead: the same for a turn that begins with its thought.
        takes_thoughts_apart: whether it writes an empty thought before earlier turns, unless theirs comes as
            `reasoning_content`.
        probe: what it made of one conversation, which can hold a date.

    Raises ValueError where it does not show the text of turns, writes more than white space between the generation
    prompt and an answer, or nothing ends a turn.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, control: re.Pattern, tags: tuple[str, str]
    ):
        self._tokenizer = tokenizer
        self._name = tokenizer.name_or_path
        self.end_of_turn = tokenizer.eos_token
        self.answer_lead = ""
        self.thought_lead = ""
        # A turn of the history has one thought. Two open tags: the template added one.
        self.takes_thoughts_apart = False
        self.probe = ""
        # Text that is formatted already needs no template.
        if tokenizer.chat_template:
            self._learn(control, tags)
        if not self.end_of_turn:
            raise ValueError(f"{self._name}: nothing ends a turn; set the tokenizer's eos_token")

    def __call__(self, turns: list[dict], **options) -> str:
        """The text of a conversation. Raises RowError where the template refuses it."""
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"{self._name} has no chat template: take the instruction-tuned model, or call "
                'btsft_nb.use_template(tokenizer, "chatml")'
            )
        # Templates refuse by raising, or fail on what they do not foresee.
        try:
            return self._tokenizer.apply_chat_template(turns, tokenize=False, **options)
        except (TemplateError, TypeError) as error:
            roles = [turn["role"] for turn in turns]
            raise RowError(f"the chat template refuses the roles {roles}: {error}") from error

    def _learn(self, control: re.Pattern, tags: tuple[str, str]) -> None:
        thought = f"{tags[0]}\n{_THOUGHT}\n{tags[1]}\n\n"
        question = {"role": "user", "content": _QUESTION}
        answer = {"role": "assistant", "content": _ANSWER}
        thinking = {"role": "assistant", "content": thought + _ANSWER}

        # What it writes around the texts of one exchange
        prompt = self([question], add_generation_prompt=True)
        self.probe = self([question, answer])
        before, text, after = self.probe.rpartition(_ANSWER)
        if not text or _QUESTION not in before:
            raise ValueError(
                f"{self._name}: the chat template leaves out the text of turns; set another one"
            )
        # Where history is written unlike a generation prompt, nothing can be said of what follows that.
        lead = _rest(before, prompt)
        if lead.strip() and not any(tag in lead for tag in (*tags, *THINK_TAGS)):
            raise ValueError(
                f"{self._name}: the chat template writes {lead!r} before an answer; set another one"
            )
        # The same before a thought, which some templates treat in their own way
        tagged_lead = _rest(self([question, thinking]), prompt).partition(tags[0])[0]
        self.answer_lead = lead if lead.isspace() else ""
        self.thought_lead = tagged_lead if tagged_lead.isspace() else ""
        # A turn of the history has one thought. Two open tags: the template added one.
        self.takes_thoughts_apart = self([question, thinking, question]).count(tags[0]) > 1

        # Several control tokens in a row end a turn together.
        end = control.search(after)
        while end:
            self.end_of_turn = after[: end.end()]
            end = control.match(after, end.end())


def _rest(text: str, start: str) -> str:
    """What follows `start` in a text; nothing where it begins otherwise."""
    return text[len(start) :] if text.startswith(start) else ""


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
        ValueError: an unknown name, Jinja that does not parse, by its line, or a template by name on a tokenizer
            without `eos_token`.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> bt.use_template(tokenizer, "qa")
    >>> turns = [{"role": "user", "content": "3 + 4?"}]
    >>> tokenizer.apply_chat_template(turns, tokenize=False)
    'Question: 3 + 4? \nAnswer:'
    """
    # A name, a file, or the template itself
    source = str(template)
    place = "the template"
    if template in NAMES:
        if not tokenizer.eos_token:
            raise ValueError(f"the template {template!r} needs a tokenizer with eos_token")
        source = (FOLDER / f"{template}.jinja").read_text(encoding="utf-8")
        if template == "chatml" and "<|im_end|>" not in tokenizer.get_vocab():
            source = source.replace("'<|im_end|>'", "eos_token")
    elif source.endswith(".jinja"):
        place = source
        source = Path(template).read_text(encoding="utf-8")
    elif not re.search("{[%{]", source):
        known = ", ".join(NAMES)
        raise ValueError(f"unknown template {source!r}; known: {known}, or a .jinja file")
    # Rendering nothing parses it.
    # An error of today is better than one at the first row.
    try:
        render_jinja_template([], chat_template=source)
    except TemplateSyntaxError as error:
        raise ValueError(f"{place}, line {error.lineno}: no Jinja: {error.message}") from error
    tokenizer.chat_template = source

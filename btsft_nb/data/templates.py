"""Chat templates: for base models that have none by name, from a file, or as Jinja; and what a probe learns of one."""

import json
import re
from pathlib import Path

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .messages import THINK_TAGS, RowError

_CHATML = """\
{%- for m in messages -%}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
_QA = """\
{%- for m in messages -%}
    {%- if m.role == 'user' -%}{{- 'Question: ' + m.content + ' \\nAnswer:' -}}
    {%- elif m.role == 'assistant' -%}
        {{- ('' if m.content.startswith('<think>') else ' ') + m.content + eos_token -}}
    {%- else -%}{{- raise_exception('qa has turns of user and assistant only, not of the ' + m.role) -}}{%- endif -%}
{%- endfor -%}"""
_ALPACA = """\
{%- set paired = messages|length > 1 and messages[0].role == 'system' and messages[1].role == 'user' -%}
{{- 'Below is an instruction that describes a task' -}}
{{- ', paired with an input that provides further context' if paired else '' -}}
{{- '. Write a response that appropriately completes the request.\\n\\n' -}}
{%- for m in messages -%}
    {%- if m.role == 'assistant' -%}{{- m.content + eos_token -}}
    {%- elif m.role == 'system' and loop.first and paired -%}{{- '### Instruction:\\n' + m.content + '\\n\\n' -}}
    {%- elif m.role == 'user' -%}
        {{- '### Input:\\n' if paired and loop.index0 == 1 else '### Instruction:\\n' -}}
        {{- m.content + '\\n\\n### Response:\\n' -}}
    {%- else -%}{{- raise_exception('alpaca has no place for a turn of the ' + m.role + ' there') -}}{%- endif -%}
{%- endfor -%}"""
TEMPLATES = {"chatml": _CHATML, "qa": _QA, "alpaca": _ALPACA}

_REMEDY = "set another one with btsft_nb.use_template"
_QUESTION, _ANSWER, _THOUGHT = "probe of a question", "probe of an answer", "probe of a thought"


class Template:
    """A tokenizer's chat template, and what probes of it find out; no model is known by name.

    `end_of_turn`: the control tokens that it writes after an answer, or the tokenizer's end of text where it writes
    none. `leads`: the white space between the generation prompt and an answer, and a thought. `takes_thoughts_apart`:
    whether it writes an empty thought before earlier turns unless theirs comes as `reasoning_content`. `probe`: what
    it made of one conversation, which can hold a date.

    Raises ValueError where it does not show the text of turns, writes more than white space between the generation
    prompt and an answer, or nothing ends a turn.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, control: re.Pattern, tags: tuple[str, str]
    ):
        self._tokenizer, self.end_of_turn = tokenizer, tokenizer.eos_token
        self.leads, self.takes_thoughts_apart, self.probe = ("", ""), False, ""
        if tokenizer.chat_template:
            self._learn(control, tags)
        if not self.end_of_turn:
            raise ValueError(
                f"{tokenizer.name_or_path}: neither template nor tokenizer has an end of turn; set eos_token"
            )

    def __call__(self, turns: list[dict], **options) -> str:
        """The text of a conversation. Raises RowError where the template refuses it."""
        if not self._tokenizer.chat_template:
            problem = f"{self._tokenizer.name_or_path}: the tokenizer has no chat template; take the instruction-tuned "
            raise ValueError(
                problem + 'model, or give it one with btsft_nb.use_template(tokenizer, "chatml")'
            )
        try:
            return self._tokenizer.apply_chat_template(turns, tokenize=False, **options)
        except (TemplateError, TypeError) as error:
            roles = [turn["role"] for turn in turns]
            raise RowError(
                f"the chat template refuses a conversation with the roles {roles}: {error}"
            ) from error

    def _learn(self, control: re.Pattern, tags: tuple[str, str]) -> None:
        turn, name = {"role": "user", "content": _QUESTION}, self._tokenizer.name_or_path
        thinking = {
            "role": "assistant",
            "content": f"{tags[0]}\n{_THOUGHT}\n{tags[1]}\n\n{_ANSWER}",
        }
        prompt = self([turn], add_generation_prompt=True)
        self.probe = self([turn, {"role": "assistant", "content": _ANSWER}])
        before, answer, after = self.probe.rpartition(_ANSWER)
        if not answer or _QUESTION not in before:
            raise ValueError(
                f"{name}: the text of a turn is not in what the template makes of it; {_REMEDY}"
            )
        lead = before.removeprefix(prompt) if before.startswith(prompt) else ""
        if lead.strip() and not any(tag in lead for tag in (*tags, *THINK_TAGS)):
            raise ValueError(
                f"{name}: the template writes more than white space before the text: {lead!r}; {_REMEDY}"
            )
        whole = self([turn, thinking])
        tagged = (
            whole.removeprefix(prompt).partition(tags[0])[0] if whole.startswith(prompt) else ""
        )
        self.leads = tuple(found if found.isspace() else "" for found in (lead, tagged))
        self.takes_thoughts_apart = self([turn, thinking, turn]).count(tags[0]) > 1
        end = control.search(after)
        while end:
            self.end_of_turn = after[: end.end()]
            end = control.match(after, end.end())


def use_template(tokenizer: PreTrainedTokenizerBase, template: str | Path) -> None:
    """Sets `tokenizer.chat_template`; the text of turns comes out as it is.

    Adds no token: a base model has no trained row for one, and LoRA trains none. Where the tokenizer lacks <|im_end|>,
    `chatml` ends its turns with `eos_token`, which the model knows as an end and no text can spell, and <|im_start|>
    is text like any other.

    Args:
        template: "chatml"; "qa" (`Question: ... \\nAnswer:`); "alpaca" (the system turn as instruction, the first
            user turn as its input); a file (.jinja, or .json with `chat_template`); or Jinja itself.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown name, a file without a template, Jinja that does not parse, by its line, or a template
            by name on a tokenizer without `eos_token`.
    """
    if template in TEMPLATES and not tokenizer.eos_token:
        raise ValueError(
            f"{tokenizer.name_or_path}: no eos_token, which {template!r} needs; set tokenizer.eos_token"
        )
    is_file = template not in TEMPLATES and not re.search("{[%{]", str(template))
    source = _read(Path(template)) if is_file else TEMPLATES.get(template, template)
    if template == "chatml" and "<|im_end|>" not in tokenizer.get_vocab():
        source = source.replace("'<|im_end|>'", "eos_token")
    try:
        render_jinja_template([], chat_template=source)  # parses it, and renders nothing
    except TemplateSyntaxError as error:
        where = template if is_file else "the template"
        raise ValueError(
            f"{where}, line {error.lineno}: not a Jinja template: {error.message}"
        ) from error
    tokenizer.chat_template = source


def _read(path: Path) -> str:
    if path.suffix not in (".jinja", ".json"):
        known = f"{', '.join(TEMPLATES)}; or give a .jinja file, a tokenizer_config.json, or Jinja"
        raise ValueError(f"unknown chat template {str(path)!r}; known are {known}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such chat template, seen from {Path.cwd()}")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jinja":
        return text
    try:
        found = json.loads(text)["chat_template"]
        if isinstance(found, list):  # several by name, as transformers once wrote them
            found = next(entry["template"] for entry in found if entry["name"] == "default")
    except (json.JSONDecodeError, TypeError, KeyError, StopIteration):
        found = None
    if not isinstance(found, str):
        raise ValueError(
            f"{path}: no chat_template in it; it may stand in chat_template.jinja beside it"
        )
    return found

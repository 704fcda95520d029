"""Make the embedded model and its tokenizer again, in about five minutes: `python tools/make_tiny.py [FOLDER]`."""

import sys
import tempfile

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import btsft_nb as bt
from btsft_nb.data.think import CLOSE, OPEN
from btsft_nb.models.tokenizer import TINY

SEED = 0
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)


def make_tokenizer(rows: list[dict]) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the problems' words: any text can be written with it, and digits stay apart."""
    bpe = Tokenizer(models.BPE())
    pieces = Regex(r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    texts = (
        f"{message['role']}\n{message['content']}"
        for row in rows[:4000]
        for message in row["messages"]
    )
    texts = (text.replace(OPEN, "").replace(CLOSE, "") for text in texts)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=510, special_tokens=controls, initial_alphabet=alphabet),
    )
    bpe.add_tokens([AddedToken(tag, normalized=False) for tag in (OPEN, CLOSE)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=controls[2],
        pad_token=controls[0],
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 of 0.8 M parameters, at random."""
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def main(folder: str) -> None:
    """Train on all ways of thinking, plainly, and save in half precision."""
    rows = bt.load_rows("tiny/pretrain")
    tokenizer = make_tokenizer(rows)
    model = make_model(tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        config = bt.BTSFTConfig(
            scratch,
            threshold=0,
            beta=0,
            num_train_epochs=1,
            per_device_train_batch_size=64,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=50,
            adam_beta2=0.98,
            weight_decay=0.01,
            logging_steps=50,
            save_strategy="no",
            seed=SEED,
        )
        bt.BTSFTTrainer(
            model, config, bt.prepare(rows, tokenizer), processing_class=tokenizer
        ).train()
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(TINY))

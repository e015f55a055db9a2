"""Tokenizers of tiny pipelines for which `new_tokenizer`, words between a start and an end token, is too plain."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tools.pretrain.text_encoders import new_tokenizer


def new_gemma_tokenizer() -> PreTrainedTokenizerFast:
    """Words, with a start token before them and none after, like Gemma's."""
    tokenizer = new_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", tokenizer.bos_token_id)]
    )
    return tokenizer


def new_chat_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, so that prompts differ enough in length to be padded to 32 and to 64 tokens."""
    vocabulary = {symbol: i for i, symbol in enumerate(["<|pad|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>")
    fast.chat_template = "{% for message in messages %}user {{ message['content'] }}{% endfor %}\n"
    return fast

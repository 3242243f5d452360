"""GPT-2 of Hugging Face writing text (``pip install transformers``): its networks are converted, its loop is not.

Without its cache of keys and values: no conversion sees the object that it is. Of a checkpoint on your disk, write
``GPT2LMHeadModel.from_pretrained("/folder/of/it")`` in its place.
"""

from torch import Tensor, nn, ones_like, randint

from chatbot.variants import Workload
from models.hugging_face import GPT2
from ray_jobs import OwnModel

PROMPT, WRITTEN = 16, 8


class Writing(nn.Module):
    """Token ids (B, T) -> the same with as many more as asked, the likeliest each."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T + S)."""
        asked = {"max_new_tokens": WRITTEN, "min_new_tokens": WRITTEN, "do_sample": False, "use_cache": False}
        return self.model.generate(tokens, attention_mask=ones_like(tokens), **asked)  # type: ignore[operator, no-any-return]


def inputs(i: int, workload: Workload) -> tuple[Tensor]:
    return (randint(GPT2["vocab_size"] - 1, (workload.batch, PROMPT)),)


def gpt2() -> OwnModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(**GPT2))
    model.generation_config.pad_token_id = model.config.eos_token_id
    return OwnModel(Writing(model), inputs, parts=("model.transformer", "model.lm_head"))

"""Transformers of Hugging Face (``pip install transformers``): a BERT classifier, one forward of a GPT-2, and a ViT.

Of a checkpoint on your disk, write ``BertForSequenceClassification.from_pretrained("/folder/of/it")`` in its place.
"""

from typing import Any

from torch import Tensor, nn, rand, randint

from chatbot.variants import Workload
from models.same import close
from ray_jobs import OwnModel

TOKENS = 32
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
BERT = {**SMALL, "intermediate_size": 1024, "vocab_size": 30_522}
VIT = {**SMALL, "intermediate_size": 1024, "image_size": 96, "patch_size": 16}
GPT2 = {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 50_257, "use_cache": False}


class Scores(nn.Module):
    """A model without what its answer holds beside the scores."""

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def forward(self, given: Tensor) -> Any:
        """The scores of token ids (B, T) or images (B, 3, H, W)."""
        return self.model(given, return_dict=False, **self.settings)[0]


def bert() -> OwnModel:
    from transformers import BertConfig, BertForSequenceClassification

    return OwnModel(Scores(BertForSequenceClassification(BertConfig(**BERT))), _tokens(BERT), close)


def gpt2() -> OwnModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    next_token = {"logits_to_keep": 1}  # its scores alone: 0.2 MB a row, where those of all tokens take 6.4
    return OwnModel(Scores(GPT2LMHeadModel(GPT2Config(**GPT2)), **next_token), _tokens(GPT2), close)


def vit() -> OwnModel:
    from transformers import ViTConfig, ViTForImageClassification

    return OwnModel(Scores(ViTForImageClassification(ViTConfig(**VIT))), _images, close)


def _tokens(config: dict[str, Any]) -> Any:
    return lambda i, workload: (randint(config["vocab_size"], (workload.batch, TOKENS)),)


def _images(i: int, workload: Workload) -> tuple[Tensor]:
    return (rand(workload.batch, 3, VIT["image_size"], VIT["image_size"]),)

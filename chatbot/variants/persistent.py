"""The whole reply as one CUDA kernel that keeps the weights in the shared memory of all multiprocessors.

Never run on a GPU so far: its source, compiled for a CPU, gives eager's replies, and it compiles for a GPU
(``chatbot/persistent``).
"""

from torch import Tensor

from chatbot.cache import CacheError
from chatbot.model import Chatbot
from chatbot.persistent import build, driver
from chatbot.persistent.driver import DriverError
from chatbot.persistent.engine import Engine
from chatbot.persistent.nvrtc import NvrtcError
from chatbot.persistent.plan import DoesNotFitError, plan
from chatbot.variants.base import Reply, UnavailableError, Workload
from chatbot.variants.inductor import require_shape
from chatbot.variants.native import compiled_of


class PersistentReply:
    """An engine, and what it executes."""

    def __init__(self, engine: Engine, identity: str, workload: Workload) -> None:
        self.engine, self.workload = engine, workload
        self.compiled = compiled_of("persistent", engine, identity)

    def __call__(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) tokens on the GPU -> tokens (B, S). Raises ValueError for another size than the workload's."""
        require_shape(prompts, self.workload)
        return self.engine(prompts, lengths)


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """Packs the weights for each multiprocessor; compiles the kernel once for a kind of GPU."""
    if chatbot.config.attention == "concat":
        raise UnavailableError("it has no kernel for concat attention")
    try:
        card = driver.card()
        made = plan(chatbot.config, workload.batch, workload.prompt_tokens, card)
        identity = build.identity(card.capability)
        kernel = driver.Kernel(build.cubin(card.capability), made)
    except (DoesNotFitError, NvrtcError, DriverError, CacheError) as error:
        raise UnavailableError(str(error)) from None
    engine = Engine(chatbot, made, kernel, workload.reply_tokens, workload.stop_at_eos)
    return PersistentReply(engine, identity, workload)

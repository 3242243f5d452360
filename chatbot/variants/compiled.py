"""``torch.compile``: encoder and decoder step compiled by Inductor for the workload's shapes, the loop in Python."""

import torch

from chatbot.model import Chatbot
from chatbot.variants.inductor import compiling, example, require_compiler, stepping
from chatbot.variants.masked import MaskedEncoder, Step
from chatbot.variants.workload import Reply, Workload

CALLS = 2  # the second step's state has other strides than the first's


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """Compiled before it returns; what an earlier process compiled is found in Inductor's cache."""
    require_compiler(workload.device)
    encoder = torch.compile(MaskedEncoder(chatbot.encoder).eval(), fullgraph=True, dynamic=False)
    step = torch.compile(Step(chatbot.decoder).eval(), fullgraph=True, dynamic=False)
    reply = stepping(encoder, step, chatbot.config.decoder_layers, workload)
    with compiling(), torch.no_grad():
        for _ in range(CALLS):
            reply(*example(workload))
    return reply

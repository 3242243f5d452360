"""The tutorial's sequence-to-sequence network, written so that it traces and scripts.

Shapes: B prompts (batch), T prompt tokens, S reply steps, H hidden, V vocabulary. Inside, time stands first
as in the tutorial. Source: https://pytorch.org/tutorials/beginner/chatbot_tutorial.html (Inkawhich);
attention: Luong et al. 2015, https://arxiv.org/abs/1508.04025. Module names are the tutorial's, so that
its checkpoints load.
"""

import copy
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from chatbot.config import Config
from chatbot.vocabulary import PAD, SOS


class Encoder(nn.Module):
    """A bidirectional GRU over the prompt, its two directions summed."""

    def __init__(self, config: Config, embedding: nn.Embedding) -> None:
        super().__init__()
        self.hidden = config.hidden
        self.embedding = embedding
        between = config.dropout if config.encoder_layers > 1 else 0.0
        self.gru = nn.GRU(config.hidden, config.hidden, config.encoder_layers, dropout=between, bidirectional=True)

    def forward(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(T, B) tokens and (B,) lengths on the CPU -> outputs (T, B, H), final states (2 x layers, B, H)."""
        packed = pack_padded_sequence(self.embedding(prompts), lengths, enforce_sorted=False)
        packed, hidden = self.gru(packed)
        outputs, _ = pad_packed_sequence(packed)
        return outputs[:, :, : self.hidden] + outputs[:, :, self.hidden :], hidden


class Attention(nn.Module):
    """Luong's global attention: how much each prompt position matters to a decoder state."""

    def __init__(self, method: str, hidden: int) -> None:
        super().__init__()
        self.method = method
        if method == "general":
            self.attn = nn.Linear(hidden, hidden)
        elif method == "concat":
            self.attn = nn.Linear(2 * hidden, hidden)
            self.v = nn.Parameter(torch.randn(hidden) / hidden**0.5)

    def energies(self, state: Tensor, outputs: Tensor) -> Tensor:
        """State (..., 1, B, H) against outputs (T, B, H) -> (..., T, B)."""
        if self.method == "dot":
            return torch.sum(state * outputs, dim=-1)
        if self.method == "general":
            return torch.sum(state * self.attn(outputs), dim=-1)
        pairs = torch.broadcast_tensors(state, outputs)  # type: ignore[no-untyped-call]
        return torch.sum(self.v * self.attn(torch.cat(pairs, -1)).tanh(), dim=-1)

    def forward(self, state: Tensor, outputs: Tensor, blocked: Tensor) -> Tensor:
        """State (..., 1, B, H), outputs (T, B, H), blocked (T, B) -> weights (..., B, T) that sum to 1 over T."""
        # The tutorial has no mask: it answers one prompt at a time. With one, a prompt in a padded batch
        # gets the reply that it gets alone.
        energies = self.energies(state, outputs).masked_fill(blocked, float("-inf"))
        return torch.softmax(energies.transpose(-2, -1), dim=-1)


class Decoder(nn.Module):
    """A GRU that writes the reply a token at a time, looking back at the prompt through attention."""

    def __init__(self, config: Config, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.embedding_dropout = nn.Dropout(config.dropout)
        between = config.dropout if config.decoder_layers > 1 else 0.0
        self.gru = nn.GRU(config.hidden, config.hidden, config.decoder_layers, dropout=between)
        self.concat = nn.Linear(2 * config.hidden, config.hidden)
        self.out = nn.Linear(config.hidden, config.vocabulary)
        self.attn = Attention(config.attention, config.hidden)

    def forward(self, token: Tensor, hidden: Tensor, outputs: Tensor, blocked: Tensor) -> tuple[Tensor, Tensor]:
        """One step: token (1, B), hidden (layers, B, H), outputs (T, B, H), blocked (T, B) -> logits (B, V), hidden."""
        state, hidden = self.gru(self.embedding_dropout(self.embedding(token)), hidden)
        weights = self.attn(state, outputs, blocked)  # (B, T)
        context = weights.unsqueeze(1).bmm(outputs.transpose(0, 1)).squeeze(1)  # (B, H)
        joined = torch.cat((state.squeeze(0), context), 1)  # (B, 2H)
        return self.out(torch.tanh(self.concat(joined))), hidden

    def teacher_forced(self, tokens: Tensor, hidden: Tensor, outputs: Tensor, blocked: Tensor) -> Tensor:
        """All steps at once, each fed the right previous token: tokens (S, B) -> logits (S, B, V).

        What ``forward`` computes step by step; the GRU does not read the attention, so the steps need not wait.
        """
        states, _ = self.gru(self.embedding_dropout(self.embedding(tokens)), hidden)  # (S, B, H)
        weights = self.attn(states.unsqueeze(1), outputs, blocked)  # (S, B, T)
        context = torch.einsum("sbt,tbh->sbh", weights, outputs)
        logits: Tensor = self.out(torch.tanh(self.concat(torch.cat((states, context), 2))))
        return logits


class GreedySearch(nn.Module):
    """The likeliest token at every step, for exactly ``max_length`` steps.

    As in the tutorial it does not stop at EOS, so its latency does not depend on what it answers. ``encoder`` and
    ``decoder`` may be modules or traces of them (a trace has no ``n_layers``, hence the argument).
    """

    pad: Final[int]  # TorchScript takes constants from the module, not from Python's globals
    sos: Final[int]

    def __init__(self, encoder: nn.Module, decoder: nn.Module, decoder_layers: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.decoder_layers = decoder_layers
        self.pad, self.sos = PAD, SOS

    def forward(self, prompts: Tensor, lengths: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
        """(B, T) tokens and (B,) lengths on the CPU -> tokens (B, S) and their probabilities (B, S)."""
        outputs, hidden = self.encoder(prompts.t(), lengths)
        hidden = hidden[: self.decoder_layers]
        blocked = (prompts == self.pad).t()
        token = torch.full((1, prompts.size(0)), self.sos, dtype=torch.long, device=prompts.device)
        tokens: list[Tensor] = []
        scores: list[Tensor] = []
        for _ in range(max_length):
            logits, hidden = self.decoder(token, hidden, outputs, blocked)
            score, best = torch.max(torch.softmax(logits, dim=1), dim=1)
            tokens.append(best)
            scores.append(score)
            token = best.unsqueeze(0)
        return torch.stack(tokens, 1), torch.stack(scores, 1)


@dataclass(frozen=True, eq=False)
class Chatbot:
    """The two networks, in evaluation mode unless training says otherwise; they share one embedding."""

    config: Config
    encoder: Encoder
    decoder: Decoder

    @classmethod
    def random(cls, config: Config, seed: int = 0) -> "Chatbot":
        """Freshly initialised weights, the same for the same seed; the caller's random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            embedding = nn.Embedding(config.vocabulary, config.hidden)
            encoder, decoder = Encoder(config, embedding), Decoder(config, embedding)
        return cls(config, encoder.eval(), decoder.eval())

    def copy(self) -> "Chatbot":
        """A copy that shares no weight with this one; its two networks share one embedding, as these do.

        Copy on the CPU and move the copy: cuDNN wants all weights of a GRU in one buffer, or it copies them at each
        call. Moving to a GPU makes that buffer, copying does not (``torch.nn.RNNBase.flatten_parameters``).
        """
        return Chatbot(self.config, *copy.deepcopy((self.encoder, self.decoder)))

    def to(self, device: str) -> "Chatbot":
        """Moves both networks, in place, and returns itself."""
        self.encoder.to(device)
        self.decoder.to(device)
        return self

    def search(self) -> GreedySearch:
        """The eager greedy search over these networks."""
        return GreedySearch(self.encoder, self.decoder, self.config.decoder_layers).eval()

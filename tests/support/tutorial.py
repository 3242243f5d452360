"""The PyTorch chatbot tutorial's networks and search restated, time first, without a mask: what ours must equal."""

# Source: https://pytorch.org/tutorials/beginner/chatbot_tutorial.html (dropout left out: only evaluated here).

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from chatbot.model import Chatbot

SOS_TOKEN = 1


class EncoderRNN(nn.Module):
    """Two directions over the prompt, summed."""

    def __init__(self, hidden_size: int, embedding: nn.Embedding, n_layers: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.embedding = embedding
        self.gru = nn.GRU(hidden_size, hidden_size, n_layers, bidirectional=True)

    def forward(self, input_seq: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(T, B) sorted by length, (B,) -> (T, B, H), (2 x layers, B, H)."""
        packed, hidden = self.gru(pack_padded_sequence(self.embedding(input_seq), input_lengths))
        outputs, _ = pad_packed_sequence(packed)
        return outputs[:, :, : self.hidden_size] + outputs[:, :, self.hidden_size :], hidden


class Attn(nn.Module):
    """Luong's scores: (1, B, H) against (T, B, H) -> (B, 1, T)."""

    def __init__(self, method: str, hidden_size: int) -> None:
        super().__init__()
        self.method = method
        if method == "general":
            self.attn = nn.Linear(hidden_size, hidden_size)
        if method == "concat":
            self.attn = nn.Linear(hidden_size * 2, hidden_size)
            self.v = nn.Parameter(torch.randn(hidden_size))

    def score(self, hidden: Tensor, encoder_outputs: Tensor) -> Tensor:
        if self.method == "dot":
            return torch.sum(hidden * encoder_outputs, 2)
        if self.method == "general":
            return torch.sum(hidden * self.attn(encoder_outputs), 2)
        repeated = hidden.expand(encoder_outputs.size(0), -1, -1)
        return torch.sum(self.v * torch.tanh(self.attn(torch.cat((repeated, encoder_outputs), 2))), 2)

    def forward(self, hidden: Tensor, encoder_outputs: Tensor) -> Tensor:
        return torch.softmax(self.score(hidden, encoder_outputs).t(), dim=1).unsqueeze(1)


class LuongAttnDecoderRNN(nn.Module):
    """One step: (1, B), (layers, B, H), (T, B, H) -> probabilities (B, V), (layers, B, H)."""

    def __init__(self, method: str, embedding: nn.Embedding, hidden_size: int, output_size: int, n_layers: int) -> None:
        super().__init__()
        self.n_layers = n_layers
        self.embedding = embedding
        self.gru = nn.GRU(hidden_size, hidden_size, n_layers)
        self.concat = nn.Linear(hidden_size * 2, hidden_size)
        self.out = nn.Linear(hidden_size, output_size)
        self.attn = Attn(method, hidden_size)

    def forward(self, input_step: Tensor, last_hidden: Tensor, encoder_outputs: Tensor) -> tuple[Tensor, Tensor]:
        rnn_output, hidden = self.gru(self.embedding(input_step), last_hidden)
        context = self.attn(rnn_output, encoder_outputs).bmm(encoder_outputs.transpose(0, 1))
        concat_input = torch.cat((rnn_output.squeeze(0), context.squeeze(1)), 1)
        return torch.softmax(self.out(torch.tanh(self.concat(concat_input))), dim=1), hidden


class GreedySearchDecoder(nn.Module):
    """One prompt (T, 1) -> max_length tokens and their probabilities."""

    def __init__(self, encoder: EncoderRNN, decoder: LuongAttnDecoderRNN) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    @torch.no_grad()
    def forward(self, input_seq: Tensor, input_length: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
        encoder_outputs, encoder_hidden = self.encoder(input_seq, input_length)
        hidden, step = encoder_hidden[: self.decoder.n_layers], torch.full((1, 1), SOS_TOKEN)
        tokens, scores = [], []
        for _ in range(max_length):
            probabilities, hidden = self.decoder(step, hidden, encoder_outputs)
            score, token = probabilities.max(dim=1)
            tokens.append(token)
            scores.append(score)
            step = token.unsqueeze(0)
        return torch.cat(tokens), torch.cat(scores)


def fresh(method: str, hidden: int, encoder_layers: int, decoder_layers: int, vocabulary: int) -> GreedySearchDecoder:
    """The tutorial's networks with new weights."""
    embedding = nn.Embedding(vocabulary, hidden)
    encoder = EncoderRNN(hidden, embedding, encoder_layers)
    return GreedySearchDecoder(encoder, LuongAttnDecoderRNN(method, embedding, hidden, vocabulary, decoder_layers))


def tutorial_of(chatbot: Chatbot) -> GreedySearchDecoder:
    """The tutorial's networks with the weights of ours, every name and shape of which must fit."""
    c = chatbot.config
    search = fresh(c.attention, c.hidden, c.encoder_layers, c.decoder_layers, c.vocabulary)
    search.encoder.load_state_dict(chatbot.encoder.state_dict(), strict=True)
    search.decoder.load_state_dict(chatbot.decoder.state_dict(), strict=True)
    return search


def tutorial_reply(search: GreedySearchDecoder, prompt: list[int], max_length: int = 10) -> tuple[list[int], Tensor]:
    """What the tutorial answers to the tokens of one prompt: tokens, probabilities."""
    tokens, scores = search(torch.tensor([prompt]).t(), torch.tensor([len(prompt)]), max_length)
    return tokens.tolist(), scores

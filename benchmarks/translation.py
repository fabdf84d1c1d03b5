"""Translation in PyTorch, the ordinary way: an LSTM that attends to the states of another, and beam search."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

START, END = 1, 2


class Seq2Seq(nn.Module):
    """`lmlab.models.seq2seq.Seq2Seq` of one layer with its attention "luong" and its score "scaled"; 0 is padding."""

    def __init__(self, source_size, target_size, d_model, d_embed, dropout=0.0):
        super().__init__()
        self.source_embed = nn.Embedding(source_size, d_embed)
        self.target_embed = nn.Embedding(target_size, d_embed)
        self.encoder = nn.LSTM(d_embed, d_model, batch_first=True)
        self.decoder = nn.LSTM(d_embed, d_model, batch_first=True)
        self.combine, self.head = nn.Linear(2 * d_model, d_model), nn.Linear(d_model, target_size)
        self.drop = nn.Dropout(dropout)
        for embed in (self.source_embed, self.target_embed):
            nn.init.normal_(embed.weight, std=d_embed**-0.5)

    def forward(self, source, target):
        memory, state = self.encode(source)
        return self.read(memory, state, target)[0]

    def encode(self, source):
        """((states, where they are), the last (h, c))."""
        mask, x = source > 0, self.drop(self.source_embed(source))
        if mask.all():  # oneDNN takes no packed rows
            states, last = self.encoder(x)
        else:
            packed = pack_padded_sequence(x, mask.sum(1), batch_first=True, enforce_sorted=False)
            states, last = self.encoder(packed)
            states, _ = pad_packed_sequence(states, batch_first=True, total_length=source.shape[1])
        return (states, mask), last

    def read(self, memory, state, target):
        """(logits, (h, c)) after each token of the targets, several a source or one, side by side."""
        states, state = self.decoder(self.drop(self.target_embed(target)), state)
        encoded, mask = memory
        queries = states.reshape(len(encoded), 1, -1, states.shape[-1])  # one head: kernels want the axis
        context = F.scaled_dot_product_attention(
            queries, encoded[:, None], encoded[:, None], attn_mask=mask[:, None, None]
        )
        mixed = torch.tanh(self.combine(torch.cat([context.view_as(states), states], dim=-1)))
        return self.head(self.drop(mixed)), state


def search(step, state, start, beam_size, max_tokens, end, length_penalty=0.0):
    """(tokens [B, K, N], lengths [B, K], scores [B, K]) of the K best, as `lmlab.decoding.beam.search` defines them.

    step: (state, tokens [B K]) to (logits [B K, V], state). state: a tuple of arrays whose second axis is of the B
    rows, as that of nn.LSTM. start: [B], the tokens to begin with.
    """
    batch, k = len(start), beam_size
    state = tuple(part.repeat_interleave(k, dim=1) for part in state)
    tokens = torch.full((batch, k, max_tokens), end)
    lengths, total = torch.zeros(batch, k, dtype=torch.long), torch.full((batch, k), -torch.inf)
    total[:, 0] = 0
    last, done = start[:, None].expand(batch, k), torch.zeros(batch, k, dtype=torch.bool)
    first = torch.arange(batch)[:, None] * k
    for t in range(max_tokens):
        logits, state = step(state, last.reshape(-1))
        # The K best of all are among the K best of each; a finished one goes on with its end alone, for nothing.
        best, token = logits.topk(k)
        logs = (best - logits.logsumexp(-1, keepdim=True)).view(batch, k, k)
        token = token.view(batch, k, k).masked_fill(done[..., None], end)
        logs[done] = torch.where(torch.arange(k) == 0, 0.0, -torch.inf)
        lengths = lengths + ~done
        sums = total[..., None] + logs
        ranks = sums / ((5 + lengths) / 6).pow(length_penalty)[..., None]
        scores, places = ranks.flatten(1).topk(k)
        parent = places // k
        total, last = sums.flatten(1).gather(1, places), token.flatten(1).gather(1, places)
        lengths, rows = lengths.gather(1, parent), first + parent
        tokens = tokens.flatten(0, 1)[rows]
        tokens[..., t] = last
        state = tuple(part.index_select(1, rows.flatten()) for part in state)
        done = last == end
        if done.all():
            break
    return tokens, lengths, scores


def translate(model, rows, max_tokens, beam_size, batch_size, length_penalty=0.0):
    """The (ids, score) of each row's hypotheses, the best first; batches are of rows of like length."""
    lengths = (rows > 0).sum(1)
    found = [[]] * len(rows)
    for places in lengths.argsort(stable=True).split(batch_size):
        memory, state = model.encode(rows[places, : lengths[places].max()])

        def step(state, tokens, memory=memory):
            logits, state = model.read(memory, state, tokens[:, None])
            return logits[:, 0], state

        start = torch.full((len(places),), START)
        best = search(step, state, start, beam_size, max_tokens, END, length_penalty)
        for place, *row in zip(places.tolist(), *(part.tolist() for part in best), strict=True):
            found[place] = [(ids[:length], score) for ids, length, score in zip(*row, strict=True)]
    return found

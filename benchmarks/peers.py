"""The same workloads in PyTorch, written the ordinary way; sampling by transformers' `generate`."""

import contextlib
import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import translation

VOCAB, TOKENS = 65, 1_000_000


class Attention(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.heads, self.dropout = heads, dropout

    def forward(self, x):
        batch, length, width = x.shape
        heads = [
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.qkv(x).split(width, 2)
        ]
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(*heads, dropout_p=dropout, is_causal=True)
        y = self.out(y.transpose(1, 2).reshape(batch, length, width))
        return F.dropout(y, self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.attention_norm, self.norm = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attention = Attention(width, heads, dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
            nn.Dropout(dropout),
        )

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.norm(x))


class GPT(nn.Module):
    def __init__(self, num_layers, num_heads, d_model, context, dropout, vocab_size=VOCAB):
        super().__init__()
        self.embed, self.positions = nn.Embedding(vocab_size, d_model), nn.Embedding(context, d_model)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(d_model, num_heads, dropout) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(d_model, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.blocks(self.drop(self.embed(tokens) + self.positions(positions)))
        return F.linear(self.norm(x), self.embed.weight)


class Recurrent(nn.Module):
    def __init__(self, cell, d_model):
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, d_model), nn.Linear(d_model, VOCAB)
        self.cell = {"gru": nn.GRU, "lstm": nn.LSTM}[cell](d_model, d_model, batch_first=True)

    def forward(self, tokens):
        return self.head(self.cell(self.embed(tokens))[0])


def cast(precision, device="cpu"):
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


def next_token_loss(model, batch):
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1))


def training(loss, parameters, batches, precision, *, clip=0.0, fused=True, **options):
    """(run, facts): forward, backward, clipping, Adam. `loss` is of a batch."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.pop("weight_decay", 0.0)},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=1e-3, fused=fused, **options)

    def run(steps: int) -> None:
        for _ in range(steps):
            with cast(precision):
                value = loss(next(batches))
            adam.zero_grad(set_to_none=True)
            value.backward()
            if clip:
                nn.utils.clip_grad_norm_(parameters, clip)
            adam.step()

    return run, {"parameters": sum(p.numel() for p in parameters)}


def windows(context, batch_size):
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    offsets = torch.arange(context + 1)
    while True:
        starts = torch.randint(0, TOKENS - context - 1, (batch_size, 1), generator=generator)
        yield text[starts + offsets]


def language_model(model, context, batch_size, precision, compiled, **options):
    module = torch.compile(model) if compiled else model
    batches = windows(context, batch_size)
    loss = lambda batch: next_token_loss(module, batch)  # noqa: E731
    return training(loss, model.parameters(), batches, precision, clip=1.0, **options)


def gpt(*, batch_size, context, precision="float32", compiled=False, dropout=0.0, **sizes):
    model = GPT(context=context, dropout=dropout, **sizes)
    options = {"betas": (0.9, 0.99), "weight_decay": 0.1}
    return language_model(model, context, batch_size, precision, compiled, **options)


def recurrent(*, batch_size, context, precision="float32", compiled=False, **sizes):
    return language_model(Recurrent(**sizes), context, batch_size, precision, compiled)


def nplm(
    *, vocab_size, context, d_embed, hidden, num_examples, batch_size, precision="float32", compiled=False
):
    model = nn.Sequential(
        nn.Embedding(vocab_size, d_embed),
        nn.Flatten(),
        nn.Linear(context * d_embed, hidden),
        nn.Tanh(),
        nn.Linear(hidden, vocab_size),
    )
    module = torch.compile(model) if compiled else model
    tokens = torch.randint(0, vocab_size, (num_examples, context + 1))
    loss = lambda rows: F.cross_entropy(module(tokens[rows, :-1]), tokens[rows, -1])  # noqa: E731
    return training(loss, model.parameters(), epochs(num_examples, batch_size), precision)


def carried(
    *, vocab_size, d_model, num_layers, dropout, context, batch_size, precision="float32", compiled=False
):
    from benchmarks.wikitext_lstm import LSTM, windows

    model, state = LSTM(vocab_size, d_model, num_layers, dropout), None
    module = torch.compile(model) if compiled else model
    streams = torch.randint(0, vocab_size, (batch_size, TOKENS // batch_size))

    def loss(batch):
        nonlocal state
        logits, state = module(batch[0], state)
        state = tuple(part.detach() for part in state)
        return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten())

    batches = itertools.chain.from_iterable(windows(streams, context) for _ in itertools.count())
    return training(loss, model.parameters(), batches, precision, clip=0.25)


def seq2seq(*, vocab_size, length, num_examples, batch_size, precision="float32", compiled=False, **sizes):
    model = translation.Seq2Seq(vocab_size, vocab_size, **sizes)
    module = torch.compile(model) if compiled else model
    ids = torch.randint(translation.END + 1, vocab_size, (num_examples, 2 * length + 1))

    def loss(rows):
        source, target = ids[rows].split([length, length + 1], dim=1)
        logits = module(source, target[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=0)

    return training(loss, model.parameters(), epochs(num_examples, batch_size), precision, clip=1.0)


def translate(*, vocab_size, d_model, d_embed, num_sentences, shortest, longest, compiled=False, **options):
    model = translation.Seq2Seq(vocab_size, vocab_size, d_model, d_embed).eval()
    if compiled:
        model.read = torch.compile(model.read)
    rows = torch.randint(translation.END + 1, vocab_size, (num_sentences, longest))
    lengths = shortest + torch.arange(num_sentences) % (longest - shortest + 1)
    rows[torch.arange(longest) >= lengths[:, None]] = 0

    @torch.inference_mode()
    def run(calls: int) -> None:
        for _ in range(calls):
            translation.translate(model, rows, **options)

    return run, {}


def epochs(num_examples, batch_size):
    """Which examples make a batch, epoch after epoch."""
    while True:
        yield from torch.randperm(num_examples)[: num_examples // batch_size * batch_size].split(batch_size)


def shuffled(num_examples, batch_size):
    """(pixels in [0, 1], labels) of a batch, epoch after epoch."""
    pixels = torch.randint(0, 256, (num_examples, 28, 28), dtype=torch.uint8)
    labels = torch.arange(num_examples) % 10
    for rows in epochs(num_examples, batch_size):
        yield pixels[rows].float() / 255, labels[rows]


def perceptron(*widths):
    layers = []
    for inward, outward in itertools.pairwise(widths):
        layers += [nn.Linear(inward, outward), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def autoencoder(*, features, code, num_examples, batch_size, precision="float32", compiled=False):
    model = perceptron(784, *features, code, *reversed(features), 784)
    module = torch.compile(model) if compiled else model

    def loss(batch):
        image = batch[0].flatten(1)
        return F.binary_cross_entropy_with_logits(module(image), image)

    batches = shuffled(num_examples, batch_size)
    run, facts = training(loss, model.parameters(), batches, precision, weight_decay=0.0)
    return lambda epochs: run(epochs * (num_examples // batch_size)), facts


class VAE(nn.Module):
    def __init__(self, latent, hidden):
        super().__init__()
        self.encoder = perceptron(784, *hidden, 2 * latent)
        self.decoder = perceptron(latent, *reversed(hidden), 784)

    def forward(self, image):
        mean, log_variance = self.encoder(image).chunk(2, dim=1)
        z = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        distortion = F.binary_cross_entropy_with_logits(self.decoder(z), image, reduction="sum")
        return (distortion + kl) / len(image)


def vae(*, latent, hidden, num_examples, batch_size, precision="float32", compiled=False):
    model = VAE(latent, hidden)
    module = torch.compile(model) if compiled else model
    batches = shuffled(num_examples, batch_size)
    loss = lambda batch: module(batch[0].flatten(1))  # noqa: E731
    run, facts = training(loss, model.parameters(), batches, precision, weight_decay=0.0)
    return lambda epochs: run(epochs * (num_examples // batch_size)), facts


def cnn(*, batch_size, precision="float32", compiled=False):
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    ).to(memory_format=torch.channels_last)
    module = torch.compile(model) if compiled else model

    def loss(batch):
        image = batch[0][:, None].contiguous(memory_format=torch.channels_last)
        return F.cross_entropy(module(image), batch[1])

    return training(loss, model.parameters(), shuffled(10_000, batch_size), precision)


class ResidualBlock(nn.Module):
    def __init__(self, inward, outward, width):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(channels // 8, channels) for channels in (inward, outward))
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, outward, 3, padding=1) for channels in (inward, outward)
        )
        self.condition = nn.Linear(width, 2 * outward)
        self.shortcut = nn.Conv2d(inward, outward, 1) if inward != outward else nn.Identity()

    def forward(self, x, condition):
        scale, shift = self.condition(F.silu(condition))[:, :, None, None].chunk(2, dim=1)
        h = self.norms[1](self.convs[0](F.silu(self.norms[0](x))))
        return self.shortcut(x) + self.convs[1](F.silu(h * (1 + scale) + shift))


class UNet(nn.Module):
    """Of two resolutions, one block at each, given the step."""

    def __init__(self, features, width=128):
        super().__init__()
        wide, deep = features
        self.embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
        self.register_buffer("frequencies", frequencies)
        self.first, self.last = nn.Conv2d(1, wide, 3, padding=1), nn.Conv2d(wide, 1, 3, padding=1)
        self.down, self.up = nn.Conv2d(wide, deep, 3, 2, padding=1), nn.Conv2d(deep, wide, 3, padding=1)
        sizes = ((wide, wide), (deep, deep), (deep, deep), (2 * deep, deep), (2 * wide, wide))
        self.blocks = nn.ModuleList(ResidualBlock(*size, width) for size in sizes)
        self.norm = nn.GroupNorm(wide // 8, wide)

    def forward(self, x, t):
        angles = t[:, None] * self.frequencies
        condition = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1))
        high = self.blocks[0](self.first(x), condition)
        low = self.blocks[1](self.down(high), condition)
        y = self.blocks[2](low, condition)
        y = self.blocks[3](torch.cat([y, low], dim=1), condition)
        y = self.up(F.interpolate(y, scale_factor=2))
        y = self.blocks[4](torch.cat([y, high], dim=1), condition)
        return self.last(F.silu(self.norm(y)))


def signal():
    """The product of 1 - beta up to each of 1,000 steps of the linear schedule, from 1."""
    return torch.cat([torch.ones(1), torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)])


def unet(*, features, batch_size, precision="float32", compiled=False):
    model, a = UNet(features).to(memory_format=torch.channels_last), signal()
    module = torch.compile(model) if compiled else model

    def loss(batch):
        x0 = (2 * batch[0] - 1)[:, None].contiguous(memory_format=torch.channels_last)
        t, noise = torch.randint(1, 1001, (len(x0),)), torch.randn_like(x0)
        part = a[t][:, None, None, None]
        return F.mse_loss(module(part.sqrt() * x0 + (1 - part).sqrt() * noise, t), noise)

    return training(loss, model.parameters(), shuffled(10_000, batch_size), precision)


def ddim(*, features, batch_size, num_steps, precision="float32", compiled=False):
    model, a = UNet(features).to(memory_format=torch.channels_last).eval(), signal()
    module = torch.compile(model) if compiled else model
    steps = torch.linspace(1000, 0, num_steps + 1).round().long().tolist()

    @torch.inference_mode()
    def run(calls: int) -> None:
        for _ in range(calls):
            x = torch.randn(batch_size, 1, 28, 28).contiguous(memory_format=torch.channels_last)
            for t, s in itertools.pairwise(steps):
                with cast(precision):
                    noise = module(x, torch.full((batch_size,), t)).float()
                x0 = ((x - (1 - a[t]).sqrt() * noise) / a[t].sqrt()).clamp(-1, 1)
                noise = (x - a[t].sqrt() * x0) / (1 - a[t]).sqrt()
                x = a[s].sqrt() * x0 + (1 - a[s]).sqrt() * noise

    return run, {}


def sampling(*, num_tokens, batch_size, num_layers, num_heads, d_model):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_positions=num_tokens, n_embd=d_model, n_layer=num_layers, n_head=num_heads
    )
    model = GPT2LMHeadModel(config).eval()
    prompt = torch.zeros(batch_size, 1, dtype=torch.long)
    options = {"do_sample": True, "temperature": 0.8, "top_k": 40, "use_cache": True, "pad_token_id": 0}
    options |= {"min_new_tokens": num_tokens - 1, "max_new_tokens": num_tokens - 1, "eos_token_id": None}

    @torch.inference_mode()
    def run(steps: int) -> None:
        for _ in range(steps):
            model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)

    return run, {}


def product(*, rows, inner, columns, precision="float32"):
    kind = {"float32": torch.float32, "bf16": torch.bfloat16}[precision]
    x, w = torch.randn(rows, inner).to(kind), torch.randn(inner, columns).to(kind)

    def run(steps: int) -> None:
        for _ in range(steps):
            x @ w

    return run, {}


def read(*, numbers):
    x = torch.ones(numbers)

    def run(steps: int) -> None:
        for _ in range(steps):
            x.sum()

    return run, {}

"""The tied LSTM of experiments/recurrent_lm.py:wikitext,lstm in PyTorch: the same recipe, to the same loss or not.

    python -m benchmarks.wikitext_lstm                              # beside recurrent_lm.py:wikitext,lstm,cpu
    python -m benchmarks.wikitext_lstm --duration="300 steps" --seed=1
    python -m benchmarks.wikitext_lstm --variant=wikitext,lstm,demo
    python -m benchmarks.wikitext_lstm --from_ours                  # our initial weights, and one bias a gate

Text, vocabulary, sizes, batches, schedule, clipping and Adam are those of the experiment's configuration; module, loss
and loop are PyTorch's. Embeddings begin as ours, N(0, 0.02), the LSTM's weights as PyTorch's unless --from_ours. Losses
are of the whole validation and test texts, each read as one sequence. Needs torch and, but for demo, WikiText-2; some
35 minutes.
"""

import argparse
import functools
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lmlab import config as configs
from lmlab.experiment import Assets

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "recurrent_lm.py"


class LSTM(nn.Module):
    """As in pytorch/examples, word_language_model, --tied."""

    def __init__(self, vocab_size, width, num_layers, dropout):
        super().__init__()
        self.embed, self.drop = nn.Embedding(vocab_size, width), nn.Dropout(dropout)
        self.recurrent = nn.LSTM(width, width, num_layers, dropout=dropout, batch_first=True)
        self.head = nn.Linear(width, vocab_size)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.head.weight = self.embed.weight

    def forward(self, tokens, state=None):
        x, state = self.recurrent(self.drop(self.embed(tokens)), state)
        return self.head(self.drop(x)), state


def begin_as_ours(module: LSTM, params) -> None:
    """Copies the parameters of a `RecurrentLM`; PyTorch's second bias of each gate stays at 0."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("bias_hh" not in name)
    with torch.no_grad():
        module.embed.weight.copy_(torch.tensor(np.asarray(params["embed"]["embedding"])))
        module.head.bias.copy_(torch.tensor(np.asarray(params["bias"])))
        for layer in range(module.recurrent.num_layers):
            inward, u = (params["recurrent"][f"{kind}_{layer}"] for kind in ("input", "recurrent"))
            for name, value in (
                ("weight_ih", inward["kernel"].T),
                ("weight_hh", u.T),
                ("bias_ih", inward["bias"]),
            ):
                getattr(module.recurrent, f"{name}_l{layer}").copy_(torch.tensor(np.asarray(value)))
            getattr(module.recurrent, f"bias_hh_l{layer}").zero_()


def our_weights(config, vocab_size: int):
    """What the experiment's run of this seed begins with."""
    import flax.linen as nn
    import jax

    from lmlab.models.recurrent_lm import Carried, RecurrentLM
    from lmlab.training.loop import Keys

    task = Carried(RecurrentLM(vocab_size, **config.model))
    batch = {"tokens": np.zeros((1, 2), np.int32)}
    return nn.meta.unbox(jax.jit(task.init)(Keys.of(config).init, batch)[0])


def rate(step: int, config, total: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to `final`: as `optimizer.schedule_shape`."""
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    return config.learning_rate * (config.final + (1 - config.final) * cosine)


def windows(streams, context):
    """(inputs, targets) side by side; the last ones may be shorter."""
    for start in range(0, streams.shape[1] - 1, context):
        ids = streams[:, start : start + context + 1]
        yield ids[:, :-1], ids[:, 1:]


def loss_of(model, ids, context) -> float:
    """Nats a token of a text, the state carried from its beginning to its end."""
    model.eval()
    total, count, state = 0.0, 0, None
    with torch.no_grad():
        for inputs, targets in windows(ids[None], context):
            logits, state = model(inputs, state)
            total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
            count += targets.numel()
    return total / count


def train(config, ids, vocab_size: int, say=print, from_ours: bool = False) -> LSTM:
    """The model after the duration of the config; from_ours: it begins with our weights and has one bias a gate."""
    if config.optimizer.schedule != "cosine" or config.optimizer.weight_decay or config.model.cell != "lstm":
        raise ValueError("the peer is an LSTM trained by Adam under a cosine; received another configuration")
    torch.manual_seed(config.seed)
    sizes, adam = config.model, config.optimizer
    model = LSTM(vocab_size, sizes.d_model, sizes.num_layers, sizes.dropout)
    if from_ours:
        begin_as_ours(model, our_weights(config, vocab_size))
    length = len(ids) // config.batch_size
    streams = ids[: length * config.batch_size].view(config.batch_size, length)
    an_epoch = math.ceil((length - 1) / config.data.context)
    clock = configs.Clock(config.duration, config.batch_size, an_epoch * config.batch_size)
    total, warmup = clock.total, clock.steps(adam.warmup, "warmup")
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(moving, betas=(adam.b1, adam.b2), eps=adam.eps)
    model.train()
    step, started, since = 0, time.perf_counter(), 0.0
    while step < total:
        state = None
        for inputs, targets in windows(streams, config.data.context):
            if state is not None:
                state = tuple(part.detach() for part in state)
            logits, state = model(inputs, state)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), adam.clip)
            optimizer.param_groups[0]["lr"] = rate(step, adam, total, warmup)
            optimizer.step()
            step, since = step + 1, since + loss.item()
            if step % max(1, total // 20) == 0:
                mean = since / max(1, total // 20)
                say(f"step {step:,} of {total:,}: loss {mean:.4f}, {time.perf_counter() - started:.0f} s")
                since = 0.0
            if step == total:
                break
    return model


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.wikitext_lstm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--variant", default="wikitext,lstm,cpu", help="of experiments/recurrent_lm.py")
    parser.add_argument("--duration", default="", help="in place of the variant's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--from_ours", action="store_true", help="begin with our weights, one bias a gate")
    parser.add_argument("--output", type=Path, help="a file for the numbers, as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    overrides = {"seed": options.seed, **({"duration": options.duration} if options.duration else {})}
    config, module = configs.load(f"{EXPERIMENT}:{options.variant}", overrides)
    if not config.data.words:
        parser.error(f"--variant: received {options.variant!r}; allowed: those with wikitext")
    corpus = module.opened(config, Assets())
    ids = {part: torch.as_tensor(found).long() for part, found in corpus.ids.items()}
    started = time.perf_counter()
    size, say = corpus.tokenizer.vocab_size, functools.partial(print, flush=True)
    model = train(config, ids["train"], size, say, options.from_ours)
    facts = {
        "variant": options.variant,
        "duration": config.duration,
        "seed": config.seed,
        "from_ours": options.from_ours,
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "seconds": round(time.perf_counter() - started, 1),
        "torch": torch.__version__,
    }
    for part in ("validation", "test"):
        loss = loss_of(model, ids[part], config.data.context)
        facts |= {f"{part}/loss": loss, f"{part}/perplexity": math.exp(loss)}
        print(f"{part}: loss {loss:.4f}, perplexity {math.exp(loss):.2f}", flush=True)
    if options.output:
        options.output.write_text(json.dumps(facts, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

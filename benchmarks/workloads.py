"""What is measured: sizes, the arms of both sides, and the bars their ratios are held to."""

import dataclasses

from benchmarks.protocol import Arm


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: one of our arms against the best of some peers."""

    title: str
    ours: str
    peers: tuple[str, ...]
    bar: float
    stretch: float | None = None


@dataclasses.dataclass(frozen=True)
class Workload:
    """builder: the function of `ours` and of `peers` that makes it, called with sizes and an arm's options."""

    builder: str
    sizes: dict
    arms: tuple[Arm, ...]
    rows: tuple[Row, ...]
    unit: str = "step"


PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
TORCH = (
    Arm("torch", "peers"),
    Arm("torch, passive threads", "peers", environment=PASSIVE),
    Arm("torch, one thread", "peers", environment={"OMP_NUM_THREADS": "1"}),
    Arm("torch.compile", "peers", {"compiled": True}),
)
TORCH_BF16 = (
    Arm("torch bf16", "peers", {"precision": "bf16"}),
    Arm("torch bf16, passive threads", "peers", {"precision": "bf16"}, PASSIVE),
    Arm("torch.compile bf16", "peers", {"precision": "bf16", "compiled": True}),
)
TORCH_SMALL = (
    *TORCH,
    Arm("torch.compile, one thread", "peers", {"compiled": True}, {"OMP_NUM_THREADS": "1"}),
)
"""Where operations are so small that a second thread may cost more than it gives."""
OURS, OURS_BF16 = Arm("lmlab", "ours"), Arm("lmlab bf16", "ours", {"precision": "bf16"})
GENERATE = (
    Arm("transformers", "peers"),
    Arm("transformers, passive threads", "peers", environment=PASSIVE),
    Arm("transformers, one thread", "peers", environment={"OMP_NUM_THREADS": "1"}),
)


def names(arms: tuple[Arm, ...]) -> tuple[str, ...]:
    return tuple(arm.name for arm in arms)


def training(title, builder, sizes, bar, stretch=None, bf16=None, peers=TORCH) -> Workload:
    """Float32 against the peer's float32; with `bf16`, its (bar, stretch) against the best of both."""
    arms, rows = (OURS, *peers), [Row(title, OURS.name, names(peers), bar, stretch)]
    if bf16:
        arms += (OURS_BF16, *TORCH_BF16)
        rows.append(Row(f"{title}, bf16", OURS_BF16.name, names(peers + TORCH_BF16), *bf16))
    return Workload(builder, sizes, arms, tuple(rows))


def spread(workload: Workload) -> Workload:
    """With ours on two devices of the CPU as well: XLA's convolutions use one core of a device."""
    two = Arm("lmlab, two devices", "ours", environment={"JAX_NUM_CPU_DEVICES": "2"})
    (row,) = workload.rows
    rows = dataclasses.replace(row, ours=two.name), dataclasses.replace(row, title=f"{row.title}, one device")
    return dataclasses.replace(workload, arms=(two, *workload.arms), rows=rows)


def translating(title: str, beam_size: int) -> Workload:
    sizes = {**PAIRS, **SENTENCES, "beam_size": beam_size}
    return dataclasses.replace(training(title, "translate", sizes, 2.0, peers=TORCH_SMALL), unit="call")


SMALL = {"num_layers": 4, "num_heads": 4, "d_model": 128, "context": 64, "batch_size": 12}
LARGE = {"num_layers": 6, "num_heads": 6, "d_model": 384, "context": 256, "batch_size": 8}
RECURRENT = {"d_model": 256, "batch_size": 32, "context": 64}
NAMES = {
    "vocab_size": 27,
    "context": 3,
    "d_embed": 10,
    "hidden": 200,
    "num_examples": 182_625,
    "batch_size": 512,
}
TIED = {
    "vocab_size": 33_278,
    "d_model": 200,
    "num_layers": 2,
    "dropout": 0.2,
    "context": 35,
    "batch_size": 20,
}
PAIRS = {"vocab_size": 4000, "d_model": 256, "d_embed": 256}
SENTENCES = {"num_sentences": 1000, "shortest": 4, "longest": 16, "max_tokens": 20, "batch_size": 64}
DECODING = {"num_layers": 6, "num_heads": 6, "d_model": 384, "num_tokens": 256}
UNET = {"features": (32, 64)}
WORKLOADS = {
    "gpt_small": training("GPT 4/4/128, context 64, batch 12", "gpt", SMALL, 1.0, 1.25, (1.5, 1.8)),
    "gpt": training("GPT 6/6/384, context 256, batch 8", "gpt", LARGE, 1.0, 1.15, (1.0, 1.15)),
    "gpt_small_dropout": training("GPT 4/4/128 with dropout 0.2", "gpt", {**SMALL, "dropout": 0.2}, 1.0),
    "gpt_dropout": training("GPT 6/6/384 with dropout 0.2", "gpt", {**LARGE, "dropout": 0.2}, 1.0),
    "gru": training("GRU 256, batch 32, 64 steps", "recurrent", {**RECURRENT, "cell": "gru"}, 1.8, 2.4),
    "lstm": training("LSTM 256, batch 32, 64 steps", "recurrent", {**RECURRENT, "cell": "lstm"}, 1.0, 1.3),
    "names_mlp": training("MLP 3 x 10-200 over names, batch 512", "nplm", NAMES, 1.0, peers=TORCH_SMALL),
    "lstm_tied": training("LSTM 2/200 tied, 33,278 words, batch 20, 35 steps", "carried", TIED, 1.0),
    "seq2seq": training(
        "LSTMs 256 with attention, 4,000 tokens, batch 128, 16 to 16 steps",
        "seq2seq",
        {**PAIRS, "dropout": 0.2, "length": 16, "num_examples": 10_000, "batch_size": 128},
        1.5,
    ),
    "translate_greedy": translating("1,000 sentences translated, greedy", 1),
    "translate_beam": translating("1,000 sentences translated, beam 5", 5),
    "autoencoder": dataclasses.replace(
        training(
            "autoencoder 784-128-32, epoch of 60,000 at batch 256",
            "autoencoder",
            {"features": (128,), "code": 32, "num_examples": 60_000, "batch_size": 256},
            2.2,
            3.0,
        ),
        unit="epoch",
    ),
    "vae": dataclasses.replace(
        training(
            "VAE 784-500-20, epoch of 50,000 at batch 128",
            "vae",
            {"latent": 20, "hidden": (500,), "num_examples": 50_000, "batch_size": 128},
            2.2,
        ),
        unit="epoch",
    ),
    "cnn": spread(training("CNN of two convolutions, 28 x 28, batch 128", "cnn", {"batch_size": 128}, 1.0)),
    "unet": spread(training("U-Net 32/64, 28 x 28, batch 64", "unet", {**UNET, "batch_size": 64}, 1.0, 1.15)),
    "ddim": dataclasses.replace(
        training("64 images by DDIM of 50 steps", "ddim", {**UNET, "batch_size": 64, "num_steps": 50}, 1.5),
        unit="call",
    ),
    "sampling": Workload(
        "sampling",
        {**DECODING, "batch_size": 1},
        (OURS, *GENERATE),
        (Row("sampling 256 tokens, GPT 6/6/384, batch 1", OURS.name, names(GENERATE), 2.0, 3.5),),
        "call",
    ),
    "sampling_16": Workload(
        "sampling",
        {**DECODING, "batch_size": 16},
        (OURS, *GENERATE),
        (Row("sampling 256 tokens, GPT 6/6/384, batch 16", OURS.name, names(GENERATE), 1.8, 3.0),),
        "call",
    ),
    # What limits the others: see limits.py.
    "product": Workload("product", {}, (), ()),
    "read": Workload("read", {"numbers": 100_000_000}, (), ()),
}

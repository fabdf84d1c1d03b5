"""gensim's word vectors by the recipe of experiments/word_vectors.py:cpu: how good they are, and how fast made.

    python -m benchmarks word_vectors --seeds=3                      # skip-gram; needs gensim, WikiText-2, WordSim-353
    python -m benchmarks word_vectors --architecture=cbow --seeds=3
    python -m benchmarks word_vectors --architecture=cbow --ours     # and an epoch of ours after each run, timed

Same text without <unk>, lines as sentences, features, window, negatives, epochs, least count, subsampling and schedule
of the learning rate; the same code scores both. Words a second are those of the text, passed over or not, of
the vocabulary or not, by the wall and by the processors' time, which a busy machine spoils less. With --ours they go to
results/speed/word_vectors.json; their ratio is that of pairs a second, which both draw alike.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import protocol

SPEC = "experiments/word_vectors.py"


def lines(config) -> list[list[str]]:
    """The training text as gensim takes it."""
    from lmlab.data.corpus import Corpus
    from lmlab.experiment import Assets

    text = Corpus(config.data.path, Assets()).pieces["train"]
    sentences = [[word for word in line.split() if word != "<unk>"] for line in text.split("\n")]
    return [sentence for sentence in sentences if sentence]


def theirs(config, sentences, seed: int, workers: int) -> tuple[dict[str, float], float, float]:
    """(scores, seconds, seconds of the processors) of gensim, its vocabulary made beforehand."""
    from gensim.models import Word2Vec

    from lmlab.config import parse_duration
    from lmlab.evaluation.words import Analogies, Similarity

    recipe, rate = config.model, config.optimizer.learning_rate
    model = Word2Vec(
        vector_size=recipe.d_model,
        window=recipe.window,
        negative=recipe.negatives,
        sample=recipe.sample,
        min_count=config.data.min_count,
        sg=int(recipe.architecture == "skipgram"),
        alpha=rate,
        min_alpha=rate * config.optimizer.final,
        workers=workers,
        seed=seed,
    )
    model.build_vocab(sentences)
    wall, cpu = time.perf_counter(), time.process_time()
    epochs = int(parse_duration(config.duration)[0])
    model.train(sentences, total_examples=model.corpus_count, epochs=epochs)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    scores = {}
    for name, kind in (("similarity", Similarity), ("analogies", Analogies)):
        score = kind(config.data[name], model.wv.index_to_key, lambda model: model.wv.vectors)
        scores |= {f"{name}/{key}": value for key, value in score(model, None)[0].items()}
    return scores, wall, cpu


def ours(spec: str) -> tuple[float, float]:
    """Words a second of one epoch of ours, by the wall and by the processors' time, compilation in the latter."""
    from lmlab import run

    short = {"duration": "1 epochs", "evaluate_every": "0", "parallel.data": 1}
    with tempfile.TemporaryDirectory() as folder:
        cpu = time.process_time()
        rows = run.train(spec, Path(folder) / "run", short).metrics()
        cpu = time.process_time() - cpu
    tokens, seconds = rows[["tokens", "seconds"]].iloc[-1]
    return tokens / seconds, tokens / cpu


def record(architecture: str, workers: int, found: list[dict[str, float]]) -> dict:
    """What README's table is made of: the rates of both sides, run by run."""
    ratio = protocol.spread([each["ours_words_per_second"] / each["words_per_second"] for each in found])
    title = f"word vectors by {architecture}, an epoch of WikiText-2"
    row = {"title": title, "unit": "epoch", "ours": "lmlab", "ratio": ratio}
    row |= {"peer": f"gensim, {workers} threads", "bar": 1.0, "met": ratio["median"] >= 1.0}
    return {"rows": [row], "runs": found, **protocol.machine()}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks word_vectors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--architecture", choices=("skipgram", "cbow"), default="skipgram")
    parser.add_argument(
        "--seeds", type=protocol.count, default=3, help="how many runs of gensim, seeds from 1"
    )
    parser.add_argument("--workers", type=int, default=2, help="gensim's threads")
    parser.add_argument("--ours", action="store_true", help="time an epoch of ours after each of them")
    parser.add_argument("--busy", action="store_true", help="time it although other programs run")
    parser.add_argument("--output", type=Path, help="a JSON file of the scores, with --ours of the speed")
    options = parser.parse_args(argv)
    from lmlab import config as config_lib

    if options.ours and not options.busy:
        try:
            protocol.check_quiet()
        except protocol.Busy as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    spec = f"{SPEC}:{options.architecture},cpu"
    config, _ = config_lib.load(spec)
    sentences = lines(config)
    words = sum(map(len, sentences)) * float(config_lib.parse_duration(config.duration)[0])
    found = []
    for seed in range(1, options.seeds + 1):
        scores, wall, cpu = theirs(config, sentences, seed, options.workers)
        scores |= {"words_per_second": words / wall, "words_per_cpu_second": words / cpu}
        if options.ours:
            wall, cpu = ours(spec)
            scores |= {"ours_words_per_second": wall, "ours_words_per_cpu_second": cpu}
        print(f"seed {seed}: " + ", ".join(f"{k} {v:.5g}" for k, v in scores.items()), flush=True)
        found.append(scores)
    for name in found[0]:
        values = [scores[name] for scores in found]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"  {name}: {np.mean(values):.5g} ± {spread:.2g}")
    output = options.output or (Path("results/speed/word_vectors.json") if options.ours else None)
    if output:
        value = record(options.architecture, options.workers, found) if options.ours else found
        output.write_text(json.dumps(value, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

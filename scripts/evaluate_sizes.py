"""Evaluate references of another size than their targets: how much they should count.

    python -m scripts.evaluate_sizes --sets 32 --seed 11 --json sizes.json

The prompts of the targets name no style. Each set is drawn twice from the same noise: with a reference that counts as
one image whatever its size, as it does, and with one each of whose tokens counts as much as one of the targets' own, so
that a smaller reference counts less. The classifier tells whether a target is in the reference's style, and shows what
its prompt says.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

from style_aligned import Style, generate, load_model
from style_aligned.evaluation.classifier import load_classifier
from style_aligned.evaluation.sets import SETTINGS, draw_prompts
from style_aligned.evaluation.statistics import bootstrap_mean

TARGETS = 256  # pixels a side


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.evaluate_sizes", description=__doc__)
    parser.add_argument("--sets", type=int, default=32)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 192, 256, 320], help="of references, in pixels")
    parser.add_argument("--json", type=Path, help="file for the plain numbers, written after each set")
    given = parser.parse_args(arguments)
    model, classifier = load_model(), load_classifier()
    all_prompts = draw_prompts(classifier.concepts, classifier.styles, sets=given.sets, set_size=5, seed=given.seed)
    results: dict[str, dict[str, list[float]]] = {}
    for number, prompts in enumerate(all_prompts):
        reference, *targets = prompts.prompts(SETTINGS[1])
        for side in given.sides:
            style = Style.from_prompt(
                model, reference, seed=prompts.seeds[0], num_inference_steps=given.steps, size=(side, side)
            )
            ways = {"one image": 0.0, "its tokens": 2 * math.log(side / TARGETS)}
            for way, shift in ways.items() if side != TARGETS else [("one image", 0.0)]:
                shifted = style.with_(shift=shift)
                shifted.complete()
                start = time.process_time()  # that of all threads: other work on the machine makes little difference
                samples = list(generate(model, shifted, targets, seeds=prompts.seeds[1:], size=(TARGETS, TARGETS)))
                seconds = time.process_time() - start
                found = classifier.classify([sample.image for sample in samples])
                scores = results.setdefault(f"{side}, counts as {way}", {"style": [], "object": [], "seconds": []})
                scores["seconds"].append(seconds)
                scores["style"].append(float(np.mean([name == prompts.style for name in found.style_names])))
                same = [a == b for a, b in zip(found.concept_names, prompts.concepts[1:], strict=True)]
                scores["object"].append(float(np.mean(same)))
        if given.json:
            given.json.write_text(json.dumps(results, indent=1))
        print(f"{number + 1}/{given.sets} {reference}", file=sys.stderr, flush=True)
    print("| reference | of its style | object recognised | processor seconds for the targets |\n|---|---|---|---|")
    for name, scores in results.items():
        style, concept = bootstrap_mean(scores["style"]), bootstrap_mean(scores["object"])
        print(
            f"| {name} | {style.value:.0%} ({style.low:.0%} to {style.high:.0%})"
            f" | {concept.value:.0%} ({concept.low:.0%} to {concept.high:.0%}) | {np.median(scores['seconds']):.2f} |"
        )
    print("\nIn points, what counting as one image gives more than counting by its tokens does, set by set:\n")
    print("| reference | of its style | object recognised |\n|---|---|---|")
    for side in given.sides:
        if side != TARGETS:
            image, tokens = (results[f"{side}, counts as {way}"] for way in ("one image", "its tokens"))
            gains = [
                bootstrap_mean([100 * (a - b) for a, b in zip(image[name], tokens[name], strict=True)])
                for name in ("style", "object")
            ]
            print(f"| {side} | " + " | ".join(f"{g.value:+.0f} ({g.low:+.0f} to {g.high:+.0f})" for g in gains) + " |")


if __name__ == "__main__":
    main()

"""The ablation's results as a page."""

from __future__ import annotations

from typing import Any

from specgym.controllers.evaluation.results.plots import cut
from specgym.controllers.evaluation.results.report import speedup_cell

_HEADERS = ("variant", "weights", "batches", "ms a batch", "top-1 by step (all answers)", "(greedy)", "top-4",
            "speed-up", "τ")  # fmt: skip


def ablation_page(record: dict[str, Any]) -> str:
    """A Markdown page with one line a variant; figures are cut, never rounded up.

    Args:
        record: ``results.json`` of the ablation.
    """
    lines = [" | ".join(_HEADERS), " | ".join("---" for _ in _HEADERS)]
    lines += [" | ".join(_cells(each)) for each in record["variants"]]
    machine, cores = record["machine"], record["machine"]["cores"]
    table = "\n".join(f"| {line} |" for line in lines)
    return (
        "\n\n".join(
            [
                "# What each choice in the feature draft's making is worth",
                "Every variant differs from the base in one thing and was trained on the same text for "
                f"{record['minutes']:g} minutes on {cores} core{'s' * (cores != 1)} ({machine['cpu']}). "
                "Agreement: share of held-out positions at which the draft's first guess (top-4: one of its first "
                "four, first step, greedy answers) is the target's most probable token. Speed-up: over plain decoding, "
                "with "
                f"`{record['controller']}`, on {record['prompt_count']} built-in prompts of "
                f"{record['max_new_tokens']} tokens, temperature 0, with a 95 % interval. Fused layers: "
                f"{', '.join(map(str, record['feature_layers']))} and the last hidden state.",
                f"Started {record['started_at']}, revision {record['git_revision']}.\n\n```\n{record['command']}\n```",
                table,
            ]
        )
        + "\n"
    )


def _cells(variant: dict[str, Any]) -> tuple[str, ...]:
    return (
        variant["name"],
        f"{variant['parameters'] / 1e6:.1f} M",
        f"{variant['updates']:,}",
        f"{1000 * variant['seconds_per_update']:.0f}",
        _shares(variant["agreement"]["top1"][:3]),
        _shares(variant["greedy"]["top1"][:3]),
        cut(variant["greedy"]["top4"][0], 3),
        speedup_cell(variant["speedup"], variant["speedup_ci95"]),
        cut(variant["mean_accepted_tokens"], 2),
    )


def _shares(shares: list[float]) -> str:
    return " / ".join(cut(share, 3) for share in shares)

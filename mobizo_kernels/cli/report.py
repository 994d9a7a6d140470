"""Tables for people: what a command prints when it is not asked for JSON."""

from __future__ import annotations

from typing import Any

from mobizo_kernels.cli.task_settings import AUTOMATIC_DTYPE
from mobizo_kernels.errors import shortened

_ANSWERS = {"perplexity": "perplexity", "exact_match": "exact", "f1": "F1", "rouge_l": "ROUGE-L"}


def training_table(summary: dict[str, Any]) -> str:
    """The summary of `train`: quality before, before with a fitted bias, and after; then what it cost."""
    if "perplexity_after" in summary:
        return _answers_table(summary)
    rows = [
        ("", "accuracy", "balanced", "AUC"),
        ("zero-shot", *_quality(summary, "before")),
        ("zero-shot, calibrated", _percent(summary["calibrated_accuracy_before"]), "", ""),
        *([("after the readout", *_quality(summary, "start"))] if "auc_start" in summary else []),
        ("after tuning", *_quality(summary, "after")),
    ]
    error = (summary["accuracy_after"] * (1 - summary["accuracy_after"]) / summary["eval_rows"]) ** 0.5
    settings = summary["settings"]
    return "\n".join(
        [
            f"{settings['model']} on {settings['data']}, {summary['eval_rows']} test rows "
            f"(standard error {100 * error:.1f} points)",
            *(f"  {name:<22}{accuracy:>10}{balanced:>10}{auc:>8}" for name, accuracy, balanced, auc in rows),
            *_cost(summary),
        ]
    )


def _answers_table(summary: dict[str, Any]) -> str:
    """The same where answers are free."""
    settings = summary["settings"]
    rows = [("", *_ANSWERS.values())]
    for name, when in (("zero-shot", "before"), ("after tuning", "after")):
        perplexity, *shares = (summary[f"{metric}_{when}"] for metric in _ANSWERS)
        rows.append((name, f"{perplexity:.3f}", *map(_percent, shares)))
    return "\n".join(
        [
            f"{settings['model']} on {settings['data']}, {summary['eval_rows']} answers",
            *(f"  {name:<22}" + "".join(f"{cell:>12}" for cell in cells) for name, *cells in rows),
            *_cost(summary),
        ]
    )


def _cost(summary: dict[str, Any]) -> list[str]:
    return _aligned(
        {
            "step time (median)": _milliseconds(summary["step_ms_median"]),
            "steps": f"{summary['steps']} ({_stopped(summary)}{summary['skipped_steps']} skipped, "
            f"adapter kept from step {summary['best_step']})",
            "peak memory": f"{summary['peak_rss_mb']:.0f} MB",
            **_program_size(summary),
            "adapter size": f"{summary['adapter_bytes'] / 1e6:.1f} MB",
            "written to": summary["settings"]["out"],
        }
    )


def plan_table(plan: dict[str, Any]) -> str:
    """What a dry run found."""
    settings = plan["settings"]
    shortest, middle, longest = plan["tokens_of_a_row"]
    minutes = {name: plan[f"{name}_seconds"] / 60 for name in ("tuning", "scoring")}
    classes = ", ".join(f"{count} of {label!r}" for label, count in plan["classes"].items())
    return "\n".join(
        [
            f"{settings['model']} on {settings['data']}: nothing has been written",
            *_aligned(
                {
                    "rows": f"{plan['train_rows']} to train on, {plan['validation_rows']} to validate, "
                    f"{plan['test_rows']} to test",
                    "classes": classes or "free answers",
                    "tokens of a row": f"{shortest} to {longest}, median {middle:g}",
                    "steps": f"{plan['steps']} of {plan['rows_of_a_step']} rows and {plan['groups']} groups: "
                    f"{plan['times_round']:g} times round",
                    "adapters": f"{plan['adapted_linears']} linears, {plan['tuned_parameters']} parameters",
                    "peak memory": f"{plan['peak_rss_mb']:.0f} MB, measured",
                    "step": f"{1e3 * plan['step_seconds']:.0f} ms, measured",
                    "all steps": f"{minutes['tuning']:.1f} min, of that one",
                    "scoring": f"{minutes['scoring']:.1f} min for {plan['rows_scored']} rows, of a few"
                    + ("" if plan["classes"] else "; what the model writes comes on top"),
                }
            ),
        ]
    )


def bench_table(result: dict[str, Any]) -> str:
    """The result of `bench`."""
    settings = result["settings"]
    return "\n".join(
        [
            f"{settings['model']}, {result['parameters'] / 1e6:.0f} million parameters in "
            f"{settings['dtype']}; {settings['batch_size']} rows of {settings['tokens']} tokens; "
            f"{result['kernels']}, {result['threads']} threads",
            *_aligned(
                {
                    "bare forward": f"{result['forward_ms']:.0f} ms",
                    f"step, {result['groups']} groups": f"{result['step_ms']:.0f} ms: "
                    f"{result['step_per_forward']:.2f} x the forward",
                    "noise, in place": f"{result['noise_gb_per_s']:.1f} GB/s ({settings['distribution']})",
                    "copy": f"{result['copy_gb_per_s']:.1f} GB/s",
                    "peak memory": f"{result['peak_rss_mb']:.0f} MB",
                }
            ),
        ]
    )


def interrupted(summary: dict[str, Any]) -> str:
    """What to say of a run that was told to end early."""
    settings = summary["settings"]
    return (
        f"interrupted after {summary['steps']} of {settings['steps']} steps; the adapter of step "
        f"{summary['best_step']} is in {settings['out']}, its test rows are not scored"
    )


def demo_table(summaries: dict[str, dict[str, Any]]) -> str:
    """The summaries of `demo`, a column for each engine."""
    names = {"executorch": "ExecuTorch", "eager": "torch"}
    columns = [_demo_column(summary) for summary in summaries.values()]
    first = next(iter(summaries.values()))
    settings = first["settings"]
    lines = [
        f"{settings['model']} on {settings['data']}, {first['eval_rows']} test rows; quality is accuracy, "
        "balanced accuracy, AUC",
        f"  {'':<24}" + "".join(f"{names[engine]:>26}" for engine in summaries),
        *(f"  {row:<24}" + "".join(f"{column[row]:>26}" for column in columns) for row in columns[0]),
        *_written(first.get("written", [])),
    ]
    return "\n".join(lines)


def _written(answers: list[dict[str, str]]) -> list[str]:
    """What a program wrote before it was tuned and after."""
    if not answers:
        return []
    lines = ["what the .pte writes, behind a review from the likelier of its words on"]
    for answer in answers:
        lines.append(f"  {answer['prompt']}")
        lines += [f"    {when:<8}{shortened(answer[when], 80)}" for when in ("before", "after")]
    return lines


def _demo_column(summary: dict[str, Any]) -> dict[str, str]:
    inside = "program_bytes" in summary
    differ = summary.get("peft_rows_that_differ")
    return {
        "base weights": _base_weights(summary["settings"]),
        "zero-shot": "  ".join(_quality(summary, "before")),
        "zero-shot, calibrated": _percent(summary["calibrated_accuracy_before"]),
        "after the readout": "  ".join(_quality(summary, "start")) if "auc_start" in summary else "-",
        "after tuning": "  ".join(_quality(summary, "after")),
        "step time (median)": _milliseconds(summary["step_ms_median"]),
        "steps, best": f"{summary['steps']}, {summary['best_step']}",
        "peak memory of process": f"{summary['peak_rss_mb']:.0f} MB",
        "program (.pte)": f"{summary['program_bytes'] / 1e6:.0f} MB" if inside else "-",
        "adapter": f"{summary['adapter_bytes'] / 1e6:.1f} MB",
        "in transformers + PEFT": f"{_percent(summary['peft_accuracy'])}" if inside else "-",
        "rows predicted otherwise": "-" if differ is None else f"{differ} of {summary['eval_rows']}",
    }


def _base_weights(settings: dict[str, Any]) -> str:
    if settings["quantization"] != "none":
        return settings["quantization"]
    return AUTOMATIC_DTYPE[settings["engine"]] if settings["dtype"] == "auto" else settings["dtype"]


def evaluation_table(result: dict[str, Any]) -> str:
    """The result of `evaluate`."""
    if "perplexity" in result:
        shown = {
            name: _percent(result[metric]) for metric, name in _ANSWERS.items() if metric != "perplexity"
        }
        perplexity = {"perplexity": f"{result['perplexity']:.3f}"}
        return "\n".join(_aligned({**perplexity, **shown, "answers": result["rows"]}))
    auc = result["auc"]
    return "\n".join(
        _aligned(
            {
                "accuracy": _percent(result["accuracy"]),
                "balanced accuracy": _percent(result["balanced_accuracy"]),
                "AUC": "-" if auc is None else f"{auc:.3f}",
                "test rows": result["rows"],
                "peak memory": f"{result['peak_rss_mb']:.0f} MB",
            }
        )
    )


def answers_text(result: dict[str, Any]) -> str:
    """The result of `generate`: the answers, with a blank line between two."""
    return "\n\n".join(result["answers"])


def environment_table(environment: dict[str, Any]) -> str:
    """What `environment` found."""
    return "\n".join(_aligned({name: "-" if value is None else value for name, value in environment.items()}))


def plain_table(values: dict[str, Any]) -> str:
    """Names and values, one a line, but for the settings."""
    shown = {name.replace("_", " "): value for name, value in values.items() if name != "settings"}
    return "\n".join(_aligned(shown))


def _aligned(values: dict[str, Any]) -> list[str]:
    return [f"  {name:<22}{value}" for name, value in values.items()]


def _quality(summary: dict[str, Any], when: str) -> tuple[str, str, str]:
    auc = summary[f"auc_{when}"]
    return (
        _percent(summary[f"accuracy_{when}"]),
        _percent(summary[f"balanced_accuracy_{when}"]),
        "-" if auc is None else f"{auc:.3f}",
    )


def _stopped(summary: dict[str, Any]) -> str:
    if not summary["stopped"]:
        return ""
    return f"of {summary['settings']['steps']}: stopped, for the loss ran away, "


def _program_size(summary: dict[str, Any]) -> dict[str, str]:
    if "program_bytes" not in summary:
        return {}
    return {"program size": f"{summary['program_bytes'] / 1e6:.1f} MB"}


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"

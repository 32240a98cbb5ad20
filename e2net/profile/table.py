"""The table of ``python -m e2net.profile``, and its verdict in one sentence."""

import os

from e2net.profile.measure import PARTS, Parts

# From this part of the time on, waiting for data is what to change first.
_DATA_LIMIT = 0.2
_VALIDATION_LIMIT = 0.3
# Under it a GPU mostly waits for the next kernel to be launched, or for memory.
_LOW_MFU = 0.1
_BAR = 24


def format_table(found: Parts) -> str:
    """Head, one line for each part, throughput and MFU; at most 80 columns, but for a long device name."""
    whole = sum(found.seconds.values())
    lines = [found.about, "", f"{'part':<12}{'ms/step':>10}{'share':>8}"]
    for part in PARTS:
        seconds = found.seconds[part]
        lines.append(f"{part:<12}{seconds * 1e3:>10.2f}{seconds / whole:>8.1%}  {'█' * round(_BAR * seconds / whole)}")
    images = found.facts["batch_size"] / found.step
    lines.append(f"{'sum':<12}{whole * 1e3:>10.2f}{1:>8.0%}  {images:.1f} images/s in training")
    lines.append("")
    lines.append(
        f"MFU {found.mfu:.1%}: {_flops(found.flops / found.step)}/s of {_flops(found.peak)}/s "
        f"(a {found.dtype} matrix product)"
    )
    if found.memory is not None:
        lines.append(f"GPU memory: at most {found.memory / 2**30:.2f} GiB")
    return "\n".join(lines)


def verdict(found: Parts) -> str:
    """One sentence: the bottleneck, and what to change."""
    facts, seconds = found.facts, found.seconds
    whole = sum(seconds.values())
    share = {part: value / whole for part, value in seconds.items()}
    if share["data wait"] > _DATA_LIMIT:
        return f"Bottleneck: waiting for data ({share['data wait']:.0%}); {_faster_data(found)}."
    if share["validation"] > _VALIDATION_LIMIT:
        return (
            f"Bottleneck: validation ({share['validation']:.0%}); validate less often by "
            "trainer.check_val_every_n_epoch=2 or more, or less by a smaller data.val_fraction."
        )
    # The backward pass of a part takes about as long as its forward pass, times a factor that all parts have.
    forward = seconds["encoder"] + seconds["decoder"] or 1.0
    of_encoder = 0.0 if facts["frozen"] else seconds["encoder"] / forward
    groups = {
        "the encoder": share["encoder"] + of_encoder * share["backward"],
        "the decoder": share["decoder"] + (1 - of_encoder) * share["backward"],
        "the loss": share["loss"],
        "the optimiser": share["optimiser"],
        "copying batches to the device": share["transfer"],
    }
    name = max(groups, key=lambda key: groups[key])
    return f"Bottleneck: {name} ({groups[name]:.0%}); {_remedy(name, found)}."


def _faster_data(found: Parts) -> str:
    facts = found.facts
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if facts["cached"]:
        return "the feature cache is read from a slow disk: put cache.folder on a faster one, or in memory"
    if facts["num_workers"] < cores - 1 or facts["num_workers"] == 0:
        return f"raise data.num_workers (now {facts['num_workers']}, this machine has {cores} cores)"
    cache = "keep features by cache.views=1, or " if facts["frozen"] else ""
    return f"all {cores} cores read already: {cache}store the images smaller, or switch off parts of data.augment"


def _remedy(name: str, found: Parts) -> str:
    facts = found.facts
    if name == "the encoder":
        if facts["frozen"]:
            return "it is frozen, so keep its features by cache.views=1 (or more views) and run it once an image"
        lighter = "train less of it by tuning=adapter or lora, or a smaller size"
        return lighter if facts["compiled"] or not facts["cuda"] else f"compile=true, or {lighter}"
    if facts["cuda"] and found.mfu < _LOW_MFU:
        compiled = "" if facts["compiled"] else ", and compile=true"
        return f"the GPU is hardly used (MFU {found.mfu:.0%}): larger batches by data.batch_size=auto{compiled}"
    if name == "the decoder":
        return "where it must be faster, less decoder.width or a smaller size"
    if name == "the loss":
        return "give fewer kinds of maps a weight (loss=...), or a smaller size"
    if name == "the optimiser":
        return "train less by tuning=adapter or frozen, or step less often by trainer.accumulate_grad_batches=2"
    return "give the copy to more workers by data.num_workers, or reduce size"


def _flops(value: float) -> str:
    for unit, factor in (("PFLOP", 1e15), ("TFLOP", 1e12)):
        if value >= factor:
            return f"{value / factor:.2f} {unit}"
    return f"{value / 1e9:.1f} GFLOP"

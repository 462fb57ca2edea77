"""Why a plan recommends what it does, and shapes, bytes and seconds in words."""

from __future__ import annotations

from typing import Sequence

from hvtrain.hybrid.cluster import Cluster
from hvtrain.hybrid.prediction import Prediction, Shape


def reason(predictions: Sequence[Prediction], best: Prediction, cluster: Cluster, used: Cluster,
           global_batch: int) -> str:
    """Why ``best`` of ``predictions``: what the alternatives would take, or need; and why it takes no more than the
    ``used`` machines of ``cluster``, if it does not."""
    said = _about_stages(predictions, best, cluster) + _about_replicas(predictions, best)
    same = [found for found in predictions if found.shape.stages == best.shape.stages and found.fits]
    if best.shape.recompute and not any(not found.shape.recompute for found in same):
        said += " Without recomputation it does not fit."
    if best.shape.serial:
        said += (" With one micro-batch its stages take turns; with a larger data.global_batch they would compute at the "
                 "same time.")
    exact = min((found.seconds for found in same if found.shape.codec == "none"), default=best.seconds)
    if exact > best.seconds and best.shape.codec != "none":
        said += (f" {best.shape.codec} saves {1 - best.seconds / exact:.0%} of the step; it rounds gradients, so compare "
                 "the loss with comm.codec=none once.")
    return said + _about_samples(best, cluster, used, global_batch)


def _about_stages(predictions: Sequence[Prediction], best: Prediction, cluster: Cluster) -> str:
    alike = [found for found in predictions if found.shape.codec == best.shape.codec]
    whole = [found for found in alike if found.shape.stages == 1]
    cut = [found for found in alike if found.shape.stages > 1 and (best.shape.serial or not found.shape.serial)]
    if best.shape.stages == 1:
        if not any(found.shape.stages > 1 for found in alike):
            own = cluster.cores is None
            return "There is one device for each replica." if own else "There are no stages to compare with."
        if not cut:
            return "With one sample for each replica stages would only take turns."
        other = min((found for found in cut if found.fits), default=None,
                    key=lambda found: (found.crowded, found.seconds))
        if other is None:
            return "No shape with more stages fits the memory."
        return f"Nothing gains by stages here: {describe(other.shape)} would take {_times(other, best)}."
    if not whole:
        return "It is the fastest with that many stages."
    fitting = [found for found in whole if found.fits]
    if not fitting:
        least = min(max(found.memory) for found in whole)
        cored = " and have a core for each stage" if any(found.crowded for found in cut) and not best.crowded else ""
        return (f"The whole model does not fit a device: it needs at least {amount(least)}, and there are "
                f"{amount(cluster.memory or 0)}. Of the shapes that fit{cored} this is the fastest.")
    plain = min(fitting, key=lambda found: found.seconds)
    text = f"One stage ({describe(plain.shape)}) would take {_times(plain, best)}"
    if plain.waiting > best.waiting and plain.waiting > 0.05 * plain.seconds:
        return f"{text}, {plain.waiting / plain.seconds:.0%} of it waiting for gradients."
    return f"{text}."


def _about_replicas(predictions: Sequence[Prediction], best: Prediction) -> str:
    """Of those with as many stages the fastest with another number of replicas."""
    own = best.shape
    others = [found for found in predictions if found.fits and found.shape.replicas != own.replicas
              and (found.shape.stages, found.shape.codec) == (own.stages, own.codec)
              and own.serial >= found.shape.serial]
    if not others:
        return ""
    other = min(others, key=lambda found: found.seconds)
    return f" {describe(other.shape)[:1].upper()}{describe(other.shape)[1:]} would take {_times(other, best)}."


def _about_samples(best: Prediction, cluster: Cluster, used: Cluster, global_batch: int) -> str:
    """That devices stand idle because no further replica would have a sample."""
    shape = best.shape
    idle = used.nodes < cluster.nodes or cluster.cores is None and shape.replicas * shape.stages < cluster.devices
    if shape.replicas != global_batch or not idle:
        return ""
    where = (f"{shape.replicas * shape.stages} of the {cluster.devices} devices" if cluster.nodes == 1 else
             f"{used.nodes} of the {cluster.nodes} machines")
    return (f" {_count(global_batch, 'sample')} a step are work for {_count(global_batch, 'replica')} and no more, so it "
            f"takes {where}; a larger data.global_batch has use for more.")


def describe(shape: Shape) -> str:
    """In words: "4 replicas x 2 stages, 8 micro-batches, recomputing"."""
    parts = [f"{_count(shape.replicas, 'replica')} x {_count(shape.stages, 'stage')}"]
    parts += [_count(shape.microbatches, "micro-batch", "micro-batches")]
    parts += ["recomputing"] if shape.recompute else []
    parts += [shape.codec] if shape.codec != "none" else []
    return ", ".join(parts)


def amount(size: float) -> str:
    """Bytes with a unit, three digits."""
    power = next((power for power in range(4) if size < 999.5 * 1000**power), 4)
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float) -> str:
    """Seconds or milliseconds, three digits."""
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1000:.3g} ms"


def _times(found: Prediction, best: Prediction) -> str:
    return f"{duration(found.seconds)}, {found.seconds / best.seconds:.2f} times as long"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"

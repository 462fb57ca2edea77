"""What a step in a given shape takes, and which shape is recommended, on costs for which the answer can be worked out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hvtrain.errors import UsageError
from hvtrain.hybrid.cluster import Cluster, bytes_per_second
from hvtrain.hybrid.costs import LayerCost, ModelCosts
from hvtrain.hybrid.planner import Choice, amount, describe, plan, recommend, shapes
from hvtrain.hybrid.prediction import Shape, predict
from hvtrain.hybrid.speeds import Speeds

MB = 10**6


def costs(count=4, *, forward=0.1, backward=0.2, parameters=100 * MB, saved=10 * MB, batch=8, **more):
    """Equal layers, measured with ``batch`` samples; seconds and bytes."""
    layers = tuple(LayerCost(f"layer{number}", forward, backward, parameters, saved, 1 * MB) for number in range(count))
    return Speeds((ModelCosts(layers, batch, "cuda:0", **more),))


def test_one_device_takes_the_sum_of_its_layers():
    """8 samples in one micro-batch: 4 x (0.1 + 0.2), the optimizer's 0.05 after it; the loss 0.01."""
    found = predict(costs(update=0.05, overhead=0.01), Cluster(), Shape(1, 1, 1), 8)
    assert found.seconds == pytest.approx(1.26) and found.waiting == found.communication == found.sent == 0
    assert found.memory == (2 * 400 * MB + 40 * MB,) and found.split == (4,) and found.bubble == pytest.approx(0)


def test_stages_take_the_pipelines_time():
    """K equal stages, M micro-batches: (M + K - 1) turns of a stage, a micro-batch being 1/M of what was measured."""
    found = predict(costs(), Cluster(devices=2), Shape(1, 2, 4), 8)
    stage = 2 * 0.3 / 4
    assert found.compute == pytest.approx((4 + 2 - 1) * stage, rel=1e-3)  # some more for what crosses the border
    assert found.bubble == pytest.approx(1 / 5, abs=1e-3) and found.split == (2, 2)
    # 1f1b keeps two micro-batches on the first stage, one on the second
    assert found.memory == (2 * 200 * MB + 2 * 5 * MB, 2 * 200 * MB + 5 * MB)


def test_recomputation_costs_a_forward_pass_and_saves_activations():
    plain, again = (predict(costs(), Cluster(), Shape(1, 1, 1, recompute), 8) for recompute in (False, True))
    assert again.compute == pytest.approx(plain.compute + 4 * 0.1) and again.memory[0] <= plain.memory[0]
    many = [predict(costs(), Cluster(), Shape(1, 1, 4, recompute, schedule="gpipe"), 8) for recompute in (False, True)]
    assert many[0].memory[0] == 800 * MB + 40 * MB and many[1].memory[0] == 800 * MB + 10 * MB


def test_the_last_stage_may_have_nothing_to_recompute():
    """PyTorch's runs backward right after forward, so that it can keep what forward has made; and as it has less to do for
    each layer, it is given more of them: with 4 units of time against 3, 8 layers against 12, not 10 and 10."""
    four, twenty = ([predict(replace(each, always_recomputes=always), Cluster(devices=2), Shape(1, 2, 4, True), 8)
                     for always in (True, False)] for each in (costs(), costs(20)))
    stage = 2 * 0.3 / 4
    assert four[0].compute == pytest.approx((4 + 2 - 1) * stage * 4 / 3, rel=1e-3)
    assert four[1].compute < four[0].compute
    assert [found.split for found in twenty] == [(10, 10), (8, 12)]


def test_with_one_micro_batch_at_a_time_nothing_is_recomputed():
    """Its backward pass follows right after its forward pass, on every one of PyTorch's stages; Keras's always recompute."""
    both, none = (predict(replace(costs(), always_recomputes=always), Cluster(devices=2), Shape(1, 2, 1, True), 8)
                  for always in (True, False))
    assert both.compute == pytest.approx(1.2 + 0.4, rel=1e-3) and none.compute == pytest.approx(1.2, rel=1e-3)


def test_gradients_hide_behind_backward():
    """A layer's 100 MB leave when backward has passed it, and a ring of two sends as many: all but the first layer's
    hide where that takes less time than a layer's backward."""
    cluster = Cluster(nodes=2, network=1000.0 * MB, latency=0)
    found = predict(costs(), cluster, Shape(2, 1, 1), 16)
    assert found.communication == pytest.approx(0.4) and found.sent == 400 * MB
    assert found.waiting == pytest.approx(0.1)
    slow = predict(costs(), Cluster(nodes=2, network=250.0 * MB, latency=0), Shape(2, 1, 1), 16)
    assert slow.communication == pytest.approx(1.6) and slow.waiting == pytest.approx(1.6 - 3 * 0.2)
    late = predict(costs(), Cluster(nodes=2, network=1e15, latency=0.5), Shape(2, 1, 1), 16)
    assert late.waiting == pytest.approx(0.5) and predict(costs(), Cluster(latency=0.5), Shape(1, 1, 1), 16).waiting == 0


@pytest.mark.parametrize("codec, part", [("fp16", 0.5), ("bf16", 0.5), ("int8", 0.25)])
def test_codecs_send_less(codec, part):
    cluster = Cluster(nodes=2, network=250.0 * MB)
    found = predict(costs(), cluster, Shape(2, 1, 1, codec=codec), 16)
    assert found.sent == 400 * MB * part and found.communication == pytest.approx(1.6 * part)


def test_stages_that_are_done_early_reduce_while_others_compute():
    """The last stage of two ends its last backward pass first: its gradients travel behind the first one's."""
    cluster = Cluster(nodes=2, devices=2, network=1000.0 * MB, link=1e15, latency=0)
    found = predict(costs(), cluster, Shape(2, 2, 1), 16)
    assert found.communication == pytest.approx(0.4) and found.waiting == pytest.approx(0.1)


def test_replicas_of_a_host_add_up_before_anything_crosses_the_network():
    inside = predict(costs(), Cluster(nodes=1, devices=4, link=1e9), Shape(4, 1, 1), 32)
    assert inside.sent == 0 and inside.communication == pytest.approx(2 * 3 / 4 * 0.4)
    both = predict(costs(), Cluster(nodes=2, devices=4, link=1e9, network=1e9), Shape(8, 1, 1), 64)
    assert both.sent == 400 * MB and both.communication == pytest.approx(2 * 3 / 4 * 0.4 + 0.4)


def test_threads_of_a_processor_share_its_cores():
    """Two stages on one core are no faster than one; one stage with two threads is, by the part that threads share."""
    two = predict(costs(), Cluster(devices=2, cores=1), Shape(1, 2, 8), 8)
    assert two.compute == pytest.approx(1.2)
    quicker = Speeds(costs().alone, threaded=costs(forward=0.075, backward=0.15).alone, threads=2)
    wide = predict(quicker, Cluster(devices=1, cores=2), Shape(1, 1, 1), 8)
    assert wide.threads == 2 and wide.compute == pytest.approx(1.2 * 0.75)
    both = predict(quicker, Cluster(devices=2, cores=2), Shape(1, 2, 8), 8)
    assert both.threads == 1 and both.compute == pytest.approx(1.2 / 8 * 9 / 2)


def test_adding_up_hides_behind_nothing_where_all_cores_compute():
    """Two replicas on two cores add their 400 MB up on the same two; on devices of their own it hides behind backward."""
    busy, hidden = (predict(costs(), Cluster(devices=2, cores=cores, link=1e9, latency=0), Shape(2, 1, 1), 16).waiting
                    for cores in (2, None))
    assert busy == pytest.approx(0.4) and hidden == pytest.approx(0.1)


def test_stages_and_replicas_that_compute_at_once_share_the_memory():
    """A pipeline was predicted to take half of what it took: each stage as fast as if it had the processor for itself."""
    crowded = Speeds(costs().alone, beside=costs(forward=0.15, backward=0.3, update=0.2).alone, threads=2, at_once=2)
    cluster = Cluster(devices=2, cores=2, latency=0, link=1e15)
    pipeline = predict(crowded, cluster, Shape(1, 2, 8), 8)  # 9 turns, in the first and the last of which one computes
    turn = 1.2 / 8 / 2
    assert pipeline.compute == pytest.approx(turn * (0.1 + 0.2 + 1.5 * 0.3 * 8 - 0.15 * 2) / 0.3, rel=0.1)
    both = predict(crowded, cluster, Shape(2, 1, 1), 8)
    assert both.compute == pytest.approx(1.5 * 0.6)
    one = predict(crowded, Cluster(devices=1, cores=2), Shape(1, 1, 1), 8)
    assert one.compute == pytest.approx(1.2)


def test_more_stages_than_cores_only_where_memory_asks_for_them():
    stages = Choice(replicas=1, stages=(1, 2, 3, 4))
    found = plan(costs(), Cluster(devices=2, cores=2), 8, stages)
    assert found.best.shape.stages <= 2 and any(prediction.crowded for prediction in found.predictions)
    tight = plan(costs(), Cluster(devices=2, cores=2, memory=300 * MB), 8, stages)
    assert tight.best.shape.stages == 4 and tight.best.crowded


def test_a_device_twice_as_fast_takes_half_the_time():
    slow, fast = (predict(costs(update=0.1), Cluster(speed=speed), Shape(1, 1, 1), 8) for speed in (1.0, 2.0))
    assert fast.seconds == pytest.approx(slow.seconds / 2) and fast.memory == slow.memory


def test_a_given_split_is_predicted_as_it_is():
    found = predict(costs(), Cluster(devices=2), Shape(1, 2, 4), 8, split=(1, 3))
    assert found.split == (1, 3) and found.bubble > 0.3
    with pytest.raises(UsageError, match="5 layers in 2 stages"):
        predict(costs(), Cluster(devices=2), Shape(1, 2, 4), 8, split=(2, 3))


def test_never_more_micro_batches_than_samples():
    found = predict(costs(), Cluster(), Shape(4, 1, 64), 8)
    assert found.shape.microbatches == 2


def test_all_shapes_of_a_node_come_into_question():
    found = list(shapes(Cluster(nodes=2, devices=6), 4, 48, Choice(codecs=("none", "fp16"))))
    assert {(shape.replicas, shape.stages) for shape in found} == {(12, 1), (6, 2), (4, 3)}  # 6 stages: too few layers
    assert {shape.microbatches for shape in found if shape.stages == 3} == {1, 2, 3, 4, 6, 8, 12}  # a share has 12
    assert {(shape.recompute, shape.codec) for shape in found} == {(a, b) for a in (False, True) for b in ("none", "fp16")}
    assert not any(shape.recompute for shape in found if shape.microbatches == 1)  # it would save nothing
    only = list(shapes(Cluster(devices=6), 4, 48, Choice(replicas=3, stages=(2,), microbatches=5, recompute=(False,))))
    assert only == [Shape(3, 2, 5)]


def test_no_replica_goes_without_samples():
    found = {shape.replicas for shape in shapes(Cluster(nodes=8, devices=4), 4, 16, Choice())}
    assert found == {16, 8}


def test_more_stages_than_layers_is_refused_with_the_number():
    with pytest.raises(UsageError, match="5 stages need at least 5 layers, but the model can be cut into 4.*at most 4"):
        plan(costs(), Cluster(devices=5), 16, Choice(stages=(5,)))


def test_a_model_that_fits_stays_whole_where_the_network_is_fast():
    found = plan(costs(), Cluster(nodes=2, devices=2, memory=10**12, network=1e12, link=1e12), 64, Choice())
    assert found.best.shape == Shape(4, 1, 1)
    assert "Nothing gains by stages here" in found.reason and "2 stages" in found.reason


def test_stages_are_recommended_where_the_model_does_not_fit():
    found = plan(costs(), Cluster(devices=4, memory=500 * MB), 32, Choice())
    assert found.best.shape.stages == 2 and max(found.best.memory) <= 500 * MB
    assert "does not fit a device: it needs at least 8" in found.reason and "there are 500 MB" in found.reason
    assert all(prediction.problem for prediction in found.predictions if prediction.shape.stages == 1)


def test_stages_are_recommended_where_gradients_would_take_longer():
    """Two hosts of two devices, a slow link everywhere: two replicas exchange less than four."""
    found = plan(costs(count=8, saved=0), Cluster(nodes=2, devices=2, link=500.0 * MB, network=500.0 * MB), 32, Choice())
    assert found.best.shape.stages == 2
    assert "One stage (4 replicas x 1 stage, 1 micro-batch) would take" in found.reason
    assert "waiting for gradients" in found.reason


def test_recomputation_is_recommended_only_where_it_must_be():
    big = costs(count=4, parameters=10 * MB, saved=800 * MB)
    choice = Choice(microbatches=4)
    free = plan(big, Cluster(devices=4, memory=10**12), 32, choice)
    assert not free.best.shape.recompute
    tight = plan(big, Cluster(devices=2, memory=900 * MB), 16, Choice(stages=(2,), microbatches=4))
    assert tight.best.shape.recompute and "Without recomputation it does not fit" in tight.reason


def test_a_codec_must_be_worth_its_rounding():
    quick = plan(costs(), Cluster(nodes=2, network=1e12), 16, Choice(codecs=("none", "fp16", "int8")))
    assert quick.best.shape.codec == "none"
    slow = plan(costs(), Cluster(nodes=2, network=100.0 * MB), 16, Choice(codecs=("none", "fp16", "bf16", "int8")))
    assert slow.best.shape.codec == "int8" and "int8 saves" in slow.reason and "rounds gradients" in slow.reason
    mild = plan(costs(), Cluster(nodes=2, network=350.0 * MB), 16, Choice(codecs=("none", "fp16", "bf16", "int8")))
    assert mild.best.shape.codec == "fp16"  # with which the rest hides behind backward
    given = plan(costs(), Cluster(nodes=2, network=100.0 * MB), 16, Choice(codecs=("fp16",)))
    assert given.best.shape.codec == "fp16"


def test_the_simpler_of_two_equal_shapes():
    """More micro-batches than one change nothing on one device, so one is recommended."""
    found = plan(costs(), Cluster(), 8, Choice())
    assert found.best.shape == Shape(1, 1, 1)


def test_nothing_fits_and_the_message_says_how_much_is_missing():
    with pytest.raises(UsageError) as error:
        plan(costs(), Cluster(devices=2, memory=100 * MB), 8, Choice(recompute=(False,)))
    text = str(error.value)
    assert "needs the least, 40" in text and "that has 100 MB" in text
    assert "hybrid.stages" in text and "hybrid.recompute=true" in text


def test_recommending_is_stable():
    found = plan(costs(), Cluster(nodes=4, devices=8, memory=600 * MB), 256, Choice(codecs=("none", "fp16")))
    assert recommend(found.predictions[::-1], found.cluster) == found.best == plan(
        costs(), Cluster(nodes=4, devices=8, memory=600 * MB), 256, Choice(codecs=("none", "fp16"))).best


@pytest.mark.parametrize("text, rate", [
    ("100Gbit", 12.5e9), ("10Gbit/s", 1.25e9), ("12.5GB", 12.5e9), ("300 GB/s", 300e9), ("200mbit", 25e6), ("1Gbps", 125e6),
    ("2GBps", 2e9), ("8bit", 1.0)])
def test_bandwidths(text, rate):
    assert bytes_per_second(text) == rate


@pytest.mark.parametrize("text", ["100", "fast", "100G", "-1Gbit", "0Gbit", "10 Gbit per second", ""])
def test_no_bandwidths(text):
    with pytest.raises(UsageError, match="100Gbit"):
        bytes_per_second(text)


def test_words():
    assert describe(Shape(1, 2, 8, True, "fp16")) == "1 replica x 2 stages, 8 micro-batches, recomputing, fp16"
    sizes = (0, 999, 1000, 83_400_000_000, 2 * 10**12)
    assert [amount(size) for size in sizes] == ["0 B", "999 B", "1 kB", "83.4 GB", "2 TB"]

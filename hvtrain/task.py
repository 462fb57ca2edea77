"""What a user writes: a Task says which model learns from which data by which loss."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from hvtrain.callbacks import Callback


class Task:
    """The part of a training job that only its author knows. Subclass it and fill in the first three.

    One instance lives in every worker. The same class serves PyTorch and Keras; what differs is only what
    the methods compute with. A task is built as ``target(**args)`` from ``task.target`` and ``task.args`` of
    the job file, so its constructor's arguments are the task's settings.

    Example::

        class Digits(Task):
            def model(self):
                return nn.Linear(64, 10)

            def data(self, split):
                images, labels = load(split)
                return ArraySource(images, labels)

            def loss(self, outputs, batch):
                return F.cross_entropy(outputs, batch[1], reduction="none")
    """

    averaged_buffers: Sequence[str] = ()
    """Glob patterns of buffers, beside those of the normalisation layers, that the forward pass changes and
    that are to be averaged over the ranks with every step. With Keras: of non-trainable variables, see
    :mod:`hvtrain.adapters.keras.variables` for their names."""

    def model(self) -> Any:
        """Build the model. Random initial weights come from ``run.seed``, so all workers build equal ones."""
        raise NotImplementedError(f"{type(self).__name__} must define model(self)")

    def data(self, split: str) -> Any:
        """The samples of ``split``, ``"train"`` or ``"eval"``; None for eval means: no evaluation.

        Anything with ``__len__`` and ``__getitem__`` will do (a PyTorch Dataset, for example); see
        :mod:`hvtrain.data` for faster and for augmenting forms.
        """
        raise NotImplementedError(f"{type(self).__name__} must define data(self, split)")

    def loss(self, outputs: Any, batch: Any) -> Any:
        """The loss of each sample, shape ``(B,)``; a scalar is taken for the mean over the ``B`` samples."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(self, outputs, batch)")

    def inputs(self, batch: Any) -> Any:
        """What the model is called with: a tuple is spread over its arguments, a dict over its keywords.

        The default takes the first element of a pair ``(inputs, targets)``, else the batch itself. A Keras model that
        takes several inputs as one argument, as Sequential and functional ones do, gets them so.
        """
        return batch[0] if isinstance(batch, (tuple, list)) and len(batch) > 1 else batch

    def metrics(self, outputs: Any, batch: Any) -> Mapping[str, Any]:
        """Metrics by name for evaluation: one value per sample, shape ``(B,)``, or the batch's mean.

        Every sample weighs the same in the result, however the ranks share the data. The mean ``loss`` is
        there without being asked for.
        """
        return {}

    def collate(self, samples: Sequence[Any]) -> Any:
        """Make a batch of samples that were fetched one by one. The default stacks arrays and tensors."""
        from hvtrain.data.collate import collate

        return collate(samples)

    def pipeline(self, dataset: Any, split: str, seed: Any) -> Any:
        """A ``tf.data`` pipeline for every batch (Keras only): ``dataset`` holds one batch and so must what is returned.

        ``split`` is ``"train"`` or ``"eval"``. Random numbers come from ``seed``, an int32 tensor of shape (2,) that
        follows from the run's seed, the step, the rank and the micro-batch::

            def pipeline(self, dataset, split, seed):
                if split == "eval":
                    return dataset
                return dataset.map(lambda images, labels: (tf.image.stateless_random_brightness(images, 0.2, seed), labels))

        It is traced once and runs within the step: what takes long, such as decoding files, belongs into ``data``, which
        is loaded ahead.
        """
        return dataset

    def optimizer(self, groups: Sequence[Mapping[str, Any]]) -> Any:
        """An optimizer of your own over parameter ``groups`` (as PyTorch takes them), or None for ``optim``.

        Learning-rate schedules and parameter groups of the job file apply to it as well.
        """
        return None

    def sample_weights(self) -> Any:
        """Weight of each training sample, shape ``(N,)``: for ``data.sampling: weighted``."""
        raise NotImplementedError("data.sampling: weighted needs the task to define sample_weights(self)")

    def labels(self) -> Any:
        """Class of each training sample, shape ``(N,)``: for ``data.sampling: balanced``."""
        raise NotImplementedError("data.sampling: balanced needs the task to define labels(self)")

    def callbacks(self) -> Sequence[Callback]:
        """Callbacks that run in every worker; see :class:`hvtrain.Callback`."""
        return ()

"""What transformers' Trainer lets pass: a loss that is no number, and an argument of transformers 4."""

import torch
from accelerate.utils import gather_object
from transformers import Trainer

from ..checks import check_keys
from ..objective.blur import example_key


class GuardedTrainer(Trainer):
    """A Trainer that stops before an optimiser step whose loss is infinite or NaN, and names the rows.

    The gradient may overflow: with fp16 that is normal at first, and the loss scaling leaves out the step.

    Raises:
        FloatingPointError: on all processes, while it trains; the weights are those after the step before.
        ValueError: tokenizer=, which is processing_class today.
    """

    _bad = ()  # keys of the rows since the last step, for each micro-batch; -1 where its loss is a number

    def __new__(cls, *args, **arguments):
        check_keys({"tokenizer"} & arguments.keys(), ())
        return super().__new__(cls)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As Trainer's, of one micro-batch; the last of a step looks at the losses of all, once."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        keys = inputs["keys"]
        self._bad = (*self._bad, keys.where(~loss.isfinite().to(keys.device), -1))
        if self.accelerator.sync_gradients:
            keys = gather_object(torch.cat(self._bad).tolist())
            self._bad = ()
            if max(keys) >= 0:
                rows = [row for row in self.train_dataset["id"] if example_key(row) in keys]
                raise FloatingPointError(
                    f"step {self.state.global_step + 1}: the loss is infinite or NaN in a batch of "
                    f"the rows {', '.join(rows)}; lower learning_rate, or train without fp16"
                )
        return loss

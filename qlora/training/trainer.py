"""The trainer: trl's SFTTrainer over packs, with a memory rehearsal and checkpoints for any number of processes.

It overrides private methods of transformers' trainer, for checkpoints and for speed: check them at each upgrade.
"""

import functools
import logging
import signal
import warnings
from contextlib import nullcontext
from pathlib import Path

from qlora.processes import group
from qlora.rows.loss_mask import IGNORED
from qlora.training import checkpoints, record
from qlora.training.captured import MicroBatches, Size
from qlora.training.guard import Guard, LeftStep, LeftValidation
from qlora.training.layout import TooLarge

import torch
from datasets import disable_progress_bars
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PrinterCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from trl import SFTTrainer


class Trainer(SFTTrainer):
    """trl's trainer with the guard, a memory rehearsal on a GPU, and no model cards in checkpoints.

    A checkpoint holds the whole adapter and optimizer even if FSDP shards them, so any number of processes can resume.

    Args:
        adapter_dtype: Dtype of the adapter's weights.
        longest_pack: Index of the longest pack in the training set.
        validation_tokens: Mean number of supervised tokens in a validation pack.
        keep_best: Whether the step with the lowest validation loss is kept, not the last.
        patience: Validations in a row without a new lowest loss that end the run (`Guard`).
        sizes: Of the packs, if they run as CUDA graphs.
        kwargs: Arguments of SFTTrainer.
    """

    def __init__(
        self,
        adapter_dtype: torch.dtype,
        longest_pack: int,
        validation_tokens: float = 1.0,
        keep_best: bool = False,
        patience: int | None = None,
        sizes: list[Size] | None = None,
        **kwargs,
    ):
        self.guard = Guard(patience)
        self.sizes = sizes
        self.graphs: MicroBatches | None = None
        self.unread: Unread | None = None
        self.keep_best = keep_best
        self.adapter_dtype = adapter_dtype
        self.longest_pack = longest_pack
        self.validation_tokens = validation_tokens
        self.rehearsed = False
        _silence_libraries()
        super().__init__(callbacks=[self.guard], **kwargs)
        self.remove_callback(PrinterCallback)
        # PEFT would add the embeddings if it misread the size of the vocabulary, as it does for some text towers.
        self.model.save_pretrained = functools.partial(self.model.save_pretrained, save_embedding_layers=False)

    @property
    def interrupted(self) -> bool:
        """Whether SIGTERM ended the run before its last step or validation."""
        ended = self.state.global_step == self.state.max_steps or self.guard.stalled
        unfinished = not ended or not self.guard.validated
        return self.guard.terminated and unfinished

    def train(self, *args, **kwargs) -> None:
        before = signal.signal(signal.SIGTERM, self.guard.terminate)
        try:
            super().train(*args, **kwargs)
        except LeftStep:
            self._log_unread()
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
            step = self.state.global_step
            if step > 0 and not checkpoints.is_complete(Path(self.args.output_dir) / f"checkpoint-{step}"):
                checkpoints.restore_random(self.guard.random_states)
                self._save_checkpoint(self.model, trial=None)
                self.guard.on_save(self.args, self.state, self.control)
        finally:
            signal.signal(signal.SIGTERM, before)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self.rehearsed and self.args.device.type == "cuda":
            self.rehearse(model)
        self.rehearsed = True
        if self.guard.terminated and self.accelerator.num_processes == 1:  # several processes agree at the step's end
            raise LeftStep
        if self.guard.stalled:  # before the first step that a resumed run would take
            raise LeftStep
        if self.graphs:
            return self.graphs.run(inputs, num_items_in_batch)
        return super().training_step(model, inputs, num_items_in_batch)

    def rehearse(self, model) -> None:
        """Run forward and backward of the longest pack before the first step, without an optimizer step.

        So a run that needs too much memory fails at once, and not after hours. Graphs are recorded here.

        Raises:
            torch.OutOfMemoryError, TooLarge: if memory runs out (`layout.run_fitted`).
        """
        longest = self.data_collator([self.train_dataset[self.longest_pack]])
        is_ddp = self.accelerator.num_processes > 1 and not self.is_fsdp_enabled
        # Without synchronization, so that no DDP process waits for one that fails.
        unsynchronized = self.accelerator.no_sync(model) if is_ddp else nullcontext()
        if self.is_fsdp_enabled:  # otherwise FSDP keeps gradients where zero_grad does not reach them
            model.set_requires_gradient_sync(True)
        try:
            with torch.random.fork_rng([self.args.device]), unsynchronized:
                resumed = bool(self.optimizer.state)  # then AdamW's moments are allocated already
                learning = [] if resumed else [p for p in model.parameters() if p.requires_grad]
                moments = [torch.empty_like(p) for p in learning for _ in range(2)]
                if self.sizes:
                    self.record_graphs()
                else:
                    super().training_step(model, longest)
            del moments
            fits = True
        except torch.OutOfMemoryError:
            if self.accelerator.num_processes == 1:
                raise
            fits = False
        # With FSDP the others cannot be asked: they wait for this process inside the model.
        if not fits if self.is_fsdp_enabled else group.in_any(not fits):
            raise TooLarge
        model.zero_grad()
        if self.is_fsdp_enabled:
            model.set_requires_gradient_sync(self.accelerator.sync_gradients)

    def record_graphs(self) -> None:
        """Record the micro-batches as CUDA graphs; a model that cannot be recorded trains without them.

        Raises:
            torch.OutOfMemoryError: if memory runs out.
        """
        dtype = torch.bfloat16 if self.args.bf16 else None
        graphs = MicroBatches(self.model, self.sizes, dtype, self.processing_class.pad_token_id)
        graphs.rehearse()
        try:
            graphs.record()
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:100]
            print(f"training without CUDA graphs, so short packs wait for Python: {reason}", flush=True)
            return
        self.graphs = graphs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean negative log-likelihood (nats) of the supervised tokens, over `num_items_in_batch` of them if given.

        In validation the mean over packs equals the mean over all tokens, however the rows are packed.

        trl's method, which this replaces, also computes entropy and accuracy. That synchronizes with the GPU in every
        micro-batch, and on a CPU it computes the logits of every position.
        """
        labels = inputs["labels"]
        if not model.training:
            supervised = self.validation_tokens
        elif num_items_in_batch is None:
            supervised = (labels[:, 1:] != IGNORED).sum()
        else:  # it counts the tokens of all processes, and gradients are averaged over processes
            supervised = num_items_in_batch / self.accelerator.num_processes
        if self.args.device.type == "cuda":
            loss = -model(**inputs, fused_lm_head=True).log_probs.sum()
        else:
            labels = inputs.pop("labels")[0, 1:]
            where = torch.nonzero(labels != IGNORED).flatten()
            logits = model(**inputs, use_cache=False, logits_to_keep=where).logits[0].float()
            loss = torch.nn.functional.cross_entropy(logits, labels[where], reduction="sum")
        return loss / torch.as_tensor(supervised).clamp(min=1)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        try:
            metrics = super().evaluate(*args, **kwargs)
        except LeftValidation:
            return {}
        if self.keep_best and self.kept_step == self.state.global_step:
            adapter = self.whole_adapter()
            if self.args.should_save:
                checkpoints.save_best(Path(self.args.output_dir), adapter)
            group.state().wait_for_everyone()  # before another process reads it
        return metrics

    def floating_point_ops(self, inputs) -> int:
        return 0  # the sum is unused, and transformers would count all parameters in each micro-batch

    def create_model_card(self, *args, **kwargs) -> None:
        pass

    # The adapter

    def cast_adapter(self) -> None:
        """Cast the adapter to `adapter_dtype`; trl's default is bfloat16, PEFT's float32."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(self.adapter_dtype)

    def whole_adapter(self) -> dict[str, torch.Tensor]:
        """The adapter's weights by name, gathered if FSDP shards them. Every process must call this."""
        return {name: _whole(p.detach()) for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def kept_step(self) -> int:
        """The step whose adapter is the run's result: the last, or the first with the lowest validation loss."""
        return record.best_step(self.state.log_history) if self.keep_best else self.state.global_step

    def kept_adapter(self) -> dict[str, torch.Tensor]:
        """The adapter of `kept_step` after training. Every process must call this."""
        return checkpoints.load_best(Path(self.args.output_dir)) if self.keep_best else self.whole_adapter()

    # Checkpoints: whole tensors, which FSDP's own format does not have

    def save_model(self, output_dir=None, _internal_call=False) -> None:
        adapter = self.whole_adapter()
        if self.args.should_save:
            self._save(output_dir, adapter)

    def _save_optimizer_and_scheduler(self, output_dir) -> None:
        state = self.optimizer.state_dict()
        moments = {at: {name: _whole(value) for name, value in of.items()} for at, of in state["state"].items()}
        if self.args.should_save:
            torch.save(state | {"state": moments}, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        if checkpoint is None:
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        if self.is_fsdp_enabled:
            parameters = [p for group_ in self.optimizer.param_groups for p in group_["params"]]
            for at, moments in state["state"].items():
                mesh, placements = parameters[at].device_mesh, parameters[at].placements
                for name, value in moments.items():
                    if value.shape == parameters[at].shape:
                        moments[name] = distribute_tensor(value.to(self.args.device), mesh, placements)
        self.optimizer.load_state_dict(state)
        schedule = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        self.lr_scheduler.load_state_dict(schedule)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        if model is None:  # transformers calls again with a model after FSDP has sharded the loaded adapter
            super()._load_from_checkpoint(resume_from_checkpoint)
            self.cast_adapter()

    # Speed

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        if self.is_fsdp_enabled and resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
        model, train_dataloader = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # The model's own visits all modules in each step. Graphs add to gradients that stay in their place.
        model.zero_grad = functools.partial(self.optimizer.optimizer.zero_grad, set_to_none=not self.sizes)
        return model, train_dataloader

    def _clip_grad_norm(self, model):
        if self.is_fsdp_enabled:
            return super()._clip_grad_norm(model)
        # Only the adapter's parameters; transformers' method visits all parameters of the model.
        learned = [p for group_ in self.optimizer.param_groups for p in group_["params"]]
        return self.accelerator.clip_grad_norm_(learned, self.args.max_grad_norm)

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, *args, learning_rate=None, **kwargs):
        """transformers' method. With graphs, a loss is read one step later, unless something else is due.

        Reading it waits for the GPU, which would wait for Python's part of the next step afterwards.
        """
        should_log = self.control.should_log
        self._log_unread()
        self.control.should_log = should_log  # which a log resets
        control, state = self.control, self.state
        is_due = control.should_evaluate or control.should_save or control.should_training_stop
        if not self.graphs or is_due or not control.should_log or state.global_step == self._globalstep_last_logged:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, learning_rate=learning_rate, **kwargs)
            return
        self.unread = Unread(state.global_step, state.epoch, learning_rate, tr_loss, grad_norm)
        tr_loss -= tr_loss
        self._globalstep_last_logged = state.global_step
        control.should_log = False

    def _log_unread(self) -> None:
        """Log the step whose loss has not been read, as of that step."""
        if self.unread is None:
            return
        unread, self.unread = self.unread, None
        now = self.state.global_step, self.state.epoch
        loss, norm = unread.values()
        self._total_loss_scalar += loss
        self.state.global_step, self.state.epoch = unread.step, unread.epoch
        self.log({"loss": loss, "grad_norm": norm, "learning_rate": unread.learning_rate})
        self.state.global_step, self.state.epoch = now


class Unread:
    """Loss and gradient norm of a step, on their way from the GPU."""

    def __init__(self, step: int, epoch: float, learning_rate: float, loss: torch.Tensor, norm: torch.Tensor):
        self.step, self.epoch, self.learning_rate = step, epoch, learning_rate
        self.pinned = torch.empty(2, pin_memory=True)
        self.pinned.copy_(torch.stack([loss, norm]), non_blocking=True)
        self.copied = torch.cuda.Event()
        self.copied.record()

    def values(self) -> list[float]:
        """Waits for this step, not for later ones."""
        self.copied.synchronize()
        return self.pinned.tolist()


def _silence_libraries() -> None:
    """Suppress progress bars of data sets, and two warnings that do not apply here."""
    disable_progress_bars()
    # trl: a batch of 1 wastes padding-free training. Here one example is a pack of many rows.
    logging.getLogger("trl.trainer.sft_trainer").addFilter(lambda line: "batch_size of 1" not in line.getMessage())
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # by accelerate's own call


def _whole(value):
    """A sharded tensor gathered on the CPU; anything else unchanged."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value

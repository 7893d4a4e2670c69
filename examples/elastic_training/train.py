"""Train a small character model on every node of an elastic job.

Start it with torchrun, once on each node (see README.md):

    torchrun --nnodes=2:3 --nproc-per-node=1 --max-restarts=3 \
        --rdzv-backend=rdzv-c10d --rdzv-endpoint=HOST:29400 --rdzv-id=my-job \
        train.py --checkpoint-dir /shared/checkpoints

What makes it elastic is little, and all of it is in this file:

* It never assumes a world size. A step's *global* batch is a function of the step number, and
  each worker takes its share of it, so the model learns the same with two nodes as with three.
* It can be stopped anywhere. Rank 0 saves a checkpoint every few steps, and a worker that starts
  goes on from the latest one.
* After each checkpoint it says so: with admission=deferred that is when nodes that have arrived are
  let in, and nothing that was trained has to be trained again for them.
* It does not try to survive a lost peer. The collective raises, the worker exits with an error,
  and the agent (torchrun) restarts it as soon as the nodes have agreed on a new round.
"""
# ruff: noqa: E402  (the clock is read before torch is imported, see STARTED)

from __future__ import annotations

import time

# When this process came to life. Importing torch takes seconds: a reader of the log can tell that
# apart from the time which the nodes needed to find each other.
STARTED = time.time()

import argparse
import hashlib
import io
import json
import os
import re
import socket
import traceback
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from collections.abc import Iterator

HELD_OUT_SEQUENCES = 48
KEPT_GENERATIONS = 3


@dataclass(frozen=True)
class Worker:
    """Who this process is in the current round. torchrun tells it by environment variables."""

    rank: int
    world: int
    local_rank: int
    master: str
    run_id: str

    @classmethod
    def from_environment(cls) -> Worker:
        env = os.environ
        if "RANK" not in env:
            raise SystemExit("train.py must be started by torchrun: RANK is not set.")
        return cls(
            rank=int(env["RANK"]),
            world=int(env["WORLD_SIZE"]),
            local_rank=int(env["LOCAL_RANK"]),
            master=f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}",
            run_id=env.get("TORCHELASTIC_RUN_ID", ""),
        )


def checkpoint_reached() -> bool:
    """Tell rdzv that newcomers may come in; returns whether they do."""
    try:
        import rdzv
    except ImportError:
        return False
    return rdzv.checkpoint_reached()


class EventLog:
    """One JSON line for each event, to stdout and to one file a worker."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, event: str, **fields: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields})
        # One write a line: several workers share stdout, and a worker that is killed must not
        # leave half a line before its successor's.
        for file in (1, self._file):
            os.write(file, line.encode() + b"\n")


class Corpus:
    """A text as numbers, its last tenth held out."""

    def __init__(self, text: str, length: int) -> None:
        alphabet = sorted(set(text))
        number = {character: index for index, character in enumerate(alphabet)}
        encoded = torch.tensor([number[character] for character in text])
        cut = len(encoded) * 9 // 10
        if len(encoded) - cut <= length:
            raise SystemExit(f"The text is too short: {len(text)} characters.")
        self.train = encoded[:cut]
        self.held_out = encoded[cut:]
        self.length = length
        self.symbols = len(alphabet)
        self.digest = hashlib.sha256(text.encode()).hexdigest()

    def train_share(self, step: int, batch: int, rank: int, world: int) -> Tensor:
        """This rank's part of the global batch of a step.

        Every rank draws the same positions, from the step number alone, and takes every world-th
        of them: nothing needs to be exchanged, remembered or repaired when the world changes.
        """
        generator = torch.Generator().manual_seed(step)
        last = len(self.train) - self.length - 1
        positions = torch.randint(last, (batch,), generator=generator)
        return self._crops(self.train, positions[rank::world])

    def held_out_share(self, rank: int, world: int) -> Tensor:
        """This rank's part of the same few held-out passages, every time."""
        last = len(self.held_out) - self.length - 1
        positions = torch.linspace(0, last, HELD_OUT_SEQUENCES).long()
        return self._crops(self.held_out, positions[rank::world])

    def _crops(self, text: Tensor, positions: Tensor) -> Tensor:
        return text[positions[:, None] + torch.arange(self.length + 1)]


def read_text(path: Path | None) -> str:
    """The text to learn: a file, or the language reference that comes with every Python."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    paragraphs = [part for name in sorted(topics) for part in topics[name].split("\n\n")]
    # Topics repeat one another's paragraphs: each is kept once, so that held out means unseen.
    return "\n\n".join(dict.fromkeys(paragraphs))


class CharacterModel(nn.Module):
    """Predicts the next character from those before it."""

    def __init__(self, symbols: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 64)
        self.memory = nn.GRU(64, hidden, batch_first=True)
        self.predict = nn.Linear(hidden, symbols)

    def forward(self, characters: Tensor) -> Tensor:
        remembered, _ = self.memory(self.embed(characters))
        prediction: Tensor = self.predict(remembered)
        return prediction


class Checkpoints:
    """Checkpoints in a directory that all nodes share.

    Each group of workers has a *generation*, one higher than any before it, and writes to a file
    of its own: checkpoint-<generation>.pt. Whoever starts loads the highest one there is. That
    is a fencing token: a rank 0 that was cut off from the others, wakes up and still saves can
    only replace the file of its own, outdated generation, never a newer group's.

    Torch gives a worker no number that grows with every round (TORCHELASTIC_RESTART_COUNT is
    each agent's own), so the group takes one here. Creating a file that must not exist yet is
    atomic on shared file systems too, no lock is needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def claim_generation(self) -> int:
        generation = max(self._numbers("generation-*"), default=0) + 1
        while not self._claim(generation):
            generation += 1
        return generation

    def _claim(self, generation: int) -> bool:
        try:
            self._path("generation", generation, "claim").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def latest(self) -> bytes | None:
        saved = max(self._numbers("checkpoint-*.pt"), default=None)
        return None if saved is None else self._path("checkpoint", saved, "pt").read_bytes()

    def save(self, generation: int, state: dict[str, Any]) -> None:
        """Replace this generation's checkpoint. Whoever reads finds the old or the new one."""
        final = self._path("checkpoint", generation, "pt")
        temporary = final.with_suffix(f".{socket.gethostname()}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, final)
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)  # the new name has to survive a power failure as well
        finally:
            os.close(directory)
        self._forget_before(generation - KEPT_GENERATIONS + 1)

    def _forget_before(self, oldest: int) -> None:
        """Delete what older generations left, half-written files included."""
        for path in self._directory.glob("checkpoint-*"):
            if int(path.name.split("-")[1].split(".")[0]) < oldest:
                path.unlink(missing_ok=True)

    def _path(self, kind: str, generation: int, suffix: str) -> Path:
        return self._directory / f"{kind}-{generation:06d}.{suffix}"

    def _numbers(self, pattern: str) -> Iterator[int]:
        for path in self._directory.glob(pattern):
            if match := re.fullmatch(r"\w+-(\d+)\.(pt|claim)", path.name):
                yield int(match[1])


class Training:
    """The model, its optimizer, and how far they are."""

    def __init__(self, options: argparse.Namespace, worker: Worker, log: EventLog) -> None:
        self.options = options
        self.worker = worker
        self.log = log
        self.corpus = Corpus(read_text(options.text), options.length)
        self.checkpoints = Checkpoints(options.checkpoint_dir)
        torch.manual_seed(0)
        self.model = CharacterModel(self.corpus.symbols, options.hidden)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.learning_rate)
        self.generation = 0
        self.step = 0

    def resume(self) -> None:
        """Go on where the latest checkpoint ends, all workers from the same one.

        Only rank 0 reads it and hands it on. If everybody read for themselves, a checkpoint that
        is saved meanwhile by an outdated worker could leave two ranks with different models.
        """
        shared: list[Any] = [None]
        if self.worker.rank == 0:
            generation = self.checkpoints.claim_generation()
            shared = [(generation, self.corpus.digest, self.checkpoints.latest())]
        dist.broadcast_object_list(shared, src=0)
        self.generation, digest, saved = shared[0]
        if digest != self.corpus.digest:
            raise SystemExit("This node has another text than rank 0: same Python, same --text?")
        if saved is not None:
            self._restore(torch.load(io.BytesIO(saved), weights_only=True))
        self.log.write("resume", generation=self.generation, step=self.step)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["text"] != self.corpus.digest:
            where = self.options.checkpoint_dir
            raise SystemExit(f"The checkpoint in {where} was trained on another text.")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def run(self) -> None:
        parallel = DistributedDataParallel(self.model)
        first = self.step + 1
        for step in range(first, self.options.steps + 1):
            began = time.monotonic()
            self.step = step
            loss = self._train_step(parallel)
            if step == first or step % self.options.log_every == 0:
                self.log.write("step", step=step, loss=self._sum_over_ranks(loss))
            if step % self.options.save_every == 0 or step == self.options.steps:
                self._save()
            self._pace(began)
        # Rank 0 has saved the last step before anybody ends: a success is never taken back.
        dist.barrier()
        self.log.write("end", step=self.step)

    def _train_step(self, parallel: nn.Module) -> Tensor:
        batch, worker = self.options.batch, self.worker
        share = self.corpus.train_share(self.step, batch, worker.rank, worker.world)
        loss = self._loss(parallel, share) / batch
        self.optimizer.zero_grad()
        # DDP averages the gradients over the ranks, but the loss of the global batch is the *sum*
        # of the shares, which need not be of equal size.
        (loss * worker.world).backward()
        nn.utils.clip_grad_norm_(parallel.parameters(), 1.0)
        self.optimizer.step()
        detached: Tensor = loss.detach()
        return detached

    def _loss(self, model: nn.Module, share: Tensor) -> Tensor:
        """The mean over the characters, summed over the sequences of this share."""
        prediction = model(share[:, :-1])
        total = nn.functional.cross_entropy(
            prediction.flatten(0, 1), share[:, 1:].flatten(), reduction="sum"
        )
        return total / self.corpus.length

    def _held_out_loss(self) -> float:
        share = self.corpus.held_out_share(self.worker.rank, self.worker.world)
        with torch.no_grad():
            # The bare model: DDP's own forward would get ready for a backward pass.
            mean = self._loss(self.model, share) / HELD_OUT_SEQUENCES
        return self._sum_over_ranks(mean)

    def _save(self) -> None:
        held_out = self._held_out_loss()  # all ranks take part, also in failing
        if self.worker.rank != 0:
            return
        self.checkpoints.save(
            self.generation,
            {
                "step": self.step,
                "text": self.corpus.digest,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
        )
        self.log.write("checkpoint", step=self.step, held_out=held_out, generation=self.generation)
        if checkpoint_reached():  # a good moment for nodes that wait: nothing is done twice
            self.log.write("admit", step=self.step)

    def _pace(self, began: float) -> None:
        """Stretch a step to --step-seconds, so that a demonstration can be watched."""
        time.sleep(max(0.0, began + self.options.step_seconds - time.monotonic()))

    @staticmethod
    def _sum_over_ranks(share: Tensor) -> float:
        total = share.clone()
        dist.all_reduce(total)
        return round(float(total), 4)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small character model in an elastic job. Start it with torchrun.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint-dir", type=Path, default=Path("checkpoints"), help="shared by all nodes")
    add("--log-dir", type=Path, default=Path("logs"), help="one .jsonl file a worker")
    add("--name", default=socket.gethostname(), help="this node's name in the logs")
    add("--text", type=Path, help="learn this file instead of Python's language reference")
    add("--steps", type=int, default=2000, help="end after this many steps, over all rounds")
    add("--batch", type=int, default=48, help="sequences a step, split over all workers")
    add("--length", type=int, default=64, help="characters a sequence")
    add("--hidden", type=int, default=128, help="size of the model's memory")
    add("--learning-rate", type=float, default=5e-3)
    add("--log-every", type=int, default=10, help="steps between two logged losses")
    add("--save-every", type=int, default=100, help="steps between two checkpoints")
    add("--step-seconds", type=float, default=0.0, help="a step takes at least this long")
    add("--timeout", type=float, default=60.0, help="seconds that a collective may take")
    add("--threads", type=int, default=1, help="CPU threads a worker")
    return parser.parse_args()


@record  # lets torchrun report the exception that ended a worker
def main() -> None:
    options = parse_options()
    worker = Worker.from_environment()
    if worker.world > min(options.batch, HELD_OUT_SEQUENCES):
        raise SystemExit(f"A batch of {options.batch} cannot be split over {worker.world} workers.")
    torch.set_num_threads(options.threads)
    log = EventLog(options.log_dir / f"{options.name}-{worker.local_rank}.jsonl")
    log.write(
        "start",
        started=round(STARTED, 3),
        node=options.name,
        pid=os.getpid(),
        rank=worker.rank,
        world=worker.world,
        master=worker.master,
        run_id=worker.run_id,
    )
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=options.timeout))
        training = Training(options, worker, log)
        training.resume()
        training.run()
        dist.destroy_process_group()
    except Exception as error:
        # Most often a peer is gone. Nothing can be repaired from in here: end, be restarted.
        log.write("failed", error=f"{type(error).__name__}: {error}".splitlines()[0])
        raise


if __name__ == "__main__":
    try:
        main()
    except Exception:  # noqa: BLE001 (whatever it was: the worker has failed)
        # Out at once: a broken process group still has threads, and taking it and the interpreter
        # apart around them ends, now and then, in an abort with a core dump instead of an error.
        traceback.print_exc()
        os._exit(1)

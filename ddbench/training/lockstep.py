"""Student training as a program of static shape: one CUDA graph a step, in which students are parallel branches.

A small student cannot fill a GPU; several side by side can, and each still computes exactly what it would alone. All
that differs from step to step (which images, which augmentation, which step size) lies in tables on the device, read
at a counter on the device, so that a step is one replay and nothing is copied.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.backbones.backbone import Backbone
from ddbench.backbones.variables import Variables
from ddbench.engine.augment import Draw, apply, one_after_another
from ddbench.engine.capabilities import has_graphs
from ddbench.engine.mixing import Mix
from ddbench.engine.program import channels_last, compiled, weights_laid_out, worth_compiling
from ddbench.problem import Problem
from ddbench.training.options import SGDOptions
from ddbench.training.plan import Block, TrainingPlan, as_probabilities, unchanged
from ddbench.training.sharpness import Sharpness

Tensors = dict[str, Tensor]

# Adam's, as in Kingma and Ba, ICLR 2015, and in torch.
BETAS = (0.9, 0.999)
EPS = 1e-8

# Tables of what students of a step share; the others have an entry for each of them.
MIX = ("box", "partners", "shares")
SHARED = ("lr", *MIX)


@dataclass(frozen=True)
class Functions:
    """The three parts of a step that fusion pays for; plain or compiled, with the same meaning."""

    augment: Callable[[Tensor, Tensor, Tensor], Tensor]
    loss: Callable[[Tensors, Tensors, Tensor, Tensor], tuple[Tensor, Tensors]]
    update: Callable[[list[Tensor], list[Tensor], list[Tensor], Tensor], None]


class Compilations:
    """What plans have compiled, by the shapes that they share, and what they spent on each without it.

    Compiling takes seconds, so what one plan has compiled serves the next of the same shapes, and what earlier plans
    spent without it counts for compiling.
    """

    def __init__(self) -> None:
        self._functions: dict[tuple[object, ...], Functions] = {}
        self._spent: defaultdict[tuple[object, ...], float] = defaultdict(float)

    def __bool__(self) -> bool:
        return bool(self._functions)

    def of(self, key: tuple[object, ...]) -> Functions | None:
        """What was compiled for these shapes; None where nothing was."""
        return self._functions.get(key)

    def decide(
        self, key: tuple[object, ...], plain: Functions, seconds: float, groups: int, device: torch.device
    ) -> Functions | None:
        """Compile where so many groups that take that long each make it pay; None where they do not yet."""
        if not worth_compiling(self._spent[key] + seconds * groups, device):
            self._spent[key] += seconds
            return None
        self._functions[key] = _compile(plain)
        return self._functions[key]

    def forget(self) -> None:
        """Begin as a fresh process does, for measuring what that costs. torch's own cache on disk stays."""
        self._functions.clear()
        self._spent.clear()


COMPILED = Compilations()
"""Those of this process, which all students share."""


class Lockstep:
    """S students of one plan, as static tensors on a device.

    `variables` are the fresh students, with a leading S. `groups` is how many such groups are still to be trained, this
    one included: compilation is paid once for them. `sharpness` makes every step a sharpness-aware one, of two
    gradients on one augmented batch; buffers are those of the first.
    """

    def __init__(
        self,
        net: Backbone,
        variables: Variables,
        plan: TrainingPlan,
        *,
        groups: int = 1,
        sharpness: Sharpness | None = None,
    ) -> None:
        self._sharpness = sharpness
        self._device = plan.images.device
        self.plan, self._net, self._groups = plan, net.in_training().first_order(self._device), groups
        count = len(next(iter(variables.params.values())))
        fresh = [variables.copy(s) for s in range(count)]
        self._params = [
            {k: weights_laid_out(v.detach().clone()).requires_grad_() for k, v in f.params.items()} for f in fresh
        ]
        self._buffers = [{k: v.detach().clone() for k, v in f.buffers.items()} for f in fresh]
        self._moments = [_moments(params, plan) for params in self._params]
        self._step = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._tables: Tensors = {}
        self._graphs: dict[int, Callable[[], None]] = {}
        # Shifts that a norm takes away again have no gradient; what an optimiser sees is zero.
        self._nothing = {k: torch.zeros_like(v) for k, v in self._params[0].items()}
        decays = tuple(plan.options.decays(name, value.ndim) for name, value in self._params[0].items())
        self._functions = _functions(self._net, plan, decays)

    def train(self, students: Sequence[int], tick: Callable[[int], None]) -> list[Variables]:
        """Train to the end; returns the students one by one."""
        for _ in self.steps(self.plan.blocks(students)):
            tick(len(students))
        return [self.student(s).clone() for s in range(len(self._params))]

    def steps(self, blocks: Iterable[Block]) -> Iterator[None]:
        """Take the steps of some blocks, one whenever the next is asked for. No block is longer than the first one."""
        for block in blocks:
            self._load(block)
            if not self._graphs:
                self._graphs = self._programs({size: block.sizes.index(size) for size in sorted(set(block.sizes))})
            for size, restart in zip(block.sizes, block.restarts, strict=True):
                if restart:
                    torch._foreach_zero_([moment for moments in self._moments for moment in moments])
                self._graphs[size]()
                yield

    def student(self, number: int) -> Variables:
        """A student as it stands. Its tensors are the ones that the next step changes."""
        return Variables(self._params[number], self._buffers[number]).detach()

    @torch.no_grad()
    def restart(self, variables: Variables) -> None:
        """Put fresh students, with a leading S, where the trained ones are: programs once made serve them too."""
        for s, (params, buffers, moments) in enumerate(zip(self._params, self._buffers, self._moments, strict=True)):
            fresh = variables.copy(s)
            torch._foreach_copy_([*params.values()], [fresh.params[name] for name in params])
            if buffers:
                torch._foreach_copy_([*buffers.values()], [fresh.buffers[name] for name in buffers])
            torch._foreach_zero_(moments)

    def _load(self, block: Block) -> None:
        """Put a block's draws into the tables, which keep their addresses: graphs have them built in."""
        plan, students, steps = self.plan, len(self._params), len(block)
        values = {
            "indices": block.indices,
            "lr": torch.tensor(block.lrs),
        }
        for number, draw in enumerate(block.draws):
            values[f"ops{number}"] = draw.ops.view(students, steps)
            values[f"numbers{number}"] = draw.numbers.view(students, steps, *draw.numbers.shape[1:])
        if plan.options.cutmix:
            mixes = [self._mix(block, t) for t in range(steps)]
            values |= {name: torch.stack([getattr(mix, name) for mix in mixes]) for name in MIX}
        for name, value in values.items():
            time_axis = 0 if name in SHARED else 1
            if name not in self._tables:
                self._tables[name] = value.to(self._device, copy=True)
            else:
                # The last block can be shorter; what lies behind it is never read.
                self._tables[name].narrow(time_axis, 0, steps).copy_(value)
        self._step.zero_()

    def _mix(self, block: Block, t: int) -> Mix:
        """How a step of a block mixes its images, whose number is filled up to that of a full batch."""
        size, (_, *sides) = block.sizes[t], self._net.shape
        mix = self.plan.mix(block.rng_at(t), size, (sides[0], sides[1])) or Mix.none(size)
        return replace(mix, partners=F.pad(mix.partners, (0, block.indices.shape[2] - size)))

    def _at(self, name: str, student: int | None = None) -> Tensor:
        table = self._tables[name] if student is None else self._tables[name][student]
        return table.index_select(0, self._step)[0]

    def _take_step(self, size: int, student: int) -> None:
        """One step of one student on the first `size` images that its table names."""
        plan, functions = self.plan, self._functions
        rows = self._at("indices", student)[:size]
        x, y = plan.take(rows), plan.labels.index_select(0, rows)
        for number in range(len(one_after_another(plan.strategy))):
            ops, numbers = self._at(f"ops{number}", student).view(1), self._at(f"numbers{number}", student)[:size]
            x = functions.augment(x, ops, numbers)
        if "partners" in self._tables:
            mix = Mix(self._at("box"), self._at("partners")[:size], self._at("shares"))
            x, y = mix.images(x), mix.targets(as_probabilities(y, self._net.classes, x.dtype))
        params = self._params[student]
        loss, buffers = functions.loss(params, self._buffers[student], x, y)
        grads = self._slopes(loss, params)
        if self._sharpness is not None:
            with torch.no_grad():
                climbed = self._sharpness.climbed(list(params.values()), grads)
            above = {k: w.requires_grad_() for k, w in zip(params, climbed, strict=True)}
            there = self._slopes(functions.loss(above, self._buffers[student], x, y)[0], above)
            with torch.no_grad():
                grads = self._sharpness.combined(grads, there)
        with torch.no_grad():
            for name, value in buffers.items():
                self._buffers[student][name].copy_(value)
            functions.update(list(params.values()), grads, self._moments[student], self._at("lr"))

    def _slopes(self, loss: Tensor, params: Tensors) -> list[Tensor]:
        slopes = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        return [
            self._nothing[k] if g is None else _alike(g, p) for g, (k, p) in zip(slopes, params.items(), strict=True)
        ]

    def _programs(self, sizes: Mapping[int, int]) -> dict[int, Callable[[], None]]:
        """One program a batch size: plain calls where a device has no graphs, and of networks that none can hold; else
        graphs, compiled where that will pay. With each size comes the first step of the block that has it."""
        if not has_graphs(self._device) or not self._net.capturable:
            return {size: self._plainly(size) for size in sizes}
        before = self._snapshot()
        stream = torch.cuda.Stream(self._device)
        # A compiler does not see below its operations, where numbers are drawn.
        if self._net.fused or self._net.stochastic:
            graphs = {size: self._captured(size, first, stream) for size, first in sizes.items()}
            self._restore(before)
            return graphs
        key = _key(self._net, self.plan)
        functions = COMPILED.of(key)
        if functions is None:
            graphs = {size: self._captured(size, first, stream) for size, first in sizes.items()}
            seconds = self._time(graphs[max(sizes)]) * self.plan.steps
            functions = COMPILED.decide(key, self._functions, seconds, self._groups, self._device)
            if functions is None:
                self._restore(before)
                return graphs
        self._functions = functions
        graphs = {size: self._captured(size, first, stream) for size, first in sizes.items()}
        self._restore(before)
        return graphs

    def _plainly(self, size: int) -> Callable[[], None]:
        def run() -> None:
            for student in range(len(self._params)):
                self._take_step(size, student)
            self._step.add_(1)

        return run

    def _captured(self, size: int, first: int, stream: torch.cuda.Stream) -> Callable[[], None]:
        # What a full batch draws names images that a shorter one does not have.
        self._step.fill_(first)
        # Kernels are chosen and compiled before the capture, which records without running.
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._take_step(size, 0)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            branches = []
            fork = torch.cuda.Event()
            fork.record(stream)
            for student in range(len(self._params)):
                branch = torch.cuda.Stream(self._device)
                branch.wait_event(fork)
                with torch.cuda.stream(branch):
                    self._take_step(size, student)
                branches.append(branch)
            for branch in branches:
                stream.wait_stream(branch)
            self._step.add_(1)
        return graph.replay

    def _time(self, run: Callable[[], None]) -> float:
        """Seconds of one step, from a few."""
        self._step.zero_()
        run()
        torch.cuda.synchronize(self._device)
        started = time.perf_counter()
        for _ in range(5):
            self._step.zero_()
            run()
        torch.cuda.synchronize(self._device)
        return (time.perf_counter() - started) / 5

    def _state(self) -> list[Tensor]:
        state = [self._step]
        for params, buffers, moments in zip(self._params, self._buffers, self._moments, strict=True):
            state += [*params.values(), *buffers.values(), *moments]
        return state

    def _snapshot(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self._state()]

    def _restore(self, before: list[Tensor]) -> None:
        torch.cuda.synchronize(self._device)
        with torch.no_grad():
            torch._foreach_copy_(self._state(), before)


def one_at_a_time(
    problem: Problem, images: Tensor, *, lr: float, batch: int, augment: str, passes: int, networks: int
) -> Lockstep:
    """Plain SGD of one network after another on the synthetic images, as these are at the moment of each step.

    Shapes: images [K * ipc, C, H, W] on the device, class by class. `augment` is a DiffAugment strategy or "none".
    """
    options = SGDOptions(lr=lr, batch=batch, momentum=0.0, weight_decay=0.0, schedule="constant")
    plan = TrainingPlan(
        images=images,
        labels=problem.class_labels().to(problem.device),
        forward=unchanged,
        options=options,
        strategy=augment,
        legacy="none",
        passes=passes,
        rng=problem.rng,
    )
    network = problem.backbone.init(problem.rng.fold("network"), problem.device, copies=1)
    return Lockstep(problem.backbone, network, plan, groups=networks)


def _moments(params: Tensors, plan: TrainingPlan) -> list[Tensor]:
    """What the optimiser keeps from step to step, all zero: velocities; or Adam's moments and its count of steps."""
    values = [value.detach() for value in params.values()]
    if plan.options.optimizer == "sgd":
        return [torch.zeros_like(value) for value in values]
    return [torch.zeros_like(value) for value in values * 2] + [values[0].new_zeros(())]


def _functions(net: Backbone, plan: TrainingPlan, decays: tuple[bool, ...]) -> Functions:
    """`decays` says of each parameter whether weight decay moves it."""
    # Nothing here may hold the plan: compiled functions outlive it, and with it the images would stay on the device.
    options, corners, criterion = plan.options, plan.options.align_corners, plan.criterion
    spared = tuple(not decay for decay in decays)
    parts = [(options.weight_decay, decays), *([(0.0, spared)] if any(spared) else [])]

    def augment(x: Tensor, op: Tensor, numbers: Tensor) -> Tensor:
        # Where nothing is captured, the one operation that was drawn is a fraction of all of them. Not called as an
        # object: torch 2.11's compiler asks an object that was made inside for its length, before it has any.
        return apply(Draw(op, numbers[None], corners, static=x.is_cuda), x[None])[0]

    def loss(params: Tensors, buffers: Tensors, x: Tensor, y: Tensor) -> tuple[Tensor, Tensors]:
        x = x if net.fused else channels_last(x)
        logits, buffers = net(Variables(params, buffers), x, train=True)
        return criterion(logits, y), buffers

    def sgd(params: list[Tensor], grads: list[Tensor], velocity: list[Tensor], lr: Tensor) -> None:
        if lr.is_cuda and not torch.compiler.is_compiling():
            # Without momentum torch wants no velocities, and refuses those that are there.
            moving = velocity if options.momentum else []
            for weight_decay, which in parts:
                torch._fused_sgd_(
                    _those(params, which), _those(grads, which), _those(moving, which), weight_decay=weight_decay,
                    momentum=options.momentum, lr=lr, dampening=0.0, nesterov=options.nesterov, maximize=False,
                    is_first_step=False,
                )  # fmt: skip
            return
        grads = _pulled(grads, params, *parts[0])
        torch._foreach_mul_(velocity, options.momentum)
        torch._foreach_add_(velocity, grads)
        moves = torch._foreach_add(grads, velocity, alpha=options.momentum) if options.nesterov else velocity
        torch._foreach_sub_(params, torch._foreach_mul(moves, lr))

    def adam(params: list[Tensor], grads: list[Tensor], moments: list[Tensor], lr: Tensor) -> None:
        if options.optimizer == "adam":
            grads = _pulled(grads, params, *parts[0])
        else:  # decoupled: Loshchilov and Hutter, ICLR 2019
            torch._foreach_mul_(_those(params, decays), 1 - lr * options.weight_decay)
        first, second, steps = moments[: len(params)], moments[len(params) : -1], moments[-1].add_(1)
        torch._foreach_lerp_(first, grads, 1 - BETAS[0])
        torch._foreach_mul_(second, BETAS[1])
        torch._foreach_addcmul_(second, grads, grads, 1 - BETAS[1])
        roots = torch._foreach_sqrt(second)
        torch._foreach_div_(roots, (1 - BETAS[1] ** steps).sqrt())
        torch._foreach_add_(roots, EPS)
        moves = torch._foreach_div(first, roots)
        torch._foreach_sub_(params, torch._foreach_mul(moves, lr / (1 - BETAS[0] ** steps)))

    return Functions(augment, loss, sgd if options.optimizer == "sgd" else adam)


def _those(values: list[Tensor], which: tuple[bool, ...]) -> list[Tensor]:
    """The marked ones, of a list with a tensor for each mark or of an empty one."""
    return [value for value, marked in zip(values, which, strict=False) if marked]


def _pulled(grads: list[Tensor], params: list[Tensor], weight_decay: float, which: tuple[bool, ...]) -> list[Tensor]:
    """Gradients of the loss together with that of weight decay, which moves the marked parameters."""
    pulled = iter(torch._foreach_add(_those(grads, which), _those(params, which), alpha=weight_decay))
    return [next(pulled) if marked else grad for grad, marked in zip(grads, which, strict=True)]


def _alike(grad: Tensor, param: Tensor) -> Tensor:
    # The fused optimiser walks both in the order of memory.
    return grad if grad.stride() == param.stride() else torch.empty_like(param).copy_(grad)


def _compile(functions: Functions) -> Functions:
    return Functions(compiled(functions.augment), compiled(functions.loss), compiled(functions.update))


def _key(net: Backbone, plan: TrainingPlan) -> tuple[object, ...]:
    options = plan.options
    rounding = (torch.is_autocast_enabled("cuda"), torch.backends.cudnn.allow_tf32)
    targets = (plan.labels.ndim, plan.labels.dtype, plan.criterion, bool(options.cutmix))
    update = (options.optimizer, options.momentum, options.nesterov, options.weight_decay, options.decayed)
    return (net.name, net.shape, net.classes, plan.images.device, targets, rounding, update, options.align_corners)

"""Gradient descent as a function that can be differentiated, with the memory of one step.

What T steps lead to depends on where they start, on the images they see and on their step sizes. The derivative is that
of the unrolled loop, taken by its reverse recursion: parameters are kept from step to step, graphs are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import grad, grad_and_value, jvp

from ddbench import host
from ddbench.backbones.backbone import Backbone
from ddbench.backbones.tangent_blocks import cross_entropy_jvp, plain_cross_entropy_jvp
from ddbench.backbones.variables import Variables
from ddbench.engine.capabilities import total_bytes
from ddbench.engine.program import channels_last, fusible, weights_laid_out

Params = dict[str, Tensor]
Loss = Callable[[Params, Tensor, Tensor], Tensor]
"""Parameters, images and targets -> a scalar. Twice differentiable through torch.func, and free of random draws."""

Form = Literal["adjoint", "full", "tesla"]

Forth = Callable[[Params, Tensor, Tensor, Tensor], Params]
Back = Callable[[Params, Params, Tensor, Tensor, Tensor], tuple[Params, Tensor, Tensor | None, Tensor]]
"""From the derivative by a step's result to those by its parameters, its x, its y where that is soft, and its lr."""
Written = tuple[Forth, Back]

# Of a device's memory, what the graph of all steps may take.
SHARE = 0.5

# Where Linux tells what a container or a job of a cluster may take, in both of its versions.
MODEST = 8 << 30  # bytes, where the system does not say how many it has


class Descent:
    """w[t + 1] = w[t] - lr[t] * d loss(w[t], x[t], y[t]) / dw, for T steps.

    The result is differentiable once with respect to w[0], x, lr, and y where labels are soft. `form` says how:

    - adjoint: in reverse, with v the derivative by w[t + 1], one derivative of (d loss / dw, d loss / dx) along v gives
      all that a step needs: no second reverse pass, whose convolutions have kernels as large as the images.
    - full: the same by autograd, through the graphs of all steps at once. Less arithmetic, T times the memory.
    - tesla: not the derivative, but what is left of it where every w[t] is taken as a constant in its step: v stays as
      it is (Cui et al., ICML 2023, arXiv 2211.10586).

    Nothing here runs under autocast. The two functions of tensors that steps consist of are fusible; those of the full
    form are not, because compiled functions have no second derivative. `written` are the adjoint's two functions where
    they need no derivative of a derivative, as `written_out` makes them.
    Source: Wang et al., arXiv 1811.10959, whose gradient this is.
    """

    def __init__(self, loss: Loss, *, form: Form = "adjoint", written: Written | None = None) -> None:
        self._loss, self._form = loss, form
        if written is not None and form == "adjoint":
            self._forth, self._back = written
        else:
            back = _back_apart(loss) if form == "tesla" else _back(loss)
            self._forth, self._back = fusible(_forth(loss)), fusible(back)

    def __call__(self, params: Params, x: Tensor, y: Tensor, lr: Tensor, sizes: Sequence[int] | None = None) -> Params:
        """The parameters after T steps. Step t sees the first sizes[t] of B images, or all.

        Shapes: x and y [T, B, ...], lr [T].
        """
        sizes = (x.shape[1],) * len(lr) if sizes is None else tuple(sizes)
        if self._form == "full":
            return self._unrolled(params, x, y, lr, sizes)
        reached = _Steps.apply(self._forth, self._back, tuple(params), sizes, x, y, lr, *params.values())
        return dict(zip(params, reached, strict=True))

    def _unrolled(self, params: Params, x: Tensor, y: Tensor, lr: Tensor, sizes: Sequence[int]) -> Params:
        params = {name: w if w.requires_grad else w.detach().requires_grad_() for name, w in params.items()}
        with _no_autocast(x):
            for t, size in enumerate(sizes):
                slopes = torch.autograd.grad(
                    self._loss(params, x[t, :size], y[t, :size]), list(params.values()), create_graph=True
                )
                params = {name: w - lr[t] * slope for (name, w), slope in zip(params.items(), slopes, strict=True)}
        return params


@fusible
def network_loss(net: Backbone, network: Variables, x: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy of a network. Shapes: x [B, C, H, W]; y [B] int64, or [B, K]."""
    logits, _ = net(network, channels_last(x))
    return F.cross_entropy(logits.float(), y)


def descent(net: Backbone, network: Variables, form: Form = "adjoint") -> Descent:
    """Descent on the cross-entropy of a network without batch statistics, by the fastest functions on its device.

    `network` gives the device, and the buffers, which stay as they are.
    """
    loss, device = _loss_of(net, network.buffers), _device(network)
    return Descent(loss, form=form, written=written_out(net, device))


def exact_form(net: Backbone, network: Variables, images: int) -> Form:
    """The faster one of the exact forms that fits, for steps that see so many images together.

    By the size of the device, and not by what is free, so that a resumed run agrees.
    """
    loss, device = _loss_of(net, network.buffers), _device(network)
    if net.second_order(device) is not None:
        return "adjoint"  # in kernels of ddbench
    pair, classes = torch.zeros(2, *net.shape, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    needed = graph_bytes(loss, network.params, pair, classes) / 2 * images
    return "full" if needed <= SHARE * memory(device) else "adjoint"


def memory(device: torch.device) -> int:
    """Bytes of a GPU; or of this machine, or what of them this process, or its job, may take."""
    return total_bytes(device) or host.memory() or MODEST


def written_out(net: Backbone, device: torch.device) -> Written | None:
    """The two functions of an adjoint step for the cross-entropy of a network: in kernels of ddbench where
    `net.second_order` has them, which leaves nothing to compile, else out of the network's tangents; None for other
    networks."""
    change = net.second_order(device)
    if change is not None:
        first_order = net.first_order(device)

        def forth(params: Params, x: Tensor, y: Tensor, lr: Tensor) -> Params:
            leaves = _leaves(params)
            with torch.enable_grad():
                loss = F.cross_entropy(first_order(Variables(leaves), x)[0], y)
            return _minus(params, lr, _slopes(loss, leaves))

        return forth, _back_along(lambda params, v, x, y: cross_entropy_jvp(change(params, v, x), y, len(y)))
    tangents = net.tangents
    if tangents is None:
        return None

    def along(params: Params, v: Params, x: Tensor, y: Tensor) -> Tensor:
        logits, change = tangents(params, v, x).chunk(2)
        return plain_cross_entropy_jvp(logits, change, y, len(y))

    return fusible(_forth(_loss_of(net, {}))), _back_along(fusible(along))


def _loss_of(net: Backbone, buffers: Params) -> Loss:
    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(Variables(params, buffers), channels_last(x))[0], y)

    return loss


def _device(network: Variables) -> torch.device:
    return next(iter(network.params.values())).device


def _back_along(along: Callable[[Params, Params, Tensor, Tensor], Tensor]) -> Back:
    """From the change of the loss along v, which is differentiated once in reverse."""

    def back(
        params: Params, v: Params, x: Tensor, y: Tensor, lr: Tensor
    ) -> tuple[Params, Tensor, Tensor | None, Tensor]:
        leaves, seen = _leaves(params), {" x": x.detach().requires_grad_()}
        if y.is_floating_point():
            seen[" y"] = y.detach().requires_grad_()
        with torch.enable_grad():
            change = along(leaves, v, seen[" x"], seen.get(" y", y))
        slopes = _slopes(change, {**leaves, **seen})
        mixed = {name: -lr * slopes.pop(name) for name in seen}
        # The derivative by the step size is the product of v and the slope: the loss's change along v.
        return _minus(v, lr, slopes), mixed[" x"], mixed.get(" y"), -change.detach()

    return back


def _leaves(params: Params) -> Params:
    return {name: weights_laid_out(w.detach()).requires_grad_() for name, w in params.items()}


def _slopes(value: Tensor, leaves: Params) -> Params:
    slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    # What a norm takes away again has no slope.
    return {k: torch.zeros_like(w) if s is None else s for (k, w), s in zip(leaves.items(), slopes, strict=True)}


def graph_bytes(loss: Loss, params: Params, x: Tensor, y: Tensor) -> int:
    """What the full form keeps for one step, in bytes, beside the parameters.

    Shapes: x and y [B, ...]. It grows with B; what does not is left out, so that B images of one step stand for many.
    """
    params = {name: w.detach().requires_grad_() for name, w in params.items()}

    def kept(n: int) -> int:
        found: dict[int, tuple[Tensor, int]] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            # Held on to, so that no address is met twice.
            found[storage.data_ptr()] = (tensor, storage.nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), _no_autocast(x):
            torch.autograd.grad(
                loss(params, x[:n].detach().clone().requires_grad_(), y[:n]), list(params.values()), create_graph=True
            )
        return sum(size for _, size in found.values())

    # Parameters, and derivatives by them, are kept however many images there are.
    return 2 * (kept(len(x)) - kept(len(x) // 2))


def _forth(loss: Loss) -> Forth:
    slope_of = grad(loss)

    def forth(params: Params, x: Tensor, y: Tensor, lr: Tensor) -> Params:
        return _minus(params, lr, slope_of(params, x, y))

    return forth


def _back(loss: Loss) -> Back:
    def back(
        params: Params, v: Params, x: Tensor, y: Tensor, lr: Tensor
    ) -> tuple[Params, Tensor, Tensor | None, Tensor]:
        slopes_of = grad(loss, argnums=(0, 1, 2) if y.is_floating_point() else (0, 1))
        both: Any = jvp(lambda w: slopes_of(w, x, y), (params,), (v,))
        (slope, *_), (curved, *mixed) = both
        along = torch.stack([(slope[name] * v[name]).sum() for name in v]).sum()
        return _minus(v, lr, curved), -lr * mixed[0], -lr * mixed[1] if len(mixed) > 1 else None, -along

    return back


def _back_apart(loss: Loss) -> Back:
    # Forward over reverse: torch 2.15 takes the reverse of layer norm's tangent for another function.
    def back(
        params: Params, v: Params, x: Tensor, y: Tensor, lr: Tensor
    ) -> tuple[Params, Tensor, Tensor | None, Tensor]:
        """As in `_back`, had the step's parameters not come from anywhere."""
        slope_of = grad_and_value(loss, argnums=(1, 2) if y.is_floating_point() else (1,))
        mixed, directional = jvp(lambda w: slope_of(w, x, y), (params,), (v,))[1]
        return v, -lr * mixed[0], -lr * mixed[1] if len(mixed) > 1 else None, -directional

    return back


def _minus(a: Params, lr: Tensor, b: Params) -> Params:
    moves = torch._foreach_mul([b[name] for name in a], lr)
    return dict(zip(a, torch._foreach_sub(list(a.values()), moves), strict=True))


def _no_autocast(x: Tensor) -> torch.autocast:
    # Products of second derivatives amplify rounding; and autocast does not reach through two nested transforms.
    return torch.autocast(x.device.type, enabled=False)


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        forth: Any,
        back: Any,
        names: tuple[str, ...],
        sizes: tuple[int, ...],
        x: Tensor,
        y: Tensor,
        lr: Tensor,
        *start: Tensor,
    ) -> tuple[Tensor, ...]:
        params, kept = dict(zip(names, start, strict=True)), list(start)
        # Compilers look at what a view is a part of, and warn where that has a history.
        x, y, lr = x.detach(), y.detach(), lr.detach()
        with _no_autocast(x):
            for t, size in enumerate(sizes):
                params = forth(params, x[t, :size], y[t, :size], lr[t])
                kept += params.values()
        ctx.back, ctx.names, ctx.sizes = back, names, sizes
        # What was reached is not kept: nothing is differentiated there.
        ctx.save_for_backward(x, y, lr, *kept[: len(lr) * len(names)])
        return tuple(params.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, y, lr, *kept = ctx.saved_tensors
        names = ctx.names
        v = {name: weights_laid_out(slope) for name, slope in zip(names, slopes, strict=True)}
        by_x, by_y, by_lr = [], [], []
        with _no_autocast(x):
            for t, size in reversed(list(enumerate(ctx.sizes))):
                params = dict(zip(names, kept[t * len(names) :], strict=False))
                v, dx, dy, dlr = ctx.back(params, v, x[t, :size], y[t, :size], lr[t])
                by_x.append(_filled(dx, x.shape[1]))
                if dy is not None:
                    by_y.append(_filled(dy, y.shape[1]))
                by_lr.append(dlr)
        of_y = torch.stack(by_y[::-1]) if by_y else None
        return (None, None, None, None, torch.stack(by_x[::-1]), of_y, torch.stack(by_lr[::-1]), *v.values())


def _filled(rows: Tensor, count: int) -> Tensor:
    """Rows [n, ...] with zeros behind them, [count, ...]."""
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])

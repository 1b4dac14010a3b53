"""The gradient that every class has in shared weights, and how images turn such gradients.

Matching gradients asks two things of a network, for K classes at once: the gradient g_k of the mean cross-entropy of
each class, and, for given directions u_k, the slope of the sum of <u_k, g_k> in the images. With u the derivative of a
distance in g, that slope is the distance's: nothing is differentiated twice in reverse, and no graph outlives a call.

Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021, arXiv 2006.05929.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.autograd.forward_ad as forward
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from ddbench.backbones.backbone import Backbone
from ddbench.backbones.tangent_blocks import cross_entropy_jvp, plain_cross_entropy_jvp
from ddbench.backbones.variables import Variables
from ddbench.engine.program import channels_last, fusible, weights_laid_out

Tensors = dict[str, Tensor]
Rules = dict[Any, Callable[..., Tensor]]


class ClassGradients:
    """The definition: each class alone, through vmap where the network allows it. Fits every network.

    Shapes: images [K, n, C, H, W], labels [K] int64, one a class; gradients and directions {name: [K, *shape]}.
    `everything` takes all parameters, else those of two or more axes: weights of convolutions and linear layers, and
    the scales of layer norm. Networks with batch norm use the statistics that they bring.
    """

    def __init__(self, net: Backbone, *, everything: bool = False) -> None:
        self._net, self._everything = net, everything

    def of(self, network: Variables, images: Tensor, labels: Tensor) -> Tensors:
        """The gradient of the mean cross-entropy of each class."""
        slope, chosen = grad(self._loss(network)), self._chosen(network)
        gradients: Tensors = self._each(lambda x, label: slope(chosen, x, label), images, labels)
        return gradients

    def slopes(self, network: Variables, images: Tensor, labels: Tensor, directions: Tensors) -> Tensor:
        """The derivative in the images of the gradients' inner products with the directions, summed over classes."""
        loss, chosen = self._loss(network), self._chosen(network)

        def along(direction: Tensors, x: Tensor, label: Tensor) -> Tensor:
            slope: Tensor = jvp(lambda p: grad(loss, argnums=1)(p, x, label), (chosen,), (direction,))[1]
            return slope

        slopes: Tensor = self._each(along, directions, images, labels)
        return slopes

    def _each(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A function of one class, for all of them."""
        if self._net.vmappable:
            return vmap(function)(*arguments)
        classes = [_pytree.tree_map(lambda tensor, k=k: tensor[k], arguments) for k in range(len(arguments[-1]))]
        results = [function(*of_one) for of_one in classes]
        return _pytree.tree_map(lambda *tensors: torch.stack(tensors), *results)

    def _chosen(self, network: Variables) -> Tensors:
        return {name: p.detach() for name, p in network.params.items() if self._everything or p.ndim > 1}

    def _loss(self, network: Variables) -> Callable[[Tensors, Tensor, Tensor], Tensor]:
        def loss(chosen: Tensors, x: Tensor, label: Tensor) -> Tensor:
            logits = _logits(self._net, network, chosen, x)
            return F.cross_entropy(logits, label.expand(len(x)))

        return loss


class SharedGradients(ClassGradients):
    """The same, with all classes in one pass through the network, for weights of two or more axes.

    A convolution with weights of its own for each class is a grouped one, which is slow on GPUs. Here each class
    differs only where it has to: in the gradients of weights, and in the terms that directions add.
    For the networks of ddbench, whose layers are known.
    """

    def of(self, network: Variables, images: Tensor, labels: Tensor) -> Tensors:
        chosen = {
            name: weight.expand(len(labels), *weight.shape).requires_grad_()
            for name, weight in self._chosen(network).items()
        }
        net = self._net.first_order(images.device)
        # Kernels of ddbench leave a compiler nothing to do.
        loss = (_class_loss if net.fused else _fusible_class_loss)(net, network, chosen, images, labels)
        return dict(zip(chosen, torch.autograd.grad(loss, list(chosen.values())), strict=True))

    def slopes(self, network: Variables, images: Tensor, labels: Tensor, directions: Tensors) -> Tensor:
        images = images.detach().requires_grad_()
        # Those kernels are in float32.
        written = None if torch.is_autocast_enabled("cuda") else self._net.second_order(images.device)
        if written is None:
            change = _class_change(self._net, network, directions, images, labels)
        else:
            params = {name: weights_laid_out(p.detach()) for name, p in network.params.items()}
            pair, n = written(params, directions, images.flatten(0, 1)), images.shape[1]
            change = cross_entropy_jvp(pair, labels.repeat_interleave(n), n)
        return torch.autograd.grad(change, images)[0]


def class_gradients(net: Backbone, *, everything: bool = False) -> ClassGradients:
    """The fastest way for a network and the parameters asked for; all are equal up to rounding."""
    if type(net) is Backbone and not everything:
        return SharedGradients(net)
    return ClassGradients(net, everything=everything)


def _class_loss(net: Backbone, network: Variables, chosen: Tensors, images: Tensor, labels: Tensor) -> Tensor:
    """The sum of the classes' mean losses, each by copies of the weights of its own."""
    with _Layers(CLASS_WISE):
        logits = _logits(net, network, chosen, images.flatten(0, 1))
    classes = labels[:, None].expand(images.shape[:2]).flatten()
    return F.cross_entropy(logits, classes, reduction="sum") / images.shape[1]


_fusible_class_loss = fusible(_class_loss)


@fusible
def _class_change(net: Backbone, network: Variables, directions: Tensors, images: Tensor, labels: Tensor) -> Tensor:
    """How fast the losses change as the weights of each class go along its directions."""
    both = {name: torch.cat([network.params[name][None], u]) for name, u in directions.items()}
    with forward.dual_level():
        with _Layers(TANGENT):
            outputs = _logits(net, network, both, images.flatten(0, 1))
        logits, change = forward.unpack_dual(outputs)
    classes = labels[:, None].expand(images.shape[:2]).flatten()
    return plain_cross_entropy_jvp(logits, change, classes, images.shape[1])


def _logits(net: Backbone, network: Variables, chosen: Mapping[str, Tensor], images: Tensor) -> Tensor:
    variables = Variables({**network.params, **chosen}, network.buffers)
    images = images if net.fused else channels_last(images)
    return _full(net(variables, images, train=net.per_sample)[0])


def _full(x: Tensor) -> Tensor:
    """At least in single precision, which autocast leaves."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Layers(TorchFunctionMode):
    """Under it, layers with weights are computed by other rules."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._rules.get(func, func)(*args, **(kwargs or {}))


class _ClassConvolution(torch.autograd.Function):
    """A convolution with K copies of one weight, whose gradient is that of each class."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        out = F.conv2d(x, weights[0], bias, *options)
        ctx.save_for_backward(x.to(out.dtype), weights)
        ctx.options = options
        return out

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weights = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        weight = weights[0].to(x.dtype)

        def back(slope: Tensor, x: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
            gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
                slope, x, weight, None, stride, padding, dilation, False, (0, 0), groups, wanted
            )
            return gradients

        to_x = back(slope, x, [True, False, False])[0] if ctx.needs_input_grad[0] else None
        pairs = zip(slope.chunk(len(weights)), x.chunk(len(weights)), strict=True)
        to_weights = torch.stack([back(*pair, [False, True, False])[1] for pair in pairs]).to(weights.dtype)
        return to_x, to_weights, None, *(None for _ in ctx.options)


class _ClassProduct(torch.autograd.Function):
    """A linear layer with K copies of one weight, whose gradient is that of each class."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        out = F.linear(x, weights[0], bias)
        ctx.save_for_backward(x.to(out.dtype), weights)
        return out

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weights = ctx.saved_tensors
        to_weights = _by_class(slope, weights).mT @ _by_class(x, weights)
        return slope @ weights[0].to(x.dtype), to_weights.to(weights.dtype), None


def _class_convolution(x: Tensor, weights: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    out: Tensor = _ClassConvolution.apply(x, weights, bias, *options)
    return out


def _class_product(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = _ClassProduct.apply(x, weights, bias)
    return out


def _class_layer_norm(x: Tensor, shape: Any, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    y = _by_class(F.layer_norm(x, shape, eps=eps), weight)
    return (y * weight[:, None] + bias[:, None]).flatten(0, 1)


# Below, x carries a tangent once it has passed a layer with weights. The first of 1 + K weights is the weight; the
# others are the directions of the classes.


def _tangent_convolution(x: Tensor, weights: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    x, change = forward.unpack_dual(x)
    weight, directions = weights[0], weights[1:]
    parts = zip(x.chunk(len(directions)), directions, strict=True)
    tangent = torch.cat([F.conv2d(part, u, None, *options) for part, u in parts])
    if change is not None:
        tangent = tangent + F.conv2d(change, weight, None, *options)
    return forward.make_dual(F.conv2d(x, weight, bias, *options), tangent)


def _tangent_product(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    x, change = forward.unpack_dual(x)
    weight, directions = weights[0], weights[1:]
    tangent = (_by_class(x, directions) @ directions.mT).flatten(0, 1)
    if change is not None:
        tangent = tangent + F.linear(change, weight)
    return forward.make_dual(F.linear(x, weight, bias), tangent)


def _tangent_layer_norm(x: Tensor, shape: Any, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    y, change = forward.unpack_dual(_normalised(_full(x), tuple(range(1, x.ndim)), eps))
    tangent = (_by_class(y, weight[1:]) * weight[1:, None] + bias[1:, None]).flatten(0, 1)
    if change is not None:
        tangent = tangent + change * weight[0]
    return forward.make_dual(y * weight[0] + bias[0], tangent)


def _tangent_group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    grouped = _full(x).unflatten(1, (groups, -1))
    y = _normalised(grouped, tuple(range(2, grouped.ndim)), eps).flatten(1, 2)
    return y * weight[:, None, None] + bias[:, None, None]


def _tangent_batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, training: bool, momentum: float, eps: float
) -> Tensor:
    assert not training, "classes that share a pass share no statistics"
    mean, scale, bias = (v[:, None, None] for v in (mean, weight * (variance + eps).rsqrt(), bias))
    return (_full(x) - mean) * scale + bias


def _normalised(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    # By hand, because in torch 2.15 the slope of layer norm's own tangent is wrong, and no norm's is compiled.
    return (x - x.mean(axes, keepdim=True)) * (x.var(axes, correction=0, keepdim=True) + eps).rsqrt()


def _by_class(x: Tensor, classes: Tensor) -> Tensor:
    """[K * n, ...] -> [K, n, ...], where K is the length of `classes`."""
    return x.unflatten(0, (len(classes), -1))


CLASS_WISE: Rules = {F.conv2d: _class_convolution, F.linear: _class_product, F.layer_norm: _class_layer_norm}
TANGENT: Rules = {
    F.conv2d: _tangent_convolution,
    F.linear: _tangent_product,
    F.layer_norm: _tangent_layer_norm,
    F.group_norm: _tangent_group_norm,
    F.batch_norm: _tangent_batch_norm,
}

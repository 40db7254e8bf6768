"""The PyTorch counterparts that the benchmarks measure against.

The same layers, shapes and number of parameters as jaxvol's models, for launch/benchmarks/steps.py:

    fno          `neuralop.models.FNO`, the published package
    vnet         residual V-Net of torch.nn layers, as jaxvol/models/vnet.py
    vit3d        plain ViT of torch.nn layers with fused attention
    pix2pixcc    the published generator's layers

and for launch/benchmarks/bench_laplacian.py networks of points, with their Laplacians by double
backward and by torch.func.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def vnet(widths: tuple[int, ...]) -> nn.Module:
    """Periodic: pre-activation residual blocks, stride-2 convolutions down, 1x1 and trilinear up.

    The decoder adds the skips.
    """

    def conv(a: int, b: int, k: int, bias: bool = True, stride: int = 1) -> nn.Module:
        return nn.Conv3d(
            a,
            b,
            k,
            stride,
            k // 2 if stride == 1 else 0,
            padding_mode="circular" if k > 1 and stride == 1 else "zeros",
            bias=bias,
        )

    class Unit(nn.Module):
        def __init__(self, w: int):
            super().__init__()
            self.layers = nn.Sequential(
                nn.GroupNorm(8, w),
                nn.ReLU(),
                conv(w, w, 3, False),
                nn.GroupNorm(8, w),
                nn.ReLU(),
                conv(w, w, 3),
            )

        def forward(self, x):
            return x + self.layers(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            pairs = list(zip(widths, widths[1:]))
            self.stem, self.head = conv(1, widths[0], 3), conv(widths[0], 1, 1)
            self.encoder, self.decoder = (
                nn.ModuleList([Unit(w) for w in ws]) for ws in (widths, widths[:-1])
            )
            self.down = nn.ModuleList([conv(a, b, 2, stride=2) for a, b in pairs])
            self.up = nn.ModuleList([conv(b, a, 1, False) for a, b in pairs])

        def forward(self, x):
            x, skips = self.encoder[0](self.stem(x)), []
            for down, unit in zip(self.down, self.encoder[1:]):
                skips.append(x)
                x = unit(down(x))
            for i in reversed(range(len(skips))):
                x = F.interpolate(
                    self.up[i](x), scale_factor=2, mode="trilinear", align_corners=False
                )
                x = self.decoder[i](skips[i] + x)
            return self.head(x)

    return Net()


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, features: int):
        super().__init__()
        self.heads, self.qkv, self.out = (
            heads,
            nn.Linear(width, 3 * heads * features, bias=False),
            nn.Linear(heads * features, width),
        )

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, features: int, hidden: int):
        super().__init__()
        self.norms, self.attention = (
            nn.ModuleList([nn.LayerNorm(width) for _ in range(2)]),
            Attention(width, heads, features),
        )
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


def vit3d(
    n: int, patch: int, width: int, layers: int, heads: int, features: int, hidden: int
) -> nn.Module:
    """Patches, a learned table of positions, pre-norm blocks, a linear head per token."""
    grid = n // patch

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Sequential(
                nn.LayerNorm(patch**3), nn.Linear(patch**3, width), nn.LayerNorm(width)
            )
            self.position = nn.Parameter(0.02 * torch.randn(1, grid**3, width))
            self.blocks = nn.Sequential(
                *[TransformerBlock(width, heads, features, hidden) for _ in range(layers)]
            )
            self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, patch**3))

        def forward(self, x):
            b, p = x.shape[0], patch
            tokens = (
                x.reshape(b, grid, p, grid, p, grid, p)
                .permute(0, 1, 3, 5, 2, 4, 6)
                .reshape(b, grid**3, p**3)
            )
            y = self.head(self.blocks(self.embed(tokens) + self.position))
            return (
                y.reshape(b, grid, grid, grid, p, p, p)
                .permute(0, 1, 4, 2, 5, 3, 6)
                .reshape(b, 1, n, n, n)
            )

    return Net()


def pix2pixcc(width: int, downs: int, blocks: int) -> nn.Module:
    """The published generator, with instance norm and Mish.

    7^3 kernels in and out, strided 5^3 downs, residual blocks, trilinear ups.
    """

    def same(a: int, b: int, k: int, stride: int = 1) -> nn.Module:
        return nn.Conv3d(
            a, b, k, stride, k // 2, padding_mode="replicate" if stride == 1 else "zeros"
        )

    class Unit(nn.Module):
        def __init__(self, w: int):
            super().__init__()
            self.layers = nn.Sequential(
                same(w, w, 3), nn.InstanceNorm3d(w), nn.Mish(), same(w, w, 3), nn.InstanceNorm3d(w)
            )

        def forward(self, x):
            return x + self.layers(x)

    layers: list[nn.Module] = [same(1, width, 7), nn.InstanceNorm3d(width), nn.Mish()]
    for i in range(downs):
        layers += [
            same(width << i, width << i + 1, 5, 2),
            nn.InstanceNorm3d(width << i + 1),
            nn.Mish(),
        ]
    layers += [Unit(width << downs) for _ in range(blocks)]
    for i in reversed(range(downs)):
        layers += [
            nn.Upsample(scale_factor=2, mode="trilinear"),
            same(width << i + 1, width << i, 3),
            nn.InstanceNorm3d(width << i),
            nn.Mish(),
        ]
    return nn.Sequential(*layers, same(width, 1, 7))


def points_network(name: str, widths: tuple[int, ...], degree: int) -> nn.Module:
    """[N, widths[0]] -> [N, widths[-1]] of a name: mlp (tanh), or kan.

    kan: a Chebyshev KAN with tanh in front of every layer, one matrix product each.
    """

    class Chebyshev(nn.Module):
        def __init__(self, a: int, b: int):
            super().__init__()
            self.coefficients = nn.Parameter(
                torch.randn((degree + 1) * a, b) / (a * (degree + 1)) ** 0.5
            )

        def forward(self, x):
            x = torch.tanh(x)
            basis = [torch.ones_like(x), x]
            for _ in range(degree - 1):
                basis.append(2 * x * basis[-1] - basis[-2])
            return torch.cat(basis, -1) @ self.coefficients

    pairs = list(zip(widths, widths[1:]))
    if name == "kan":
        return nn.Sequential(*[Chebyshev(a, b) for a, b in pairs])
    return nn.Sequential(*[layer for a, b in pairs for layer in (nn.Linear(a, b), nn.Tanh())][:-1])


def double_backward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Laplacian [N] of the first output: the gradient of every entry of the gradient."""
    x = x.requires_grad_(True)
    gradient = torch.autograd.grad(model(x)[:, 0].sum(), x, create_graph=True)[0]
    return sum(
        torch.autograd.grad(gradient[:, i].sum(), x, create_graph=True)[0][:, i]
        for i in range(x.shape[1])
    )


def functional(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Laplacian [N] of the first output by torch.func: the Hessian's trace, vmapped over points."""
    params = dict(model.named_parameters())
    single = lambda y: torch.func.functional_call(model, params, (y[None],))[0, 0]
    return torch.func.vmap(lambda y: torch.func.hessian(single)(y).diagonal().sum())(x)


METHODS = {"double_backward": double_backward, "functional": functional}


def laplacians(
    name: str, widths: tuple[int, ...], degree: int, points: int, methods: dict[str, str]
) -> dict[str, dict]:
    """{title: {"forward", "gradient": a function that runs once}} on one thread.

    methods: title -> name in METHODS.
    """
    torch.set_num_threads(1)
    model, x = points_network(name, widths, degree), torch.rand(points, widths[0]) * 2 - 1

    def gradient(method) -> None:
        model.zero_grad(set_to_none=True)
        ((method(model, x.clone()) + 1) ** 2).mean().backward()

    def programs(method) -> dict:
        forward = lambda: method(model, x.clone())
        return {"forward": forward, "gradient": lambda: gradient(method)}

    return {title: programs(METHODS[method]) for title, method in methods.items()}

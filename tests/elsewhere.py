"""A pretended accelerator, for machines without one: tensors that say they are on `cuda` hold their values in ordinary memory, and every operation
that a real one would refuse, between tensors here and there, raises `TwoDevices`. It proves where tensors are, not what a GPU computes or how fast."""
import contextlib
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

CUDA = torch.device("cuda")
aten = torch.ops.aten
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}   # a tensor there takes indices and values from here


class TwoDevices(RuntimeError): "Tensors of two devices in one operation, or one of a GPU handed to NumPy."


class There(torch.Tensor):
    "A tensor that claims to be on a GPU."
    @staticmethod
    def __new__(cls, inner, requires_grad=False):
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, requires_grad=requires_grad)
        made.inner = inner
        return made

    device, is_cuda, is_cpu = property(lambda self: CUDA), property(lambda self: True), property(lambda self: False)

    def __repr__(self): return f"There({self.inner})"
    def tolist(self): return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        free = op is aten.copy_.default or op in INDEXED and isinstance(args[0], There)
        if not free and any(not isinstance(x, There) and x.dim() for x in tensors):
            raise TwoDevices(f"{op}: {[('there' if isinstance(x, There) else 'here', tuple(x.shape)) for x in tensors]}")
        out = op(*tree_map_only(There, lambda x: x.inner, args), **tree_map_only(There, lambda x: x.inner, kwargs or {}))
        if op is aten.copy_.default: return args[0]
        inside = {id(x.inner): x for x in tensors if isinstance(x, There)}
        return tree_map_only(torch.Tensor, lambda x: inside[id(x)] if id(x) in inside else There(x), out)      # in place: the tensor it was


class Generator(torch.Generator):
    "A generator that claims to be where it was asked for."
    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        made.where = torch.device(device)
        return made

    def __init__(self, device="cpu"): pass
    device = property(lambda self: self.where)


def _check(kwargs: dict, there: bool) -> None:
    "A generator draws on its own device only."
    g = kwargs.get("generator")
    if g is not None and (g.device.type == "cuda") != there: raise TwoDevices("generator: of another device than the tensor")


def over(x: torch.Tensor) -> torch.Tensor:
    "Carry a tensor there, as `.to('cuda')` does."
    return x if isinstance(x, There) else Carry.apply(x)


class Carry(torch.autograd.Function):
    "From here to there; gradients come back."
    @staticmethod
    def forward(ctx, x): return There(x.detach().clone())
    @staticmethod
    def backward(ctx, g): return g.inner


class Back(torch.autograd.Function):
    "From there to here; gradients go back there."
    @staticmethod
    def forward(ctx, x): return x.inner.detach().clone()
    @staticmethod
    def backward(ctx, g): return There(g)


class Pretend(TorchFunctionMode):
    "Moves and factories that name a device."
    def __torch_function__(self, f, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(f, "__name__", "")
        if name in ("numpy", "__array__") and isinstance(args[0], There): raise TwoDevices("numpy: can't convert a tensor of a GPU")
        if name == "to":
            x, rest = args[0], list(args[1:])
            where = kwargs.pop("device", None)
            if rest and not isinstance(rest[0], (torch.dtype, torch.Tensor)): where = rest.pop(0)
            if rest and isinstance(rest[0], torch.Tensor): where, rest = rest[0].device, [rest[0].dtype, *rest[1:]]
            rest = [r for r in rest if isinstance(r, torch.dtype)]                     # not non_blocking, copy
            x = f(x, *rest, **kwargs) if rest or kwargs.get("dtype") or kwargs.get("memory_format") else x
            return x if where is None else over(x) if torch.device(where).type == "cuda" else Back.apply(x) if isinstance(x, There) else x
        if name == "new_tensor" and isinstance(args[0], There): return over(torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)))
        if name == "cuda": return over(args[0])
        if name == "cpu": return Back.apply(args[0]) if isinstance(args[0], There) else args[0]
        where = kwargs.get("device")
        if where is not None and torch.device(where).type == "cuda":
            _check(kwargs, True)
            return over(f(*args, **kwargs | {"device": "cpu"}))
        _check(kwargs, any(isinstance(x, There) for x in tree_flatten((args, kwargs))[0]))
        return f(*args, **kwargs)


@contextlib.contextmanager
def elsewhere():
    "Inside, `cuda` is a pretended device."
    torch.__future__.set_overwrite_module_params_on_conversion(True)       # modules get new parameters, not new data in the old ones
    try:
        with Pretend(), mock.patch.object(torch, "Generator", Generator): yield
    finally: torch.__future__.set_overwrite_module_params_on_conversion(False)

"""torch's names for parameters that live in submodules here.

torch's module keeps its in-projection as bare parameters, which no hook sees, no adapter wraps and no quantiser finds.
Here each projection is an ``nn.Linear`` that is called, and torch's names are other names for its parameters: in
attributes and in every ``state_dict``, so that checkpoints go both ways. ``named_parameters()`` says where they live.
"""

from typing import Any

from torch import nn

from multihead.conventions import kind_of

TORCHS_NAMES = {
    "in_proj_weight": ("in_proj", "weight"),
    "q_proj_weight": ("q_proj", "weight"),
    "k_proj_weight": ("k_proj", "weight"),
    "v_proj_weight": ("v_proj", "weight"),
    "in_proj_bias": ("in_proj", "bias"),
    "bias_k": ("vectors", "bias_k"),
    "bias_v": ("vectors", "bias_v"),
}
"""torch's name of each parameter outside ``out_proj``, in torch's order, and the child and attribute that hold it."""


def _property(name: str) -> property:
    def read(self: "TorchNames") -> Any:
        child, attribute = self._place(name)
        holder = getattr(self, child)
        return None if holder is None else getattr(holder, attribute)

    return property(read, doc=f"torch's ``{name}``: the parameter itself, or None where these sizes have none.")


class TorchNames(nn.Module):
    """A module with the children ``in_proj``, or ``q_proj``, ``k_proj`` and ``v_proj``, and ``vectors``."""

    in_proj_weight = _property("in_proj_weight")
    q_proj_weight = _property("q_proj_weight")
    k_proj_weight = _property("k_proj_weight")
    v_proj_weight = _property("v_proj_weight")
    in_proj_bias = _property("in_proj_bias")
    bias_k = _property("bias_k")
    bias_v = _property("bias_v")

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_save_under_torchs_names)
        self.register_load_state_dict_pre_hook(_load_from_torchs_names)

    def _place(self, name: str) -> tuple[str, str]:
        """The child and the attribute in which a parameter of torch's lives."""
        if name == "in_proj_bias" and self.in_proj is None:
            # three projections share the one bias that torch knows
            return "vectors", name
        return TORCHS_NAMES[name]

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign a parameter under torch's name where it lives."""
        if name not in TORCHS_NAMES:
            super().__setattr__(name, value)
            return
        child, attribute = self._place(name)
        holder = getattr(self, child)
        if holder is not None:
            setattr(holder, attribute, value)
        elif value is not None:
            raise AttributeError(
                f"{name} cannot be {kind_of(value)}: an attention with kdim={self.kdim} and vdim={self.vdim} beside "
                f"embed_dim={self.embed_dim} has no {child}."
            )


def _places(module: nn.Module) -> dict[str, str]:
    """Key below the module, and torch's key, of each parameter that is there and in its own place."""
    assert isinstance(module, TorchNames)  # noqa: S101  it registers the hooks itself
    places = {name: ".".join(module._place(name)) for name in TORCHS_NAMES}
    own = {key for key, _ in module.named_parameters(remove_duplicate=False)}
    return {key: name for name, key in places.items() if key in own}


def _save_under_torchs_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: dict[str, Any]) -> None:
    places = {prefix + key: prefix + name for key, name in _places(module).items()}
    # each is put back, so that the order stays torch's
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[places.get(key, key)] = state_dict.pop(key)


def _load_from_torchs_names(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    metadata: dict[str, Any],  # noqa: ARG001
    strict: bool,
    missing: list[str],
    *_: list[str],
) -> None:
    for key, name in _places(module).items():
        if prefix + key in state_dict:
            continue
        if prefix + name in state_dict:
            state_dict[prefix + key] = state_dict.pop(prefix + name)
        elif strict:
            # reported under torch's name; loading what is there already keeps the child from reporting its own
            missing.append(prefix + name)
            state_dict[prefix + key] = module.get_parameter(key)

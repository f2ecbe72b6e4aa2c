"""The precisions that passages can be embedded in on a CPU, by name; without waiting for torch."""

from importlib.util import find_spec

from rag.errors import UserError

BFLOAT16, INT8, OPENVINO = "bfloat16", "int8", "openvino"  # as a manifest names them
NO_OPENVINO = (
    "openvino=true needs OpenVINO, which is not installed: python -m pip install -e "
    '".[openvino]" -c constraints.txt'
)


def chosen_precision(**asked: bool) -> str | None:
    """The one that is asked for by its name; UserError where several are, or one that is not installed."""
    chosen = [name for name, wanted in asked.items() if wanted]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(f'{name}=true' for name in chosen)} exclude each other: take one")
    if chosen == [OPENVINO] and find_spec("openvino") is None:
        raise UserError(NO_OPENVINO)
    return chosen[0] if chosen else None

"""From a trained network to what users run: fold, prove that nothing changed, export to ONNX."""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from timm.models.fastvit import AttentionBlock, FastVit, LayerScale2d
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from handmesh.assets import ASSETS, HandModelArrays, load_hand_model
from handmesh.atomic import written_whole
from handmesh.crop import CROP_SCALE
from handmesh.estimator import PRESENCE
from handmesh.model.graph_passes import HALF, PASSES, SMALL_TENSOR, store_float16
from handmesh.model.hand_model import HandModel
from handmesh.model.regressor import (
    HandRegressor,
    NetworkConfig,
    check_hand_model,
    load_network,
    read_checkpoint,
    wrist_relative_hand,
)
from handmesh.runtime import INT8_SUFFIX
from handmesh.skeleton import MANO_VERTEX_COUNT

_log = logging.getLogger(__name__)

HAND_OUTPUTS = ("rotations", "betas", "camera", "vertices", "joints", "joints_2d", "presence", "right")
RESERVED_NAMES = ("detector", "hand_model")  # of the other graphs that an estimator opens
TRANSPOSED = ".transposed"  # follows the name of a weight that a graph holds so
MAX_CHANGE_MM = 1.0  # by folding or by the runtime; what is more is a mistake
_OPSET = 20  # the first with GELU as one operator


@torch.no_grad()
def fold(network: HandRegressor) -> HandRegressor:
    """A copy in evaluation mode whose training-time branches and batch norms are folded into plain convolutions.

    timm folds MobileOne blocks, RepMixers, large-kernel convolutions and positional encodings; the batch norms that
    it leaves (ConvFFN's 7x7, the head's, those before attention) and the layer scales are folded here.

    Raises:
        ValueError: the network was folded before (timm's fold would corrupt it).
    """
    if any(hasattr(module, "reparam_conv") and module.reparam_conv is not None for module in network.modules()):
        raise ValueError("this network is folded already; fold the training form")
    folded = copy.deepcopy(network).eval()
    folded.backbone = fold_backbone(folded.backbone)
    _fold_norms_and_scales(folded.head)
    return folded


@torch.no_grad()
def fold_backbone(backbone: FastVit) -> FastVit:
    """A folded copy of a FastViT in evaluation mode, as in `fold`."""
    folded = reparameterize_model(copy.deepcopy(backbone).eval(), inplace=True)
    assert isinstance(folded, FastVit)
    _fold_norms_and_scales(folded)
    return folded


def _fold_norms_and_scales(network: nn.Module) -> None:
    for module in list(network.modules()):
        _fold_sequential_norms(module)
        if isinstance(module, AttentionBlock):
            _fold_attention_block(module)
        elif hasattr(module, "mlp") and isinstance(getattr(module, "layer_scale", None), LayerScale2d):
            _fold_scale(module.mlp.fc2, module, "layer_scale")  # pyright: ignore
    left = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d | LayerScale2d)]
    assert not left, f"batch norms and layer scales survived the fold: {left}"


def _fold_sequential_norms(module: nn.Module) -> None:
    """Fuse every child convolution that is directly followed by a child batch norm."""
    children = list(module.named_children())
    for (name, first), (next_name, second) in itertools.pairwise(children):
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(first, second))
            # timm's norm layers carry an activation and dropout of their own
            setattr(module, next_name, getattr(second, "act", None) or nn.Identity())


def _fold_attention_block(block: AttentionBlock) -> None:
    norm, attention = block.norm, block.token_mixer
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    qkv = nn.Linear(attention.qkv.in_features, attention.qkv.out_features)
    qkv.weight.copy_(attention.qkv.weight * scale)
    qkv.bias.copy_(attention.qkv.weight @ shift)
    if attention.qkv.bias is not None:
        qkv.bias.add_(attention.qkv.bias)
    attention.qkv = qkv
    block.norm = nn.Identity()
    _fold_scale(attention.proj, block, "layer_scale_1")
    _fold_scale(block.mlp.fc2, block, "layer_scale_2")


def _fold_scale(layer: nn.Conv2d | nn.Linear, parent: nn.Module, name: str) -> None:
    gamma = getattr(parent, name).gamma.flatten()
    layer.weight.mul_(gamma.view(-1, *[1] * (layer.weight.ndim - 1)))
    if layer.bias is not None:
        layer.bias.mul_(gamma)
    setattr(parent, name, nn.Identity())


@torch.no_grad()
def parity_mm(network: HandRegressor, other: HandRegressor, crops: torch.Tensor) -> float:
    """Largest distance between the same vertex of two networks' hands over crops (N, S, S, 3) uint8, in mm."""
    network, other = network.eval(), other.eval()
    return float((network(crops).vertices - other(crops).vertices).norm(dim=-1).max()) * 1e3


def fold_mm(network: HandRegressor, crops: torch.Tensor) -> float:
    """How far folding a network moves a vertex, as `parity_mm`."""
    return parity_mm(network, fold(network), crops)


class DeployedHand(nn.Module):
    """What users run, as a graph or in torch: crops (N, S, S, 3) uint8 -> HAND_OUTPUTS in their order."""

    def __init__(self, network: HandRegressor) -> None:
        super().__init__()
        self.network = network

    def forward(self, crop: torch.Tensor) -> tuple[torch.Tensor, ...]:
        head, vertices, joints = self.network(crop)
        return (
            head.rotations,
            head.betas,
            head.camera,
            vertices,
            joints,
            head.joints_2d,
            head.presence.sigmoid(),
            head.right.sigmoid(),
        )


class _DeployedHandModel(nn.Module):
    def __init__(self, hand_model: HandModel) -> None:
        super().__init__()
        self.hand_model = hand_model

    def forward(self, rotations: torch.Tensor, betas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return wrist_relative_hand(self.hand_model, rotations, betas)


def export_hand_network(
    network: HandRegressor, path: Path, *, name: str, presence: float = PRESENCE, float16: bool = True
) -> None:
    """Write a folded network as one ONNX file: `crop` (N, S, S, 3) uint8 RGB -> HAND_OUTPUTS, float32.

    The name, input size, crop scale and the presence that a found hand needs travel in the file's metadata. With
    `float16` the parameters are stored in half precision, computed with in single, and cast when a runtime opens the
    file.
    """
    size = network.config.input_size
    vertices = network.hand_model.vertex_count
    meta = {"kind": "hand", "name": name, "input_size": size, "crop_scale": CROP_SCALE, "presence": presence}
    meta |= {"variant": network.config.variant, "head": network.config.head, "activation": network.config.activation}
    meta |= {"vertices": vertices, "hand_model": "mano" if vertices == MANO_VERTEX_COUNT else "handmesh-open"}
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    export_graph(DeployedHand(network).eval(), (example,), ("crop",), HAND_OUTPUTS, path, meta, float16=float16)


def export_hand_model(path: Path, arrays: HandModelArrays | None = None) -> None:
    """Write the hand model as ONNX: `rotations` (N, 16, 3, 3), `betas` (N, 10) -> `vertices`, `joints`."""
    module = _DeployedHandModel(HandModel(arrays or load_hand_model())).eval()
    example = (torch.eye(3).repeat(2, 16, 1, 1), torch.zeros(2, 10))
    outputs = ("vertices", "joints")
    export_graph(module, example, ("rotations", "betas"), outputs, path, {"kind": "hand_model"}, float16=True)


def export_graph(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    path: Path,
    meta: dict[str, Any],
    *,
    float16: bool,
    open_axes: Sequence[int] = (0,),
) -> None:
    """Write a module as one ONNX file whose metadata key `handmesh` holds `meta` as JSON; whole or not at all.

    `open_axes` of every input may have any length; `float16` stores large parameters in half precision.
    """
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple(dict.fromkeys(open_axes, torch.export.Dim.DYNAMIC) for _ in inputs),
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _name_transposed(model, module)
    for change in PASSES:
        change(model)
    if float16:
        store_float16(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = "handmesh", json.dumps(meta)
    onnx.checker.check_model(model)
    with written_whole(path) as temporary:
        onnx.save(model, str(temporary))


def _name_transposed(model: onnx.ModelProto, module: nn.Module) -> None:
    """Name the weights that the exporter has transposed, and named anew, by what they are."""
    own = {name: value for name, value in module.state_dict().items() if value.ndim == 2}
    names: dict[str, str] = {}
    for initializer in model.graph.initializer:
        if len(initializer.dims) == 2 and initializer.name not in own:
            array = torch.tensor(numpy_helper.to_array(initializer))
            for name, value in own.items():
                if value.T.shape == array.shape and torch.equal(value.T, array.to(value.dtype)):
                    names[initializer.name] = initializer.name = name + TRANSPOSED
                    break
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)


def runtime_parity_mm(network: HandRegressor, path: Path, crops: torch.Tensor) -> float:
    """Largest distance between the same vertex in torch and in onnxruntime over crops (N, S, S, 3) uint8, in mm."""
    with torch.no_grad():
        expected = network.eval()(crops).vertices.numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(["vertices"], {"crop": crops.numpy()})
    return float(np.linalg.norm(found - expected, axis=-1).max()) * 1e3


def register_weights(folder: Path, name: str, file: Path, facts: dict[str, Any]) -> None:
    """Copy a file into `folder` and enter it into its `weights.json` with its SHA-256, replacing an entry of that name.

    Wherever that is interrupted, the entry and the file it names belong together: weights that are there already are
    replaced by way of a second copy, as two files cannot change at once. So `file` should lie elsewhere until then.
    """
    registry, target = folder / "weights.json", folder / file.name
    spare = target.with_name(f".{target.stem}.next{target.suffix}")
    entries = json.loads(registry.read_text()) if registry.is_file() else {}
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    in_use = entries.get(name, {}).get("file") == target.name
    for place in (spare, target) if in_use else (target,):
        with written_whole(place) as temporary:
            shutil.copyfile(file, temporary)
        entries[name] = {"file": place.name, "sha256": digest, **facts}
        _write_registry(registry, entries)
    spare.unlink(missing_ok=True)


def _write_registry(registry: Path, entries: dict[str, Any]) -> None:
    with written_whole(registry) as temporary:
        temporary.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")


def forget_weights(folder: Path, name: str) -> bool:
    """Take a name out of the folder's `weights.json` and delete its file; says whether it was there."""
    registry = folder / "weights.json"
    entries = json.loads(registry.read_text()) if registry.is_file() else {}
    entry = entries.pop(name, None)
    if entry is not None:
        _write_registry(registry, entries)
        (folder / entry["file"]).unlink(missing_ok=True)
    return entry is not None


def load_torch_network(path: Path, hand_model: HandModelArrays | None = None) -> HandRegressor:
    """A folded network for inference in torch, from a training checkpoint or from what `export_hand_network` wrote.

    It poses `hand_model` (None: the embedded one). Raises FileNotFoundError or ValueError as `load_network` does.
    """
    return network_from_onnx(path, hand_model) if path.suffix == ".onnx" else fold(load_network(path, hand_model))


def folded_average(paths: Sequence[Path], hand_model: HandModelArrays | None = None) -> HandRegressor:
    """The mean of folded networks, each from a file that `load_torch_network` takes.

    Networks from the ends of successive runs lie around a better one (Izmailov et al., "Averaging weights leads to
    wider optima and better generalization", UAI 2018); such as began apart cannot be averaged. Raises as
    `load_torch_network`, and ValueError for networks of different forms.
    """
    networks = [load_torch_network(path, hand_model) for path in paths]
    mean = networks[0]
    for path, network in zip(paths, networks, strict=True):
        if network.config != mean.config:
            raise ValueError(f"{path} holds {network.config}, but {paths[0]} {mean.config}: only like networks average")
    states = [network.state_dict() for network in networks]
    mean.load_state_dict(
        {
            key: torch.stack([state[key] for state in states]).mean(0) if value.is_floating_point() else value
            for key, value in states[0].items()
        }
    )
    return mean


def description_of(model: onnx.ModelProto) -> dict[str, Any]:
    """What an exported graph says about itself, or nothing. Raises ValueError where that is no JSON."""
    return json.loads({entry.key: entry.value for entry in model.metadata_props}.get("handmesh", "{}"))


def network_from_onnx(
    path: Path, hand_model: HandModelArrays | None = None, *, of_any_hand: bool = False
) -> HandRegressor:
    """`load_torch_network` of an exported graph. `of_any_hand`: also of one for another hand model, to learn on."""
    model = read_graph(path)
    try:
        meta = description_of(model)
        config = NetworkConfig(
            variant=meta["variant"],
            head=meta["head"],
            input_size=meta["input_size"],
            activation=meta.get("activation", "gelu"),
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} does not say which network it holds: write it with `handmesh export`") from error
    if meta.get("precision") == "int8":
        raise ValueError(
            f"{path} computes in int8, which torch cannot run or train on: give the file of its float form"
        )
    network = fold(HandRegressor(config, hand_model))
    if not of_any_hand:
        check_hand_model(network, meta.get("vertices"), path)
    stored = stored_weights(model, "network.")
    if any(name.endswith(".gamma") for name in stored):
        raise ValueError(f"{path} was exported before layer scales were folded: export the network again")
    state = {}
    for key, value in network.state_dict().items():
        found = stored.get(key)
        if found is None and key + TRANSPOSED in stored:
            found = stored[key + TRANSPOSED].T
        elif found is None:  # exported before these were named: only one can be of this shape
            candidates = [a for name, a in stored.items() if name.startswith("val_") and a.shape == value.shape[::-1]]
            if len(candidates) != 1:
                raise ValueError(f"{path} lacks the weight {key}: export the network again")
            found = candidates[0].T
        state[key] = torch.tensor(found, dtype=value.dtype)
    network.load_state_dict(state)
    return network


def read_graph(path: Path) -> onnx.ModelProto:
    """An ONNX file. Raises FileNotFoundError, and ValueError for a file that is none or not a whole one."""
    if not path.is_file():
        raise FileNotFoundError(f"no network file at {path}")
    try:
        return onnx.load(str(path))
    except DecodeError as error:
        raise ValueError(f"{path} is no ONNX file, or not a whole one: {error}") from error


def stored_weights(model: onnx.ModelProto, prefix: str) -> dict[str, np.ndarray]:
    """Weights of an exported graph by their names in torch, less `prefix`; some are stored in half precision."""
    return {
        initializer.name.removeprefix(prefix).removesuffix(HALF): numpy_helper.to_array(initializer)
        for initializer in model.graph.initializer
    }


def round_to_float16(network: HandRegressor) -> HandRegressor:
    """A copy whose large parameters hold only float16 values, as `export_hand_network` stores them."""
    rounded = copy.deepcopy(network)
    for parameter in rounded.parameters():
        if parameter.ndim >= 2 and parameter.numel() >= SMALL_TENSOR:
            parameter.data = parameter.data.half().float()
    return rounded


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `handmesh export`: checkpoint -> folded ONNX files, entered into the folder's weights.json."""
    parser = argparse.ArgumentParser(prog="handmesh export", description=main.__doc__)
    parser.add_argument(
        "checkpoints",
        type=Path,
        nargs="+",
        metavar="CHECKPOINT",
        help="a run's ema.pt; of several, their average, also with exported float .onnx files",
    )
    parser.add_argument("--name", default="fast", help="name for HandMeshEstimator.from_pretrained")
    parser.add_argument("--folder", type=Path, default=ASSETS, help="where the files go")
    parser.add_argument("--crops", type=int, default=32, help="random crops for the parity report")
    parser.add_argument("--presence", type=float, default=PRESENCE, help="what it must say of a hand (%(default)s)")
    parser.add_argument("--samples", type=int, help="samples seen in all runs (default: in the last ema.pt's)")
    parser.add_argument("--hand-model", type=Path, help="the model it was trained on: your MANO_RIGHT.pkl or .npz")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # the exporter itself is talkative
    logging.getLogger("handmesh").setLevel(logging.INFO)
    if args.name in RESERVED_NAMES:
        parser.error(f"--name {args.name} is what another graph is looked for by: choose another")
    if not 0.0 <= args.presence <= 1.0:
        parser.error(f"--presence is a probability, 0 to 1, and not {args.presence:g}")
    if args.hand_model is not None and args.folder.resolve() == ASSETS.resolve():
        parser.error("give --folder: graphs hold their hand model, and a licensed one must not lie in the package")

    hand_model = None if args.hand_model is None else load_hand_model(args.hand_model)
    trained = [path for path in dict.fromkeys(args.checkpoints) if path.suffix != ".onnx"]
    if args.samples is None and not trained:
        parser.error("exported files do not say how much they have seen: give --samples")
    folded = folded_average(args.checkpoints, hand_model)
    size = folded.config.input_size
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (args.crops, size, size, 3), generator=generator, dtype=torch.uint8)
    rounded = round_to_float16(folded)
    path = args.folder / f"{args.name}.onnx"
    pose_graph = "hand_model" if hand_model is None else f"{args.name}_hand_model"
    with tempfile.TemporaryDirectory() as temporary:  # what is there stays in use until all is written and measured
        hand_file, pose_file = Path(temporary) / path.name, Path(temporary) / f"{pose_graph}.onnx"
        export_hand_network(folded, hand_file, name=args.name, presence=args.presence)
        export_hand_model(pose_file, hand_model)
        report = {
            "fold_mm": float(np.max([fold_mm(load_network(path, hand_model), crops) for path in trained], initial=0.0)),
            "float16_mm": parity_mm(folded, rounded, crops),
            "onnxruntime_mm": runtime_parity_mm(rounded, hand_file, crops),
        }
        kept = report["fold_mm"] <= MAX_CHANGE_MM and report["onnxruntime_mm"] <= MAX_CHANGE_MM  # not so for NaN
        if not kept or not math.isfinite(report["float16_mm"]):
            raise ValueError(f"nothing was published: the network is broken, or changes as it is exported ({report})")
        seen = args.samples or read_checkpoint(trained[-1]).get("seen")
        built = folded.config
        facts = {"variant": built.variant, "head": built.head, "activation": built.activation, "input_size": size}
        facts["samples_seen"] = seen
        forget_weights(args.folder, args.name + INT8_SUFFIX)  # the twin of the weights before
        register_weights(args.folder, args.name, hand_file, {"kind": "hand", **facts, "parity": report})
        register_weights(args.folder, pose_graph, pose_file, {"kind": "hand_model"})
    _log.info("%s: %.2f MB; largest vertex differences in mm: %s", path, path.stat().st_size / 1e6, report)
    _log.info("its int8 twin, which runs faster: handmesh quantise %s --folder %s --data DATA", args.name, args.folder)


if __name__ == "__main__":
    main()

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from handmesh.assets import HandModelArrays, load_hand_model  # noqa: E402
from handmesh.model.hand_model import HandMeshBatch, HandModel  # noqa: E402
from handmesh.model.rotations import rotvec_to_rotmat  # noqa: E402
from handmesh.skeleton import KEYPOINTS, MANO_JOINTS, MANO_PARENTS  # noqa: E402

#: Metres. smplx biases the angle of a rotation by 1e-8, and float32 sums over vertices; both stay far below.
SMPLX_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def arrays() -> HandModelArrays:
    return load_hand_model()


@pytest.fixture(scope="module")
def arrays_with_posedirs(arrays: HandModelArrays) -> HandModelArrays:
    rng = np.random.default_rng(0)
    return replace(arrays, posedirs=rng.normal(0, 1e-3, arrays.posedirs.shape))


def tiny_arrays(seed: int = 0) -> HandModelArrays:
    """A random model of nine vertices, for checks that need small sizes."""
    rng = np.random.default_rng(seed)
    V = 9
    weights = rng.uniform(size=(V, 16))
    regressor = rng.uniform(size=(16, V))
    return HandModelArrays(
        v_template=rng.normal(size=(V, 3)),
        shapedirs=rng.normal(size=(V, 3, 10)),
        posedirs=rng.normal(size=(V, 3, 135)) * 0.1,
        J_regressor=regressor / regressor.sum(1, keepdims=True),
        weights=weights / weights.sum(1, keepdims=True),
        parents=np.array(MANO_PARENTS),
        faces=np.array([[0, 1, 2], [3, 4, 5]]),
        hands_components=np.eye(45),
        hands_mean=np.zeros(45),
        fingertips=np.array([4, 5, 6, 7, 8]),
    )


def sample(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotation vectors (count, 16, 3) and betas; the first poses are zero, half turns and almost zero."""
    generator = torch.Generator().manual_seed(seed)
    rotvecs = torch.randn(count, 16, 3, generator=generator, dtype=torch.float64)
    rotvecs[0] = 0
    rotvecs[1] = torch.nn.functional.normalize(rotvecs[1], dim=-1) * math.pi
    rotvecs[2] *= 1e-7
    rotvecs[3, 1:] = 0
    betas = torch.randn(count, 10, generator=generator, dtype=torch.float64)
    betas[0] = 0
    return rotvecs.to(dtype), betas.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("posedirs", [True, False])
def test_equals_smplx(
    arrays: HandModelArrays, arrays_with_posedirs: HandModelArrays, dtype: torch.dtype, posedirs: bool
) -> None:
    smplx = pytest.importorskip("smplx")
    used = arrays_with_posedirs if posedirs else arrays
    struct = smplx.utils.Struct(
        v_template=used.v_template,
        shapedirs=used.shapedirs,
        posedirs=used.posedirs,
        J_regressor=used.J_regressor,
        weights=used.weights,
        kintree_table=np.stack((used.parents, np.arange(16))),
        f=used.faces,
        hands_components=used.hands_components,
        hands_mean=used.hands_mean,
    )
    oracle = smplx.MANO(
        model_path="", data_struct=struct, use_pca=False, flat_hand_mean=True, dtype=dtype, batch_size=1
    )
    rotvecs, betas = sample(24, dtype)
    expected = oracle(betas=betas, global_orient=rotvecs[:, 0], hand_pose=rotvecs[:, 1:].flatten(1))
    found = HandModel(used, dtype=dtype)(rotvec_to_rotmat(rotvecs), betas)
    torch.testing.assert_close(found.vertices, expected.vertices, atol=SMPLX_TOLERANCE, rtol=0)
    torch.testing.assert_close(found.joints, expected.joints, atol=SMPLX_TOLERANCE, rtol=0)


def test_gradients() -> None:
    model = HandModel(tiny_arrays(), dtype=torch.float64)
    rotvecs, betas = sample(4)
    rotvecs = rotvecs[[0, 1, 3]].requires_grad_()
    betas = betas[[0, 1, 3]].requires_grad_()

    def posed(rotvecs: torch.Tensor, betas: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(model(rotvec_to_rotmat(rotvecs), betas))

    assert torch.autograd.gradcheck(posed, (rotvecs, betas), fast_mode=True)


def test_zero_pose_is_the_shaped_template(arrays: HandModelArrays) -> None:
    model = HandModel(arrays, dtype=torch.float64)
    betas = torch.linspace(-2, 2, 10, dtype=torch.float64)
    found = model(torch.eye(3, dtype=torch.float64).expand(16, 3, 3), betas)
    shaped = arrays.v_template.astype(np.float64) + arrays.shapedirs.astype(np.float64) @ betas.numpy()
    np.testing.assert_allclose(found.vertices.numpy(), shaped, atol=1e-9)
    np.testing.assert_allclose(found.joints.numpy(), arrays.J_regressor @ shaped, atol=1e-9)


def test_global_rotation_is_rigid_about_the_wrist(arrays_with_posedirs: HandModelArrays) -> None:
    model = HandModel(arrays_with_posedirs, dtype=torch.float64)
    rotvecs, betas = sample(6)
    R = rotvec_to_rotmat(rotvecs)
    turned = model(R, betas)
    upright = model(torch.cat((torch.eye(3).double().expand(6, 1, 3, 3), R[:, 1:]), dim=1), betas)
    for after, before in zip(turned, upright, strict=True):
        wrist = upright.joints[:, :1]
        expected = (before - wrist) @ R[:, 0].mT + wrist
        torch.testing.assert_close(after, expected, atol=1e-12, rtol=0)


def test_posed_bones_keep_their_lengths(arrays: HandModelArrays) -> None:
    model = HandModel(arrays, dtype=torch.float64)
    rotvecs, betas = sample(6)
    parents = list(MANO_PARENTS[1:])

    def lengths(joints: torch.Tensor) -> torch.Tensor:
        return (joints[:, 1:] - joints[:, parents]).norm(dim=-1)

    rest = model.shape(betas).joints
    torch.testing.assert_close(lengths(model(rotvec_to_rotmat(rotvecs), betas).joints), lengths(rest))


def test_batch_equals_singles(arrays_with_posedirs: HandModelArrays) -> None:
    model = HandModel(arrays_with_posedirs, dtype=torch.float64)
    rotvecs, betas = sample(5)
    together = model(rotvec_to_rotmat(rotvecs), betas)
    for i in range(5):
        alone = model(rotvec_to_rotmat(rotvecs[i]), betas[i])
        for field, single in zip(together, alone, strict=True):
            torch.testing.assert_close(field[i], single, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("rotations_lead", "betas_lead", "lead"),
    [
        ((), (), ()),
        ((2, 3), (2, 3), (2, 3)),
        ((4,), (), (4,)),
        ((), (4,), (4,)),
        ((2, 1), (3,), (2, 3)),
        ((0,), (0,), (0,)),
    ],
)
def test_leading_shapes_broadcast(
    rotations_lead: tuple[int, ...], betas_lead: tuple[int, ...], lead: tuple[int, ...]
) -> None:
    model = HandModel(tiny_arrays())
    found = model(rotvec_to_rotmat(torch.ones(*rotations_lead, 16, 3)), torch.ones(*betas_lead, 10))
    assert found.vertices.shape == (*lead, 9, 3)
    assert found.joints.shape == (*lead, 16, 3)
    assert found.keypoints.shape == (*lead, 21, 3)


def test_keypoints_are_named_joints_and_tips(arrays: HandModelArrays) -> None:
    found = HandModel(arrays)(torch.eye(3).expand(16, 3, 3), torch.zeros(10))
    for i, name in enumerate(KEYPOINTS):
        if name.endswith("_tip"):
            finger = ("thumb", "index", "middle", "ring", "little").index(name.removesuffix("_tip"))
            expected = found.vertices[int(arrays.fingertips[finger])]
        else:
            expected = found.joints[MANO_JOINTS.index(name)]
        assert torch.equal(found.keypoints[i], expected)


def test_zero_posedirs_are_dropped_and_change_nothing(arrays: HandModelArrays) -> None:
    assert HandModel(replace(arrays, posedirs=np.zeros_like(arrays.posedirs))).posedirs is None


def test_few_pose_shapes_do_as_well_as_all(arrays: HandModelArrays) -> None:
    """The embedded correctives depend on far fewer than 135 features; random ones do not, and keep them."""
    rotvecs, betas = sample(20)
    rotations = rotvec_to_rotmat(rotvecs)
    model = HandModel(arrays, dtype=torch.float64)
    assert model.pose_features is not None
    assert model.posedirs is not None
    assert model.posedirs.shape[0] <= 40
    feature = (rotations[:, 1:] - torch.eye(3, dtype=torch.float64)).flatten(1).numpy()
    offsets = np.einsum("nf,vcf->nvc", feature, arrays.posedirs.astype(np.float64))
    plain = HandModel(replace(arrays, posedirs=np.zeros_like(arrays.posedirs)), dtype=torch.float64)
    shaped = plain.shape(betas)
    expected = plain.pose(shaped._replace(vertices=shaped.vertices + torch.tensor(offsets).mT), rotations)
    torch.testing.assert_close(model(rotations, betas).vertices, expected.vertices, atol=2e-6, rtol=0)
    full = np.random.default_rng(0).normal(0, 1e-3, arrays.posedirs.shape)
    assert HandModel(replace(arrays, posedirs=full)).pose_features is None


def test_correctives_leave_the_keypoints_where_the_bones_are(arrays: HandModelArrays) -> None:
    rotvecs, betas = sample(20)
    plain = HandModel(replace(arrays, posedirs=np.zeros_like(arrays.posedirs)), dtype=torch.float64)
    one, two = (model(rotvec_to_rotmat(rotvecs), betas) for model in (HandModel(arrays, dtype=torch.float64), plain))
    assert torch.equal(one.keypoints, two.keypoints)
    assert not torch.equal(one.vertices, two.vertices)


def test_arguments_are_not_written_to() -> None:
    model = HandModel(tiny_arrays(), dtype=torch.float64)
    rotvecs, betas = sample(4)
    rotations = rotvec_to_rotmat(rotvecs)
    before = copy.deepcopy((rotations, betas))
    model(rotations, betas)
    assert torch.equal(rotations, before[0])
    assert torch.equal(betas, before[1])


def test_constants_stay_out_of_checkpoints() -> None:
    model = HandModel(tiny_arrays())
    assert not model.state_dict()
    assert not list(model.parameters())


@pytest.mark.parametrize(("rotations", "betas"), [((15, 3, 3), (10,)), ((16, 3), (10,)), ((16, 3, 3), (11,))])
def test_wrong_shapes_are_named(rotations: tuple[int, ...], betas: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(\.\.\., 1"):
        HandModel(tiny_arrays())(torch.zeros(rotations), torch.zeros(betas))


@pytest.mark.filterwarnings("default")
def test_onnx_export_agrees(arrays_with_posedirs: HandModelArrays, tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = HandModel(arrays_with_posedirs).eval()
    rotvecs, betas = sample(5, torch.float32)
    rotations = rotvec_to_rotmat(rotvecs)
    path = tmp_path / "hand.onnx"
    torch.onnx.export(
        model,
        (rotations[:2], betas[:2]),
        str(path),
        input_names=["rotations", "betas"],
        output_names=["vertices", "joints", "keypoints"],
        dynamic_shapes=({0: torch.export.Dim("N")}, {0: torch.export.Dim("N")}),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"rotations": rotations.numpy(), "betas": betas.numpy()})
    expected: HandMeshBatch = model(rotations, betas)
    for found, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)

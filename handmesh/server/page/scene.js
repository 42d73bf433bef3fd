// The hands in three dimensions, drawn twice: over the picture as its camera sees them, and from any side.

import {
  BufferAttribute, BufferGeometry, Color, CylinderGeometry, DirectionalLight, GridHelper, Group, HemisphereLight, InstancedMesh,
  LineBasicMaterial, LineSegments, Matrix4, Mesh, MeshBasicMaterial, MeshStandardMaterial, OrbitControls, PerspectiveCamera,
  Quaternion, Scene, SphereGeometry, Vector3, WebGLRenderer,
} from './vendor/three.js';

const FINGER_COLORS = ['#ff5c5c', '#ffbe3c', '#60dc60', '#46b4ff', '#c878ff'], WRIST_COLOR = '#ebebeb';
const SIDE_COLORS = { right: '#5ca8ff', left: '#ff9e5c' };
const OVERLAY_OPACITY = 0.86, NEAR_M = 0.02, FAR_M = 10, JOINT_M = 0.0042, BONE_M = 0.0022;
const UP = new Vector3(0, 1, 0);

/** Camera axes (x right, y down, z forward) to WebGL's (y up, z to the viewer). */
function toGl(points, out) {
  for (let i = 0; i < points.length; i += 3) {
    out[i] = points[i];
    out[i + 1] = -points[i + 1];
    out[i + 2] = -points[i + 2];
  }
  return out;
}

/**
 * Points (camera axes, from `at`) moved to where a pinhole camera would have to see them to draw them as the lens does:
 * along the picture's plane, by OpenCV's model.
 */
function throughLens(points, [ax, ay, az], [k1, k2, p1, p2, k3, k4, k5, k6]) {
  const moved = new Float32Array(points.length);
  for (let i = 0; i < points.length; i += 3) {
    const z = Math.max(points[i + 2] + az, NEAR_M), x = (points[i] + ax) / z, y = (points[i + 1] + ay) / z;
    const r2 = x * x + y * y;
    const radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)));
    moved[i] = z * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) - ax;
    moved[i + 1] = z * (y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)) - ay;
    moved[i + 2] = points[i + 2];
  }
  return moved;
}

/** One hand's surface, wires and skeleton. The half turn from camera to WebGL axes keeps faces outside out. */
class HandModel extends Group {
  constructor(faces, bones) {
    super();
    this.bones = bones;
    this.indices = {
      right: new BufferAttribute(new Uint16Array(faces.flat()), 1),
      left: new BufferAttribute(new Uint16Array(faces.flatMap(([a, b, c]) => [c, b, a])), 1),
    };
    this.geometry = new BufferGeometry();
    this.surface = new Mesh(this.geometry, new MeshStandardMaterial({ roughness: 0.62, transparent: true }));
    this.wires = new Mesh(this.geometry, new MeshBasicMaterial({ wireframe: true, transparent: true, opacity: 0.65 }));
    // A skeleton inside a surface would not be seen, so it is drawn last and over everything.
    const drawn = { depthTest: false, transparent: true };
    this.jointDots = new InstancedMesh(new SphereGeometry(JOINT_M, 12, 8), new MeshBasicMaterial(drawn), 21);
    this.boneRods = new InstancedMesh(new CylinderGeometry(BONE_M, BONE_M, 1, 8, 1, true), new MeshBasicMaterial(drawn), bones.length);
    this.boneRods.renderOrder = 1;
    this.jointDots.renderOrder = 2;
    for (let i = 0; i < 21; i++) this.jointDots.setColorAt(i, new Color(i ? FINGER_COLORS[(i - 1) >> 2] : WRIST_COLOR));
    bones.forEach(([, child], i) => this.boneRods.setColorAt(i, new Color(FINGER_COLORS[(child - 1) >> 2])));
    for (const part of [this.surface, this.wires, this.jointDots, this.boneRods]) part.frustumCulled = false;
    this.add(this.surface, this.wires, this.boneRods, this.jointDots);
  }

  show(hand, style) {
    this.visible = true;
    toGl(hand.translation, this.at ??= new Float32Array(3));
    this.position.fromArray(this.at);
    this.surface.visible = style.mesh && hand.vertices.length > 0;
    this.wires.visible = style.wireframe && hand.vertices.length > 0;
    this.jointDots.visible = this.boneRods.visible = style.skeleton;
    this.surface.material.color.set(SIDE_COLORS[hand.side]);
    this.wires.material.color.set(style.mesh ? '#0d1b2a' : SIDE_COLORS[hand.side]);
    this.hand = hand;
    this.place();
  }

  /** Put the hand where it is, or with a lens's distortion where that shows it. */
  place(distortion = null) {
    const points = which => distortion ? throughLens(which, this.hand.translation, distortion) : which;
    if (this.surface.visible || this.wires.visible) this.#shape(this.hand, points(this.hand.vertices));
    if (this.jointDots.visible) this.#pose(points(this.hand.joints));
  }

  #shape(hand, vertices) {
    if (this.geometry.attributes.position?.array.length !== vertices.length) {
      this.geometry.setAttribute('position', new BufferAttribute(new Float32Array(vertices.length), 3));
      this.geometry.deleteAttribute('normal');
    }
    toGl(vertices, this.geometry.attributes.position.array);
    this.geometry.attributes.position.needsUpdate = true;
    this.geometry.setIndex(this.indices[hand.side]);
    this.geometry.computeVertexNormals();
  }

  #pose(joints) {
    const points = toGl(joints, this.points ??= new Float32Array(63));
    const joint = i => new Vector3().fromArray(points, 3 * i);
    const matrix = new Matrix4(), turn = new Quaternion(), size = new Vector3(1, 1, 1);
    for (let i = 0; i < 21; i++) this.jointDots.setMatrixAt(i, matrix.makeTranslation(joint(i)));
    this.bones.forEach(([a, b], i) => {
      const along = joint(b).sub(joint(a));
      const length = Math.max(along.length(), 1e-6);
      turn.setFromUnitVectors(UP, along.clone().divideScalar(length));
      this.boneRods.setMatrixAt(i, matrix.compose(joint(a).addScaledVector(along, 0.5), turn, size.set(1, length, 1)));
    });
    this.jointDots.instanceMatrix.needsUpdate = this.boneRods.instanceMatrix.needsUpdate = true;
  }

  dispose() {
    this.geometry.dispose();
    for (const part of [this.surface, this.wires, this.jointDots, this.boneRods]) {
      part.geometry.dispose();
      part.material.dispose();
    }
  }
}

/** Both views of the hands. Throws where the browser has no WebGL. */
export class HandViews {
  #hands = [];
  #models = [];
  #scene = new Scene();
  #overlayCamera = new PerspectiveCamera();
  #spaceCamera = new PerspectiveCamera(35, 1, NEAR_M, FAR_M);
  #frustum = new LineSegments(new BufferGeometry(), new LineBasicMaterial());
  #ground = null;
  #due = false;
  #distortion = null;

  constructor(overlayCanvas, spaceCanvas) {
    this.overlay = new WebGLRenderer({ canvas: overlayCanvas, alpha: true, antialias: true });
    this.space = new WebGLRenderer({ canvas: spaceCanvas, alpha: true, antialias: true });
    const light = new DirectionalLight('#fff', 2.2);
    light.position.set(-0.35, 0.6, 0.72);
    this.#scene.add(new HemisphereLight('#fff', '#56606b', 1.6), light);
    this.#overlayCamera.matrixAutoUpdate = false;
    this.#spaceCamera.layers.enable(1); // what only the space view shows
    this.#frustum.layers.set(1);
    this.#frustum.frustumCulled = false; // its bounds were taken while it was empty
    this.#scene.add(this.#frustum);
    this.controls = new OrbitControls(this.#spaceCamera, spaceCanvas);
    Object.assign(this.controls, { minDistance: 0.08, maxDistance: 4, enablePan: true, zoomSpeed: 0.8 });
    this.controls.addEventListener('change', () => this.redraw());
    spaceCanvas.addEventListener('keydown', event => this.#key(event));
    for (const canvas of [overlayCanvas, spaceCanvas]) {
      new ResizeObserver(() => this.redraw()).observe(canvas);
      canvas.addEventListener('webglcontextrestored', () => this.redraw());
    }
    this.look();
    this.resetView();
  }

  /** The mesh's triangles (F, 3) of a right hand, and bones as pairs of joints. */
  setShape(faces, bones) {
    for (const model of this.#models.splice(0)) {
      this.#scene.remove(model);
      model.dispose();
    }
    this.faces = faces;
    this.bones = bones;
  }

  /** Take the theme's colours from the page. */
  look() {
    const color = name => {
      const probe = Object.assign(document.createElement('i'), { hidden: true });
      probe.style.color = `var(${name})`;
      document.body.append(probe);
      const value = getComputedStyle(probe).color;
      probe.remove();
      return value;
    };
    this.#frustum.material.color.set(color('--muted'));
    if (this.#ground) {
      this.#scene.remove(this.#ground);
      this.#ground.dispose();
    }
    this.#ground = new GridHelper(2, 20, color('--line'), color('--line'));
    this.#ground.position.set(0, -0.22, -0.6);
    this.#ground.layers.set(1);
    this.#scene.add(this.#ground);
    this.redraw();
  }

  /** Show hands as a frame's camera sees them, and forget those before. */
  show(frame, style) {
    if (!this.faces) return;
    this.#hands = frame.hands;
    while (this.#models.length < frame.hands.length) {
      const model = new HandModel(this.faces, this.bones);
      this.#models.push(model);
      this.#scene.add(model);
    }
    this.#models.forEach((model, i) => {
      if (i < frame.hands.length) model.show(frame.hands[i], style);
      else model.visible = false;
    });
    if (frame.hands.length && !this.aimed) this.resetView();
    this.#aim(frame);
    this.redraw();
  }

  /** Look at the hands, or where they will be, from a little above and beside the camera. */
  resetView() {
    this.aimed = this.#hands.length > 0;
    const target = new Vector3(0, 0, -0.5);
    if (this.aimed) {
      target.set(0, 0, 0);
      for (const { translation: [x, y, z] } of this.#hands) target.add(new Vector3(x, -y, -z));
      target.divideScalar(this.#hands.length).add(new Vector3(0, 0.06, 0));
    }
    this.controls.target.copy(target);
    this.#spaceCamera.position.copy(target).add(new Vector3(0.5, 0.3, 0.82));
    this.controls.update();
    this.redraw();
  }

  /** Draw both views with the next screen refresh. */
  redraw() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      this.draw();
    });
  }

  draw() {
    fit(this.overlay);
    this.#opacity(OVERLAY_OPACITY);
    this.#place(this.#distortion);
    this.overlay.render(this.#scene, this.#overlayCamera);
    this.#place(null);
    const [width, height] = fit(this.space);
    this.#spaceCamera.aspect = width / height;
    this.#spaceCamera.updateProjectionMatrix();
    this.#opacity(1);
    this.space.render(this.#scene, this.#spaceCamera);
  }

  #opacity(value) {
    for (const model of this.#models) model.surface.material.opacity = value;
  }

  #place(distortion) {
    if (this.#distortion) for (const model of this.#models) if (model.visible) model.place(distortion);
  }

  /** Give the overlay the picture's camera (pixels with integer centres). */
  #aim({ camera: { fx, fy, cx, cy, distortion }, width, height }) {
    this.#distortion = distortion;
    const [x, y] = [2 * (cx + 0.5) / width - 1, 2 * (cy + 0.5) / height - 1];
    const depth = FAR_M - NEAR_M;
    this.#overlayCamera.projectionMatrix.set(
      2 * fx / width, 0, -x, 0,
      0, 2 * fy / height, y, 0,
      0, 0, -(FAR_M + NEAR_M) / depth, -2 * FAR_M * NEAR_M / depth,
      0, 0, -1, 0,
    );
    this.#overlayCamera.projectionMatrixInverse.copy(this.#overlayCamera.projectionMatrix).invert();
    const z = 0.12, corners = [];
    for (const [u, v] of [[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]]) {
      corners.push(new Vector3((u - cx) / fx * z, -(v - cy) / fy * z, -z));
    }
    const lines = corners.flatMap((corner, i) => [new Vector3(), corner, corner, corners[(i + 1) % 4]]);
    this.#frustum.geometry.setFromPoints(lines);
  }

  #key(event) {
    const turn = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const zoom = { '+': 0.87, '=': 0.87, '-': 1.15 }[event.key];
    if (!turn && !zoom) return;
    event.preventDefault();
    const away = this.#spaceCamera.position.clone().sub(this.controls.target);
    if (zoom) away.setLength(Math.min(4, Math.max(0.08, zoom * away.length())));
    if (turn) {
      const polar = Math.min(Math.PI - 0.05, Math.max(0.05, Math.acos(away.y / away.length()) + 0.1 * turn[1]));
      const azimuth = Math.atan2(away.x, away.z) + 0.1 * turn[0];
      away.setFromSphericalCoords(away.length(), polar, azimuth);
    }
    this.#spaceCamera.position.copy(this.controls.target).add(away);
    this.controls.update();
    this.redraw();
  }
}

/** Give a renderer the size of its canvas on the screen: [width, height] in CSS pixels. */
function fit(renderer) {
  const { domElement: canvas } = renderer;
  const [width, height, ratio] = [canvas.clientWidth, canvas.clientHeight, Math.min(devicePixelRatio, 2)];
  if (canvas.width !== Math.floor(width * ratio) || canvas.height !== Math.floor(height * ratio)) {
    renderer.setPixelRatio(ratio);
    renderer.setSize(width, height, false);
  }
  return [Math.max(width, 1), Math.max(height, 1)];
}

// The server's binary messages (handmesh/server/wire.py has the layout) as hands.

const HEADER_BYTES = 104, HAND_BYTES = 684;

/**
 * One message as { timeS, width, height, camera, dropped, decodeMs, handsMs, hands, picture }. A camera has fx, fy, cx, cy,
 * assumed and distortion: OpenCV's eight coefficients, or null for none.
 * A hand has side, trackId, score, translation, joints (63), joints2d (42) and vertices (3 V) in metres, camera axes.
 */
export function parseHands(buffer) {
  const view = new DataView(buffer);
  const u16 = at => view.getUint16(at, true), u32 = at => view.getUint32(at, true), f32 = at => view.getFloat32(at, true);
  if (buffer.byteLength < HEADER_BYTES || u32(0) !== 0x48534d48) throw new Error('no message of handmesh');
  if (u16(4) !== 1) throw new Error(`the server speaks version ${u16(4)} of its format; reload the page`);
  const [count, vertices] = [u16(6), u32(8)];
  const handBytes = handSize(vertices);
  const pictureBytes = u32(96);
  const distortion = Array.from({ length: 8 }, (_, i) => f32(40 + 4 * i));
  return {
    timeS: view.getFloat64(16, true),
    camera: { fx: f32(24), fy: f32(28), cx: f32(32), cy: f32(36), assumed: Boolean(u32(80) & 1), distortion: distortion.some(Boolean) ? distortion : null },
    width: u32(72),
    height: u32(76),
    dropped: u32(84),
    decodeMs: f32(88),
    handsMs: f32(92),
    hands: Array.from({ length: count }, (_, i) => parseHand(view, HEADER_BYTES + i * handBytes, vertices)),
    picture: pictureBytes ? new Blob([new Uint8Array(buffer, buffer.byteLength - pictureBytes)], { type: 'image/jpeg' }) : null,
  };
}

function parseHand(view, at, count) {
  const floats = (offset, length) => new Float32Array(view.buffer, at + offset, length);
  const step = view.getFloat32(at + 680, true);
  return {
    trackId: view.getInt32(at, true),
    side: view.getUint32(at + 4, true) ? 'right' : 'left',
    score: view.getFloat32(at + 8, true),
    translation: floats(16, 3),
    joints: floats(260, 63),
    joints2d: floats(512, 42),
    vertices: Float32Array.from(new Int16Array(view.buffer, at + 684, 3 * count), value => value * step),
  };
}

/** The same message without vertices and picture, for keeping: the server makes meshes of the parameters again. */
export function withoutMesh(buffer) {
  const view = new DataView(buffer);
  const [count, vertices] = [view.getUint16(6, true), view.getUint32(8, true)];
  const handBytes = handSize(vertices);
  const short = new Uint8Array(HEADER_BYTES + count * HAND_BYTES);
  short.set(new Uint8Array(buffer, 0, HEADER_BYTES));
  for (let i = 0; i < count; i++) {
    short.set(new Uint8Array(buffer, HEADER_BYTES + i * handBytes, HAND_BYTES), HEADER_BYTES + i * HAND_BYTES);
  }
  const head = new DataView(short.buffer);
  head.setUint32(8, 0, true);
  head.setUint32(12, short.byteLength, true);
  head.setUint32(96, 0, true);
  return short.buffer;
}

function handSize(vertices) {
  return HAND_BYTES + 6 * vertices + (vertices % 2 ? 2 : 0);
}

// The page: sources in, frames to the server, hands over the picture and in 3D, readouts and files.

import { FlatView } from './flat.js';
import { Pace } from './pace.js';
import { Recorder, saveAs } from './recorder.js';
import { Server } from './server.js';
import { draw, jpeg, listCameras, openPicture, VideoSource } from './source.js';
import { parseHands } from './wire.js';

const $ = id => document.getElementById(id);
const IN_FLIGHT = 2; // frames with the server: one it works on, and one on its way
const BACKLOG_BYTES = 500_000;
const GIVEN_UP_MS = 5000; // after which an answer is no longer waited for
const READ_MS = 3000; // for which a refusal is shown at least
const SILENCE_MS = 1500; // after which the picture goes on without hands

const server = new Server();
const pace = new Pace({ fps: $('fps'), delay: $('delay'), bar: $('bar'), stages: $('stages') });
const recorder = new Recorder();
const video = new VideoSource($('video'), onVideoFrame);
const picture = $('picture').getContext('2d');

let views = new FlatView($('overlay'));
let mode = null; // null, camera, video, picture or server
let pending = []; // frames with the server: {timeS, canvas, captureMs}, oldest first
let spare = []; // canvases to use again
let latest = null; // the last frame's {frame, message}
let answeredAt = 0;
let stillPicture = null; // the canvas of a picture file, to be sent again after a lost server

// --- what is shown

const style = () => ({ mesh: $('mesh').checked, wireframe: $('wireframe').checked, skeleton: $('skeleton').checked });

async function openViews() {
  try {
    const { HandViews } = await import('./scene.js');
    views = new HandViews($('overlay'), $('space'));
  } catch (error) {
    console.warn(error);
    $('overlay').replaceWith($('overlay').cloneNode()); // a canvas that WebGL has touched draws nothing flat
    views = new FlatView($('overlay'));
    $('no-webgl').hidden = false;
    for (const element of [$('space'), $('reset-view'), $('mesh').parentElement, $('wireframe').parentElement]) element.hidden = true;
    document.querySelector('.scale').hidden = true;
    $('skeleton').checked = true;
  }
}

function showPicture(image) {
  const [width, height] = [image.videoWidth ?? image.width, image.videoHeight ?? image.height];
  const { canvas } = picture;
  if (canvas.width !== width || canvas.height !== height) {
    Object.assign(canvas, { width, height });
    $('picture-pane').style.setProperty('--ratio', width / height);
  }
  picture.drawImage(image, 0, 0);
}

function clearHands() {
  if (latest) views.show({ ...latest.frame, hands: [] }, style());
  latest = null;
  listHands([]);
  enableSaving();
}

function listHands(hands, assumed = true) {
  const items = hands.map(({ side, trackId, score, translation }) => {
    const item = document.createElement('li');
    item.className = side;
    const cm = 100 * Math.hypot(...translation);
    item.innerHTML = `<b>${side}</b><span class="number">${cm.toFixed(0)} cm${assumed ? ' *' : ''}</span>
      <span>${trackId < 0 ? 'one frame' : `track ${trackId}`}</span><span>sure ${(100 * score).toFixed(0)} %</span>`;
    item.title = 'How far the wrist is from the camera';
    return item;
  });
  if (!items.length) {
    const item = Object.assign(document.createElement('li'), { className: 'none', textContent: 'No hand in sight' });
    items.push(item);
  }
  $('hands').replaceChildren(...items);
  $('assumed').hidden = !hands.length || !assumed;
  $('fov').disabled = hands.length > 0 && !assumed; // the server knows the camera
  const count = hands.map(hand => hand.side).sort().join(' and ') || 'no';
  const label = mode ? `Picture with ${count} hand${hands.length > 1 ? 's' : ''}` : 'No picture yet';
  if ($('picture').getAttribute('aria-label') !== label) $('picture').setAttribute('aria-label', label);
}

/** Say what is wrong, or that nothing is; what the connection or an answer says takes back nothing else. */
function trouble(text = '', about = 'page') {
  if (!text && about !== 'page' && trouble.about !== about) return;
  Object.assign(trouble, { about, at: performance.now() });
  $('trouble').textContent = text;
  $('trouble').hidden = !text;
}

// --- frames out

async function onVideoFrame(image) {
  const began = performance.now(), silent = began - answeredAt > SILENCE_MS;
  if (silent && latest) clearHands();
  if (!server.isOpen || silent) showPicture(image);
  if (pending.length && began - 1000 * pending[0].timeS > GIVEN_UP_MS) pending = [];
  if (!server.isOpen || pending.length >= IN_FLIGHT || server.backlog > BACKLOG_BYTES) return;
  const canvas = spare.pop() ?? document.createElement('canvas');
  draw(canvas, image);
  const entry = { timeS: began / 1000, canvas, captureMs: 0 };
  pending.push(entry);
  await sendFrame(entry);
  entry.captureMs = performance.now() - began;
}

async function sendFrame({ timeS, canvas }) {
  const data = await jpeg(canvas);
  const head = new DataView(new ArrayBuffer(8));
  head.setFloat64(0, timeS, true);
  server.send(new Blob([head.buffer, data]));
}

function sendStill() {
  pending = [{ timeS: performance.now() / 1000, canvas: stillPicture, captureMs: 0 }];
  sendFrame(pending[0]);
}

// --- hands in

async function onHands(message) {
  const frame = parseHands(message);
  const now = performance.now();
  answeredAt = now;
  if (mode === 'server') {
    if (onHands.busy) return; // the freshest wins
    onHands.busy = true;
    const image = frame.picture && await createImageBitmap(frame.picture).catch(() => null);
    onHands.busy = false;
    if (mode !== 'server') return;
    if (image) showPicture(image);
    image?.close();
    show(frame, message, { decode: frame.decodeMs, hands: frame.handsMs }, 0, now);
    return;
  }
  const place = pending.findIndex(({ timeS }) => timeS === frame.timeS);
  if (place < 0) return; // of a source that is no longer shown
  const entry = pending[place];
  for (const { canvas } of pending.splice(0, place + 1)) if (canvas !== stillPicture) spare.push(canvas);
  showPicture(entry.canvas);
  const total = now - 1000 * entry.timeS;
  const stages = { capture: entry.captureMs, decode: frame.decodeMs, hands: frame.handsMs };
  stages.transfer = Math.max(0, total - entry.captureMs - frame.decodeMs - frame.handsMs);
  show(frame, message, stages, total, now);
}

function show(frame, message, stages, delay, now) {
  if (now - trouble.at > READ_MS) trouble('', 'answer'); // what it refused was another frame or option
  latest = { frame, message };
  views.show(frame, style());
  listHands(frame.hands, frame.camera.assumed);
  if (!recorder.add(message)) endRecording('The recording is full.');
  else if (recorder.on && recorder.messages.length % 10 === 0) $('recording').textContent = `${recorder.seconds.toFixed(0)} s`;
  enableSaving();
  const drawMs = performance.now() - now;
  pace.note({ ...stages, draw: drawMs }, delay && delay + drawMs);
}

// --- sources

async function use(next, open) {
  const turn = use.turn = (use.turn ?? 0) + 1;
  trouble();
  mode = next;
  if (recorder.on) endRecording(); // each source has its own clock, and the times of a recording must increase
  stopSource();
  $('start').hidden = next !== null;
  $('stop').disabled = next === null;
  $('use-camera').setAttribute('aria-pressed', next === 'camera');
  $('use-server').setAttribute('aria-pressed', next === 'server');
  $('smoothing').disabled = next === 'server'; // the server's own source is smoothed for all who watch
  server.connect(next === 'server' ? 'source' : 'stream'); // anew, so that hands of the last source are forgotten
  try {
    await open?.();
  } catch (error) {
    if (turn !== use.turn) return; // another source has been chosen meanwhile
    await use(null);
    trouble(error.message);
  }
}

function stopSource() {
  video.stop();
  stillPicture = null;
  pending = [];
  pace.reset();
  clearHands();
  picture.clearRect(0, 0, picture.canvas.width, picture.canvas.height);
  if (views.aimed) views.aimed = false;
}

function useCamera(deviceId) {
  return use('camera', async () => {
    const opened = await video.openCamera(deviceId);
    if (!opened) return;
    setMirror(opened.facing === 'user');
    const cameras = await listCameras();
    $('device-label').hidden = cameras.length < 2;
    $('device').replaceChildren(...cameras.map((camera, i) => new Option(camera.label || `Camera ${i + 1}`, camera.deviceId)));
    $('device').value = opened.deviceId;
  });
}

function useFile(file) {
  setMirror(false);
  if (file.type.startsWith('image/')) {
    return use('picture', async () => {
      stillPicture = await openPicture(file);
      showPicture(stillPicture);
      sendStill();
    });
  }
  return use('video', () => video.openFile(file));
}

function setMirror(on) {
  $('mirror').checked = on;
  $('frame').classList.toggle('mirrored', on);
}

video.onlost = () => use(null).then(() => trouble('The camera was unplugged or taken away.'));

// --- files

function enableSaving() {
  const ready = Boolean(latest?.frame.hands.length);
  $('save-glb').disabled = $('save-json').disabled = !ready;
  $('record').disabled = !mode || mode === 'picture';
}

async function save(messages, format, name) {
  try {
    await saveAs(server, messages, format, name);
    trouble();
  } catch (error) {
    trouble(error.message);
  }
}

const saveNow = format => latest?.frame.hands.length && save([latest.message], format, 'hands');

function toggleRecording() {
  if (recorder.on) return endRecording();
  recorder.start();
  $('record').setAttribute('aria-pressed', true);
  $('recording').textContent = 'recording';
}

function endRecording(why = '') {
  recorder.stop();
  $('record').setAttribute('aria-pressed', false);
  $('recording').textContent = `${why} ${recorder.messages.length} frames`.trim();
  if (!recorder.messages.length) return;
  for (const format of ['glb', 'bvh', 'json']) {
    const button = Object.assign(document.createElement('button'), { type: 'button', textContent: format.toUpperCase() });
    button.setAttribute('aria-label', `Save the recording as ${format.toUpperCase()}`);
    button.addEventListener('click', () => save(recorder.messages, format, 'recording'));
    $('recording').append(' ', button);
  }
}

// --- the server

server.addEventListener('state', ({ detail: { state, text } }) => {
  $('status').dataset.state = state;
  $('status').textContent = text;
  $('token-form').hidden = state !== 'token';
  if (state === 'lost') {
    trouble(`${text}.`, 'server');
    pending = [];
    clearHands();
  } else if (state === 'open') {
    trouble('', 'server');
    if (stillPicture) sendStill();
  }
});

server.addEventListener('hello', ({ detail: { faces, bones, source } }) => {
  views.setShape(faces, bones);
  $('use-server').hidden = source === null;
  $('use-server').title = `The server’s own source, ${source}`;
});

server.addEventListener('hands', ({ detail }) => mode && onHands(detail).catch(error => trouble(`${error.message}.`)));
server.addEventListener('refused', ({ detail }) => {
  pending = [];
  trouble(`The server says: ${detail.message}.`, 'answer');
  if (detail.lost) clearHands();
});

// --- controls

const keys = {
  m: () => $('mesh').click(), w: () => $('wireframe').click(), k: () => $('skeleton').click(), x: () => $('mirror').click(),
  t: () => $('smoothing').click(), r: () => $('record').click(), g: () => $('save-glb').click(), j: () => $('save-json').click(),
  0: () => views.resetView(),
};

addEventListener('keydown', event => {
  const typing = event.target.matches?.('input:not([type=checkbox]), select, textarea');
  if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
  event.preventDefault();
  keys[event.key]();
});

$('start-camera').addEventListener('click', () => useCamera());
$('use-camera').addEventListener('click', () => useCamera());
$('device').addEventListener('change', () => useCamera($('device').value));
$('use-server').addEventListener('click', () => { setMirror(false); use('server'); });
$('stop').addEventListener('click', () => use(null));
$('open-file').addEventListener('click', () => $('file').click());
$('file').addEventListener('change', () => {
  if ($('file').files[0]) useFile($('file').files[0]);
  $('file').value = '';
});
for (const id of ['mesh', 'wireframe', 'skeleton']) {
  $(id).addEventListener('change', () => latest && views.show(latest.frame, style()));
}
$('mirror').addEventListener('change', () => setMirror($('mirror').checked));
$('smoothing').addEventListener('change', () => server.set({ smoothing: $('smoothing').checked }));
$('fov').addEventListener('change', () => {
  if (!$('fov').reportValidity()) return;
  server.set({ fov_deg: $('fov').valueAsNumber });
  if (stillPicture) sendStill();
});
$('record').addEventListener('click', toggleRecording);
$('save-glb').addEventListener('click', () => saveNow('glb'));
$('save-json').addEventListener('click', () => saveNow('json'));
$('reset-view').addEventListener('click', () => views.resetView());
$('token-form').addEventListener('submit', event => {
  event.preventDefault();
  server.setToken($('token').value.trim());
});

addEventListener('dragover', event => {
  event.preventDefault();
  $('picture-pane').classList.add('target');
});
for (const kind of ['dragleave', 'drop']) addEventListener(kind, () => $('picture-pane').classList.remove('target'));
addEventListener('drop', event => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) useFile(file);
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => views.look());

await openViews();
server.set({ picture: true });
listHands([]);
use(null);

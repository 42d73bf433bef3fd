// Where this page's frames come from: a camera, a video file, a picture.

const FRAME_PX = 640, PICTURE_PX = 1600, JPEG_QUALITY = 0.85;

/** Plays a camera or a video in a video element and hands each of its frames to `onframe(video)`. */
export class VideoSource {
  #video;
  #run = 0;

  constructor(video, onframe) {
    this.#video = video;
    this.onframe = onframe;
  }

  /** Open the camera of that id, or any. Rejects with a sentence for the user. */
  async openCamera(deviceId = '') {
    this.stop();
    if (!navigator.mediaDevices) {
      throw new Error('Browsers lend a camera to pages of localhost or over HTTPS only. Open this page at localhost, or start the server with --certificate and --key.');
    }
    const run = ++this.#run;
    const wanted = { width: { ideal: FRAME_PX }, height: { ideal: 480 }, frameRate: { ideal: 30 } };
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { ...wanted, ...(deviceId ? { deviceId } : { facingMode: 'user' }) } });
    } catch (error) {
      throw new Error(CAMERA_TROUBLE[error.name] ?? `The camera could not be opened: ${error.message}.`);
    }
    if (run !== this.#run) return stream.getTracks().forEach(track => track.stop());
    const [track] = stream.getVideoTracks();
    track.onended = () => this.onlost?.();
    this.#video.srcObject = stream;
    await this.#play();
    return { facing: track.getSettings().facingMode ?? 'user', deviceId: track.getSettings().deviceId };
  }

  /** Play a video file, again and again. Rejects with a sentence for the user. */
  async openFile(file) {
    this.stop();
    this.#video.src = URL.createObjectURL(file);
    await this.#play().catch(() => { throw new Error(`This browser cannot play ${file.name}. Videos as .mp4 or .webm work best.`); });
  }

  stop() {
    this.#run++;
    this.#video.pause();
    this.#video.srcObject?.getTracks().forEach(track => { track.onended = null; track.stop(); });
    if (this.#video.src) URL.revokeObjectURL(this.#video.src);
    this.#video.srcObject = null;
    this.#video.removeAttribute('src');
    this.#video.load();
  }

  async #play() {
    const run = this.#run;
    await this.#video.play();
    const next = () => {
      if (run !== this.#run) return;
      this.onframe(this.#video);
      this.#await(next);
    };
    if (run === this.#run) this.#await(next);
  }

  #await(next) {
    if (this.#video.requestVideoFrameCallback) this.#video.requestVideoFrameCallback(next);
    else requestAnimationFrame(next);
  }
}

const CAMERA_TROUBLE = {
  NotAllowedError: 'The camera may not be used: allow it for this page in the browser, beside the address.',
  NotFoundError: 'No camera was found. Plug one in, or open a file.',
  NotReadableError: 'The camera is in use by another program, or does not answer.',
  OverconstrainedError: 'That camera is gone. Choose another one.',
};

/** Draw a video's or a picture's frame into a canvas of at most `longest` px. */
export function draw(canvas, image, longest = FRAME_PX) {
  const [width, height] = [image.videoWidth ?? image.width, image.videoHeight ?? image.height];
  const scale = Math.min(1, longest / Math.max(width, height));
  const [w, h] = [Math.max(1, Math.round(scale * width)), Math.max(1, Math.round(scale * height))];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  canvas.getContext('2d', { willReadFrequently: true }).drawImage(image, 0, 0, w, h);
}

/** The canvas as JPEG. */
export function jpeg(canvas) {
  return new Promise(resolve => canvas.toBlob(resolve, 'image/jpeg', JPEG_QUALITY));
}

/** A picture file, upright, in a canvas. Rejects with a sentence for the user. */
export async function openPicture(file) {
  const canvas = document.createElement('canvas');
  const image = await createImageBitmap(file).catch(() => { throw new Error(`${file.name} is no picture that this browser can read.`); });
  draw(canvas, image, PICTURE_PX);
  image.close();
  return canvas;
}

/** The cameras by name, as far as the browser tells. */
export async function listCameras() {
  const devices = await navigator.mediaDevices?.enumerateDevices() ?? [];
  return devices.filter(device => device.kind === 'videoinput');
}

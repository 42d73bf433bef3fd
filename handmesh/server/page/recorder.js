// Keeps what the server sent, and has it made into files.

import { withoutMesh } from './wire.js';

const MOST_MS = 600e3;

/** A recording: the messages of a stretch of time, as they came but without meshes. */
export class Recorder {
  messages = [];
  on = false;
  #began = 0;

  get seconds() { return (performance.now() - this.#began) / 1000; }

  start() { [this.messages, this.#began, this.on] = [[], performance.now(), true]; }

  stop() { this.on = false; }

  /** Keep a message while recording; false where the recording is full, and then stopped. */
  add(message) {
    if (!this.on) return true;
    this.messages.push(withoutMesh(message));
    if (performance.now() - this.#began < MOST_MS) return true;
    this.stop();
    return false;
  }
}

/** Have the server make a file of messages, and download it. Rejects with a sentence for the user. */
export async function saveAs(server, messages, format, name) {
  let answer;
  try {
    answer = await server.fetch(`export?format=${format}`, { method: 'POST', body: new Blob(messages) });
  } catch {
    throw new Error('The server that makes the files is not there. Try again when it is back.');
  }
  if (!answer.ok) {
    const { detail } = await answer.json().catch(() => ({ detail: `status ${answer.status}` }));
    throw new Error(`The server could not make the file: ${detail}.`);
  }
  const link = document.createElement('a');
  link.href = URL.createObjectURL(await answer.blob());
  const suffix = /filename="[^"]*\.(\w+)"/.exec(answer.headers.get('Content-Disposition'))?.[1] ?? format;
  link.download = `${name}.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

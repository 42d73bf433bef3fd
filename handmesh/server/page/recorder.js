// Keeps what the server sent, and has it made into files.

const MOST_BYTES = 90e6, MOST_MS = 180e3;

/** A recording: the messages of a stretch of time, as they came. */
export class Recorder {
  #messages = [];
  #bytes = 0;
  #began = 0;
  on = false;

  get seconds() { return this.#messages.length ? (performance.now() - this.#began) / 1000 : 0; }
  get frames() { return this.#messages.length; }
  get messages() { return this.#messages; }

  start() { [this.#messages, this.#bytes, this.#began, this.on] = [[], 0, performance.now(), true]; }

  stop() { this.on = false; }

  /** Keep a message while recording; false where the recording is full, and then stopped. */
  add(message) {
    if (!this.on) return true;
    this.#messages.push(message);
    this.#bytes += message.byteLength;
    if (this.#bytes < MOST_BYTES && performance.now() - this.#began < MOST_MS) return true;
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
  if (!answer.ok) throw new Error(`The server could not make the file: ${(await answer.json()).detail}.`);
  const link = document.createElement('a');
  link.href = URL.createObjectURL(await answer.blob());
  link.download = `${name}.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

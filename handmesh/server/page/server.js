// The connection to the server: opens itself again when it is lost, and says what is going on.

const FIRST_WAIT_MS = 500, LONGEST_WAIT_MS = 4000, TOKEN_KEY = 'handmesh-token';

/**
 * Events: "state" (detail: {state: connecting|open|lost|token, text}), "hello" (detail: the greeting), "hands" (detail:
 * an ArrayBuffer) and "refused" (detail: the server's {message, lost}; lost: its source gives nothing for now).
 */
export class Server extends EventTarget {
  #socket = null;
  #wait = FIRST_WAIT_MS;
  #timer = 0;
  #turn = 0;
  #route = 'stream';
  #options = { format: 'binary' };

  constructor() {
    super();
    this.#takeToken();
    addEventListener('hashchange', () => this.#takeToken() && this.connect(this.#route)); // pasted while the page is open
    addEventListener('online', () => this.#retry(0));
  }

  get isOpen() { return this.#socket?.readyState === WebSocket.OPEN; }

  /** Bytes that wait to be sent. */
  get backlog() { return this.#socket?.bufferedAmount ?? 0; }

  setToken(token) {
    keepToken(token);
    this.connect(this.#route);
  }

  /** Keep the token that the address brings, if any, and take it out of there. */
  #takeToken() {
    const given = new URLSearchParams(location.hash.slice(1)).get('token');
    if (!given) return false;
    keepToken(given);
    history.replaceState(null, '', location.pathname + location.search);
    return true;
  }

  /** A request to the API, with the token. */
  fetch(path, options = {}) {
    const token = sessionStorage.getItem(TOKEN_KEY);
    return fetch(`v1/${path}`, { ...options, headers: token ? { Authorization: `Bearer ${token}` } : {} });
  }

  /** Connect to the route "stream" (this page's frames) or "source" (the server's own). */
  async connect(route) {
    const turn = ++this.#turn;
    this.#route = route;
    clearTimeout(this.#timer);
    const old = this.#socket;
    this.#socket = null;
    old?.close();
    this.#say('connecting', 'Connecting to the server');
    const refusal = await this.#knock();
    if (turn !== this.#turn) return; // another connection has been asked for meanwhile
    const token = sessionStorage.getItem(TOKEN_KEY);
    if (refusal?.status === 401) return this.#say('token', token ? 'The token is wrong' : 'The server wants its token');
    if (refusal) return this.#lose(refusal.reason);
    const address = new URL(`v1/${route}`, location.href);
    address.protocol = address.protocol.replace('http', 'ws');
    address.hash = '';
    const socket = new WebSocket(address, token ? ['handmesh', `token.${token}`] : ['handmesh']);
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => socket.send(JSON.stringify(this.#options));
    socket.onmessage = event => this.#receive(socket, event.data);
    socket.onclose = event => socket === this.#socket && this.#lose(event.reason);
    this.#socket = socket;
  }

  send(message) {
    if (this.isOpen) this.#socket.send(message);
  }

  /** Change options of the stream; they are said again after each connection. */
  set(options) {
    Object.assign(this.#options, options);
    this.send(JSON.stringify(options));
  }

  /** What the server has against us, null for nothing: browsers do not tell why a WebSocket was refused. */
  async #knock() {
    try {
      const answer = await this.fetch('info', { signal: AbortSignal.timeout(5000) });
      return answer.ok ? null : { status: answer.status, reason: (await answer.json()).detail };
    } catch {
      return {};
    }
  }

  #receive(socket, data) {
    if (socket !== this.#socket) return;
    if (typeof data !== 'string') return this.#emit('hands', data);
    const message = JSON.parse(data);
    if (message.type === 'hello') {
      this.#wait = FIRST_WAIT_MS;
      this.#say('open', 'Connected');
      this.#emit('hello', message);
    } else if (message.type === 'error') this.#emit('refused', message);
  }

  #lose(reason = '') {
    this.#socket = null;
    this.#say('lost', reason ? `Lost the server: ${reason}. Trying again` : 'Lost the server. Trying again');
    this.#retry(this.#wait);
    this.#wait = Math.min(2 * this.#wait, LONGEST_WAIT_MS);
  }

  #retry(wait) {
    clearTimeout(this.#timer);
    if (!this.#socket) this.#timer = setTimeout(() => this.connect(this.#route), wait);
  }

  #say(state, text) { this.#emit('state', { state, text }); }
  #emit(kind, detail) { this.dispatchEvent(new CustomEvent(kind, { detail })); }
}

/** Keep a token for this tab; one of characters that no header may hold is as good as a wrong one. */
function keepToken(token) {
  sessionStorage.setItem(TOKEN_KEY, /^[\w.~-]+$/.test(token) ? token : 'malformed');
}

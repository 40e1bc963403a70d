// Asks for files, sends bodies to be echoed, and compares every byte; prints what came of it as JSON.
// Half of the workers use node:http with an agent, the others fetch.
import http from "node:http";
import fs from "node:fs";
import path from "node:path";

const [files, to, seconds, workers] = process.argv.slice(2);
const names = fs.readdirSync(files);
const contents = names.map((name) => fs.readFileSync(path.join(files, name)));
const agent = new http.Agent({ keepAlive: true });
const sum = { requests: 0, bytes: 0, mismatches: 0, errors: 0, stalls: 0, notes: [] };
const end = Date.now() + Number(seconds) * 1000;
const LIMIT = 30_000;

const byAgent = (url, body, chunked) =>
  new Promise((resolve, reject) => {
    const options = { agent, method: body ? "POST" : "GET", headers: {} };
    if (body && !chunked) options.headers["content-length"] = body.length;
    const request = http.request(url, options, (response) => {
      const parts = [];
      response.on("data", (part) => parts.push(part));
      response.on("error", reject);
      response.on("end", () => {
        if (response.statusCode === 200) resolve(Buffer.concat(parts));
        else reject(new Error(`status ${response.statusCode}`));
      });
    });
    request.setTimeout(LIMIT, () => request.destroy(Object.assign(new Error("stalled"), { name: "TimeoutError" })));
    request.on("error", reject);
    if (body && chunked) {
      const middle = body.length >> 1;
      request.write(body.subarray(0, middle));
      setImmediate(() => request.end(body.subarray(middle)));
    } else request.end(body);
  });

const byFetch = async (url, body) => {
  const options = { method: body ? "POST" : "GET", body, signal: AbortSignal.timeout(LIMIT) };
  const response = await fetch(url, options);
  const bytes = Buffer.from(await response.arrayBuffer());
  if (response.status !== 200) throw new Error(`status ${response.status}`);
  return bytes;
};

const work = async (worker) => {
  while (Date.now() < end) {
    const at = Math.floor(Math.random() * names.length);
    const kind = Math.floor(Math.random() * 4);
    const url = kind < 2 ? `${to}/${"fc"[kind]}/${names[at]}` : `${to}/echo`;
    const body = kind < 2 ? undefined : contents[at];
    try {
      const bytes = await (worker % 2 ? byFetch(url, body) : byAgent(url, body, kind === 3));
      sum.requests += 1;
      sum.bytes += bytes.length;
      if (!bytes.equals(contents[at])) {
        sum.mismatches += 1;
        sum.notes.push(`${names[at]}, kind ${kind}: ${bytes.length} bytes differ from the file's`);
      }
    } catch (error) {
      if (error.name === "TimeoutError") sum.stalls += 1;
      else sum.errors += 1;
      if (sum.notes.length < 10) sum.notes.push(`${names[at]}, kind ${kind}: ${error} ${error.cause ?? ""}`);
    }
  }
};
await Promise.all(Array.from({ length: Number(workers) }, (_, worker) => work(worker)));
console.log(JSON.stringify(sum));
process.exit(0);

// Serves files with a length and in chunks, and echoes bodies.
import http from "node:http";
import fs from "node:fs";
import path from "node:path";

const [files, host, port] = process.argv.slice(2);
const server = http.createServer((request, response) => {
  const [, kind, name] = request.url.split("/");
  if (kind === "echo") {
    const length = request.headers["content-length"];
    if (length !== undefined) response.setHeader("content-length", length);
    // The answer may begin before the request has ended, as with any stream that is piped.
    request.pipe(response);
    return;
  }
  const file = path.join(files, path.basename(name ?? ""));
  fs.stat(file, (error, stat) => {
    if (error) {
      response.writeHead(404).end();
      return;
    }
    if (kind === "f") response.setHeader("content-length", stat.size);
    fs.createReadStream(file, { highWaterMark: 5000 }).pipe(response);
  });
});
server.keepAliveTimeout = 60_000;
server.listen(Number(port), host);

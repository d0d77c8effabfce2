"""A Cloud Storage server in memory: what gcsfs, Orbax and TensorStore ask of its JSON API.

With generations and their preconditions, on which TensorStore's writes rest. By hand:
`python tests/fake_gcs.py PORT BUCKET`, and in the environment of the run what `environment` gives.
"""

import itertools
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

OBJECT = re.compile(r"(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?/?")


class Server(ThreadingHTTPServer):
    """Serves `objects`, (bucket, name) -> (content, generation), of one bucket."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, bucket, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.bucket, self.objects, self.uploads = bucket, {}, {}
        self.refuse = None  # a status, to answer every request with
        self.lock, self.count = threading.Lock(), itertools.count(1)

    def environment(self):
        """The variables that make the libraries use this server."""
        address = f"http://127.0.0.1:{self.server_port}"
        return {
            "STORAGE_EMULATOR_HOST": address,  # gcsfs, google.cloud.storage
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore's: looks for no credentials
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask another API, by gRPC
        }

    def handle_error(self, request, client_address):
        """Says nothing of clients that hang up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def names(self, below=""):
        """The names of the objects below a folder, sorted."""
        return sorted(name for name in self.objects if name.startswith(below))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, -1  # an answer is one packet, at once

    def do_GET(self):
        path, query = self._asked()
        match = OBJECT.fullmatch(path)
        if not match or match[1] != self.server.bucket or self.server.refuse:
            return self._answer(self.server.refuse or 404)
        if match[2]:
            return self._get(unquote(match[2]), query)
        if path.endswith("/o"):
            return self._list(query)
        return self._answer(200, {"kind": "storage#bucket", "name": match[1]})

    def do_POST(self):
        path, query = self._asked()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match = OBJECT.fullmatch(path)
        if not match or match[1] != self.server.bucket or self.server.refuse:
            return self._answer(self.server.refuse or 404)
        if "upload_id" in query:  # the rest of a resumable upload, in one piece
            return self._put(*self.server.uploads.pop(query["upload_id"]), body)
        name = query.get("name")
        if query["uploadType"] == "multipart":
            boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            described, content = (
                part.partition(b"\n\n" if b"\r\n\r\n" not in part else b"\r\n\r\n")[2]
                for part in body.split(b"--" + boundary)[1:3]
            )
            name, body = name or json.loads(described)["name"], re.sub(rb"\r?\n\Z", b"", content)
        if query["uploadType"] == "resumable":
            upload = str(next(self.server.count))
            self.server.uploads[upload] = name or json.loads(body)["name"], query
            host = f"http://{self.headers['Host']}"
            location = f"{host}{path}?uploadType=resumable&upload_id={upload}"
            return self._answer(200, {}, Location=location)
        return self._put(name, query, body)

    do_PUT = do_POST

    def do_DELETE(self):
        path, query = self._asked()
        name = unquote(OBJECT.fullmatch(path)[2])
        with self.server.lock:
            status = self.server.refuse or self._unmet(name, query)
            if not status and self.server.objects.pop(name, None) is None:
                status = 404
        return self._answer(status or 204)

    def _get(self, name, query):
        status = self._unmet(name, query)
        found = self.server.objects.get(name)
        if found is None or status:
            return self._answer(404 if found is None else status)
        content, generation = found
        if query.get("alt") != "media":
            return self._answer(200, self._resource(name))
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        part = content
        if asked:
            first = int(asked[1]) if asked[1] else max(0, len(content) - int(asked[2]))
            last = int(asked[2]) if asked[1] and asked[2] else len(content) - 1
            if first >= len(content):
                return self._answer(416)
            part = content[first : last + 1]
            whole = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}
        else:
            whole = {}
        return self._answer(206 if asked else 200, part, **whole, **{
            "x-goog-generation": str(generation),
            "x-goog-stored-content-length": str(len(content)),
        })

    def _list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start, end = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
        items, prefixes = [], set()
        for name in self.server.names(prefix):
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                prefixes.add(prefix + head + delimiter)
            elif start <= name < end:
                items.append(self._resource(name))
        return self._answer(200, {"items": items, "prefixes": sorted(prefixes)})

    def _put(self, name, query, content):
        with self.server.lock:
            if status := self._unmet(name, query):
                return self._answer(status)
            self.server.objects[name] = content, next(self.server.count)
            resource = self._resource(name)
        return self._answer(200, resource)

    def _unmet(self, name, query):
        """The status where a precondition of the request is not met."""
        generation = self.server.objects.get(name, (b"", 0))[1]
        if int(query.get("ifGenerationMatch", generation)) != generation:
            return 412
        return 304 if int(query.get("ifGenerationNotMatch", -1)) == generation else None

    def _resource(self, name):
        content, generation = self.server.objects[name]
        return {
            "kind": "storage#object", "bucket": self.server.bucket, "name": name,
            "size": str(len(content)), "generation": str(generation), "metageneration": "1",
            "updated": "2026-01-01T00:00:00.000Z", "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    def _asked(self):
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        return url.path, {key: values[0] for key, values in query.items()}

    def _answer(self, status, content=b"", **headers):
        if isinstance(content, dict):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        elif status >= 400:
            content = json.dumps({"error": {"code": status, "message": "refused"}}).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    server = Server(sys.argv[2], int(sys.argv[1]))
    print("\n".join(f"export {key}={value}" for key, value in server.environment().items()))
    server.serve_forever()

"""What a host without the cluster's token asks of every port of it."""

LOOK = "JobInfoGcsService/GetAllJobInfo"
# What each of Ray's servers does for whoever is let in: join, read, make, run, look.
CALLS = [
    "NodeInfoGcsService/RegisterNode",
    "InternalKVGcsService/InternalKVGet",
    "ActorInfoGcsService/RegisterActor",
    LOOK,
    "NodeManagerService/RequestWorkerLease",
    "ObjectManagerService/Pull",
    "CoreWorkerService/PushTask",
    "CoreWorkerService/GetObjectStatus",
    "ReporterService/GetTraceback",
    "LogService/StreamLog",
]
PAGES = ["/api/jobs/", "/api/v0/logs", "/nodes?view=summary", "/logs", "/metrics"]
# Arguments: the calls, the pages, a token, and the places HOST:PORT.
ASK = """
import http.client, json, sys, urllib.error, urllib.request
from concurrent.futures import ThreadPoolExecutor
import grpc

calls, pages, token = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
sends = {"Authorization": "Bearer " + token} if token else {}
job = json.dumps({"entrypoint": "touch /tmp/stranger"}).encode()


def call(place, name):
    with grpc.insecure_channel(place) as channel:
        metadata = [(key.lower(), value) for key, value in sends.items()]
        try:
            channel.unary_unary("/ray.rpc." + name)(b"", timeout=3, metadata=metadata)
            return "OK"
        except grpc.RpcError as error:
            return error.code().name


def fetch(place, page, body=None):
    headers = sends | {"Content-Type": "application/json"}
    asked = urllib.request.Request("http://" + place + page, body, headers)
    try:
        with urllib.request.urlopen(asked, timeout=3) as answer:
            body = answer.read()
            return "numbers" if not body or body.startswith(b"#") else answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return None  # no HTTP


def ask(place):
    found = {page: fetch(place, page) for page in pages}
    for page in ("/api/jobs/", "/api/job_agent/jobs/"):
        found["submit " + page] = fetch(place, page, job)
    return place, {
        "calls": {name: call(place, name) for name in calls},
        "pages": {page: code for page, code in found.items() if code},
    }


with ThreadPoolExecutor(16) as pool:
    print(json.dumps(dict(pool.map(ask, sys.argv[4:]))))
"""

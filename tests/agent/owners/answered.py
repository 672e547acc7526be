"""Answers in the forms that schedulers and supervisors document."""

from typing import Any

POD = "6b2f7f3e-9d44-4f6b-8a3e-0c7d6f2f1a11"
STATIC = "bd495b7643dfc9d3194bd002e968bc3d"
MIRROR = "7c4837d4-a568-47f4-aef1-7b0b82b27877"
CID = "0f" * 32


def quantity(number: int) -> dict[str, Any]:
    return {"set": True, "infinite": False, "number": number}


SLURM_2305: dict[str, Any] = {
    "meta": {"Slurm": {"release": "23.02.3"}},
    "errors": [],
    "jobs": [
        {
            "account": "physics",
            "array_job_id": quantity(70),
            "array_task_id": quantity(3),
            "cluster": "hpc1",
            "cpus": quantity(12),
            "gres_detail": ["gpu:a100:2(IDX:0-1)", "gpu:a100:2(IDX:2,5)"],
            "job_id": 77,
            "job_state": "RUNNING",
            "job_resources": {
                "nodes": "gpu[1-2]",
                "allocated_cores": 12,
                "allocated_nodes": [
                    {"nodename": "gpu1", "cpus_used": 4, "sockets": {}},
                    {"nodename": "gpu2", "cpus_used": 8, "sockets": {}},
                ],
            },
            "name": "train",
            "nodes": "gpu[1-2]",
            "node_count": quantity(2),
            "partition": "long",
            "qos": "normal",
            "tres_alloc_str": "cpu=12,mem=8G,node=2,billing=12,gres/gpu=4,gres/gpu:a100=4",
            "user_name": "alice",
            "user_id": 1001,
        }
    ],
}
SLURM_2405: dict[str, Any] = {
    "meta": {"slurm": {"version": {"major": "26", "minor": "0", "micro": "5"}}},
    "jobs": [
        {
            "account": "bio",
            "array_job_id": quantity(0),
            "array_task_id": {"set": False, "infinite": False, "number": 0},
            "cluster": "hpc1",
            "cpus": quantity(6),
            "gres_detail": ["gpu:a6000:2(IDX:0,2),gpu:v100:1(IDX:4),mps:10"],
            "job_id": 78,
            "job_state": ["RUNNING", "SIGNALING"],
            "job_resources": {
                "select_type": ["CR_CORE"],
                "cpus": 6,
                "nodes": {
                    "count": 1,
                    "list": "gpu2",
                    "allocation": [
                        {"index": 0, "name": "gpu2", "cpus": {"count": 6, "used": 0}},
                    ],
                },
            },
            "name": "fold",
            "nodes": "gpu2",
            "node_count": quantity(1),
            "partition": "gpu",
            "sluid": "sBR1JB8J1YM400",
            "tres_alloc_str": "cpu=6,mem=8G,node=1,gres/gpu=3",
            "user_name": "bob",
        }
    ],
}
PODS: dict[str, Any] = {
    "kind": "PodList",
    "apiVersion": "v1",
    "items": [
        {
            "metadata": {
                "name": "trainer-0",
                "namespace": "ml",
                "uid": POD,
                "labels": {"app": "trainer", "team": "vision"},
                "annotations": {"kubernetes.io/config.source": "api"},
            },
            "spec": {
                "initContainers": [
                    {"name": "fetch", "resources": {"requests": {"cpu": "8"}}},
                    {
                        "name": "mesh",
                        "restartPolicy": "Always",
                        "resources": {"requests": {"cpu": "100m"}},
                    },
                ],
                "containers": [
                    {
                        "name": "main",
                        "resources": {
                            "requests": {"cpu": "3500m", "nvidia.com/gpu": "2"},
                            "limits": {"nvidia.com/gpu": "2", "memory": "8Gi"},
                        },
                    },
                    {"name": "log", "resources": {"requests": {"cpu": "400m"}}},
                ],
            },
            "status": {"phase": "Running", "qosClass": "Burstable"},
        },
        {
            "metadata": {
                "name": "etcd-n1",
                "namespace": "kube-system",
                "uid": MIRROR,
                "labels": {"component": "etcd"},
                "annotations": {
                    "kubernetes.io/config.hash": STATIC,
                    "kubernetes.io/config.mirror": STATIC,
                },
            },
            "spec": {"containers": [{"resources": {"requests": {"cpu": "100m"}}}]},
            "status": {"phase": "Running"},
        },
    ],
}
CONTAINER: dict[str, Any] = {
    "Id": CID,
    "Name": "/web-1",
    "State": {"Running": True, "Pid": 4242},
    "Config": {
        "Labels": {"com.docker.compose.project": "shop", "com.docker.compose.service": "web"},
        "Env": ["PATH=/usr/bin", "NVIDIA_VISIBLE_DEVICES=GPU-aaaa"],
    },
    "HostConfig": {
        "NanoCpus": 1_500_000_000,
        "CpuQuota": 0,
        "CpuPeriod": 0,
        "CpusetCpus": "",
        "Runtime": "runc",
        "DeviceRequests": [
            {
                "Driver": "nvidia",
                "Count": 0,
                "DeviceIDs": ["0", "GPU-3a23c669-1f69-c64e-cf85-44e9b07e7a2a"],
                "Capabilities": [["gpu"]],
                "Options": {},
            }
        ],
    },
}

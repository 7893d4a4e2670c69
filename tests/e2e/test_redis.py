"""Jobs under real torchrun on Redis: what is special there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from rdzv_redis import RedisServer

from .agents import Job
from .served import SECRET

README = Path(__file__).parents[2] / "plugins" / "redis" / "README.md"


def test_the_user_of_the_readme_may_do_what_a_job_needs(make_job: Callable[..., Job]) -> None:
    [rule] = re.findall(r"^ACL SETUSER rdzv .*$", README.read_text(), re.MULTILINE)
    env = {"RDZV_REDIS_USERNAME": "rdzv", "RDZV_REDIS_PASSWORD": f"{SECRET}-2"}
    with RedisServer(password=SECRET) as server:
        with server.client() as client:
            client.execute_command(*rule.replace(">password", f">{SECRET}-2").split())
        job = make_job(backend="redis", endpoint=server.endpoint, nnodes="2:3", env=env)
        job.start("a", "b")
        job.formed("a", "b")
        job.start("c")
        job.formed("a", "b", "c")
        job.agents["a"].kill()
        job.formed("b", "c")
        job.finish("b", "c")

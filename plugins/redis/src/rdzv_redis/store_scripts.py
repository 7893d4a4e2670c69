"""The scripts of RedisStore."""

from __future__ import annotations

from .wire import Script

__all__ = ["store_scripts"]

# The keys are named in the scripts, not handed to them one by one: all begin
# with KEYS[1] and are in its slot. TTL stands for the time to live. The scripts
# are put together from pieces of text: making functions costs Lua more time than
# the commands take.
_KEYS = """
local base = KEYS[1]
local values, queues, once = base .. ':values', base .. ':queues', base .. ':once'
"""

# A change is [lane, number, name, ...]. The server keeps the last number of each
# lane, whose numbers are texts of one width, with its answer: what is sent again
# gets the same one. The first sending may come after the second, out of a
# connection that was given up while the server was paused; then it has an old
# number, or nobody hears its answer.
_CHANGE = """
local lane, number, name = ARGV[1], ARGV[2], ARGV[3]
local last = redis.call('HGET', once, lane)
if last then
  local before = string.sub(last, 1, #number)
  if before == number then return string.sub(last, #number + 1) end
  if before > number then return redis.error_reply('ERR this change comes too late') end
end
"""

_WAKE = """
local waiting = base .. ':waiting:' .. name
local waiters = redis.call('SMEMBERS', waiting)
if #waiters > 0 then
  redis.call('DEL', waiting)
  for _, waiter in ipairs(waiters) do
    redis.call('RPUSH', base .. ':wake:' .. waiter, '')
    redis.call('PEXPIRE', base .. ':wake:' .. waiter, 10000)
  end
end
"""

_WAIT = """
redis.call('SADD', base .. ':waiting:' .. name, waiter)
redis.call('PEXPIRE', base .. ':waiting:' .. name, patience)
"""


def _keep(key: str) -> str:
    return f"if redis.call('PTTL', {key}) < 0 then redis.call('PEXPIRE', {key}, TTL) end\n"


def _put(value: str) -> str:
    return f"""
if redis.call('HSET', values, name, {value}) == 1 then
  {_keep("values")}
end
{_WAKE}
"""


def _done(answer: str) -> str:
    return f"""
if redis.call('HSET', once, lane, number .. {answer}) == 1 then
  {_keep("once")}
end
return {answer}
"""


_SCRIPTS = {
    "set": f"""
{_CHANGE}
for i = 3, #ARGV, 2 do
  name = ARGV[i]
  {_put("ARGV[i + 1]")}
end
{_done("0")}
""",
    # Lua writes numbers of up to 14 digits as they are; a larger one is read as text.
    # What is added to a key that is not there is the amount itself.
    "add": f"""
{_CHANGE}
local answer = redis.pcall('HINCRBY', values, name, ARGV[4])
if type(answer) == 'table' then return answer end
if answer >= 1e14 or answer <= -1e14 then
  answer = redis.call('HGET', values, name)
end
if tonumber(answer) == tonumber(ARGV[4]) then
  {_keep("values")}
end
{_WAKE}
{_done("answer")}
""",
    # What is answered begins with how it ended. One that lost is recorded too: sent
    # twice, it must not win the second time.
    "compare_set": f"""
{_CHANGE}
local current = redis.call('HGET', values, name)
local answer
if current and current ~= ARGV[4] then
  answer = 'c' .. current
elseif not current and ARGV[4] ~= '' then
  answer = 'e'
else
  {_put("ARGV[5]")}
  answer = 'd'
end
{_done("answer")}
""",
    "append": f"""
{_CHANGE}
local value = redis.call('HGET', values, name) or ''
if #value + #ARGV[4] > tonumber(ARGV[5]) then
  return redis.error_reply('ERR the value would have more than ' .. ARGV[5] .. ' bytes')
end
{_put("value .. ARGV[4]")}
{_done("0")}
""",
    "delete_key": f"""
{_CHANGE}
local deleted = tostring(redis.call('HDEL', values, name))
{_done("deleted")}
""",
    # A queue is two counters, its head and its tail, and the items between them.
    "push": f"""
{_CHANGE}
local tail = redis.call('HINCRBY', queues, 't' .. name, 1)
redis.call('HSET', queues, 'i' .. tail .. ':' .. name, ARGV[4])
if tail == 1 then
  {_keep("queues")}
end
{_WAKE}
{_done("0")}
""",
    "pop": f"""
{_CHANGE}
local answer
local tail = redis.call('HGET', queues, 't' .. name)
if tail then
  local head = redis.call('HINCRBY', queues, 'h' .. name, 1)
  local place = 'i' .. head .. ':' .. name
  answer = 'i' .. redis.call('HGET', queues, place)
  redis.call('HDEL', queues, place)
  if head == tonumber(tail) then redis.call('HDEL', queues, 'h' .. name, 't' .. name) end
else
  answer = 'n'
  if ARGV[4] then
    local waiter, patience = ARGV[4], ARGV[5]
    {_WAIT}
  end
end
{_done("answer")}
""",
    "look": f"""
local waiter, patience = ARGV[1], ARGV[2]
for i = 3, #ARGV do
  local name = ARGV[i]
  if redis.call('HEXISTS', values, name) + redis.call('HEXISTS', queues, 't' .. name) == 0 then
    if waiter ~= '' then
      {_WAIT}
    end
    return i - 3
  end
end
return -1
""",
    "touch": """
for _, key in ipairs({values, queues, once}) do redis.call('PEXPIRE', key, TTL) end
return 0
""",
}


def store_scripts(base: bytes, ttl: int) -> dict[str, Script]:
    """The scripts for what all keys begin with, and for a time to live in milliseconds."""
    return {
        name: Script((_KEYS + text).replace("TTL)", f"{ttl})"), 1, base)
        for name, text in _SCRIPTS.items()
    }
